"""Replays, compares and exports runs."""
