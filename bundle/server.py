"""What a desktop client starts: the server on stdio, with the folders that its user chose."""

import sys

from nnterp_mcp.cli import main

if __name__ == "__main__":
    sys.exit(main(["serve", *(f"--folder={folder}" for folder in sys.argv[1:] if folder)]))
