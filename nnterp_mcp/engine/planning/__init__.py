"""Turns a list of operations into edits for one batch of prompts."""
