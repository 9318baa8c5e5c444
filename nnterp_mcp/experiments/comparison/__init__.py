"""Two models with the same modules: where their outputs, activations and weights differ."""
