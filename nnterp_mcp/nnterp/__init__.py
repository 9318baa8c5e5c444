"""nnterp's interface, on this package's engine."""
