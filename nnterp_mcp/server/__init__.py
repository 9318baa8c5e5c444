"""The MCP server. It never imports torch, transformers or nnsight."""
