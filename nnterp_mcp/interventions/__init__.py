"""The experiments, as functions over a standardized model."""
