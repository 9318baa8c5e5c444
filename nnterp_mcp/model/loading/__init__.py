"""From a folder, a Hub name or a GGUF file to a checked, standardized model."""
