"""How a model is built: its parts under standard names, found by structure."""
