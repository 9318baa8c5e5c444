"""The MCP server. Never imports torch, transformers or nnsight."""
