"""The benchmark: jobs, the contestants that do them, each in a process of its own, and what is made of their times."""
