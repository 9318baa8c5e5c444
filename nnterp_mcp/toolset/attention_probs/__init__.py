"""The tool `attention_probs`."""
