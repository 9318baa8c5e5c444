"""Checks shapes in every process that a test starts with this folder on its path, servers and workers included."""

from shape_checks import install

install("nnterp_mcp")
