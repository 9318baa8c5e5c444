"""The tool `run_prompts`."""
