"""The standardized model: every causal LM under one set of names, exact and checked."""
