"""Storage on disk: runs, vectors, arrays, figures."""
