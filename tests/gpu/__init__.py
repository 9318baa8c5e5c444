"""Tests on an accelerator; skipped where there is none."""
