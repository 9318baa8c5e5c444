"""Workers and the models that they hold."""
