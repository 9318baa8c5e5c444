"""What is kept on disk: runs, vectors, arrays, figures."""
