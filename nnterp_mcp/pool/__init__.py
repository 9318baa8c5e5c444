"""The server's side of the workers: processes, queues, runs in flight."""
