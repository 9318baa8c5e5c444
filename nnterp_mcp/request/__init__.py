"""The language of requests: field types, operations, selectors. Imports no torch."""
