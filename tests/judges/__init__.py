"""Outside judges: programs of others that say whether the server keeps to the protocol. They need npm."""
