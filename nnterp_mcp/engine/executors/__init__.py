"""What runs a pass: hooks, traces, captured graphs, NDIF."""
