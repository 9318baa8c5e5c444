"""Models that NDIF serves."""
