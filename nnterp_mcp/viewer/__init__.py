"""The viewer: one page that shows runs, inside an MCP client or in a browser, without network access."""
