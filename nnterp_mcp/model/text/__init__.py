"""Between text and tokens: tokenization, chats, positions, padding."""
