"""Experiments on a model that NDIF serves: sent as traces, reduced beside the model, read into the same results."""
