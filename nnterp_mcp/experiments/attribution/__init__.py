"""What an output is attributed to: residual decomposition, gradients, path integrals."""
