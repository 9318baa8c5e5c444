"""The tool `train_probe`."""
