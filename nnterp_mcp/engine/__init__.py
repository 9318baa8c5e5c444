"""Forward passes with edits and captures, and generation."""
