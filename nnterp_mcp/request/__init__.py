"""What a caller writes: field types, operations, selectors. Imports no torch."""
