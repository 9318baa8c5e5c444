"""The tool `tokenize`."""
