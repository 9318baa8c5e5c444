"""The viewer: one page that shows runs, inside an MCP client or in a browser, with no network of its own."""
