"""The executors of a pass: hooks, traces, captured graphs, NDIF."""
