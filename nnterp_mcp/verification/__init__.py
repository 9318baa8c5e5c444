"""The long checks of a model against plain transformers, and the tiny models of every type."""
