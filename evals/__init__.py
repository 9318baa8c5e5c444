"""The agent's eval: research questions on smollm2-135m, their answers computed apart from the package, and a grader."""
