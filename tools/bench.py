"""Measures our library and our tools over MCP beside raw transformers and the peers: `make bench`, `--help`."""

from __future__ import annotations

import sys

from benchmark.command import main

if __name__ == "__main__":
    sys.exit(main())
