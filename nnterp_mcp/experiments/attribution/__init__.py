"""Attribution of outputs: residual decomposition, gradients, path integrals."""
