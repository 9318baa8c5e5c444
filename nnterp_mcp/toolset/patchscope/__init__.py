"""The tool `patchscope`."""
