"""The tool `logit_lens`."""
