"""Lenses that translate: an intermediate state is mapped to the last layer's basis before the head reads it."""
