"""Many clients on one server for a long time: `python -m tests.soak --minutes 20 --clients 8`.

Half of the clients speak streamable HTTP, half SSE. Each calls at random what was answered before on the quiet server,
whose next-token probabilities were checked against plain transformers; cancels, reconnects, reads runs again, and one
of them kills workers. Prints a table; the exit code is 1 if an answer was wrong, a call hung, a run that was seen done
cannot be read at the end, or anything failed with `internal`.
"""
