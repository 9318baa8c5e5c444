"""Dictionaries of features: sparse autoencoders and transcoders, as they are published, and what they read."""
