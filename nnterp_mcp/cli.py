"""The process of the command line: how it begins, and how it ends.

The commands are imported late, in `commands/parser.py`: an interruption is handled from the first moment on.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from nnterp_mcp.interruption import EXIT_CODE, end_on_interrupt, was_interrupted

if TYPE_CHECKING:
    from nnterp_mcp.errors import NnterpError


def run_process() -> NoReturn:
    """Runs the command of this process and exits: with 130 and one line on standard error if it is interrupted."""
    end_on_interrupt()
    try:
        code = main()
    except BaseException:
        if was_interrupted():  # a library may have made an error of its own of it
            raise SystemExit(EXIT_CODE) from None
        raise
    sys.exit(EXIT_CODE if was_interrupted() else code)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code.

    Returns:
        0; 1 if what was checked or compared is not right; 2 if the command cannot be carried out.
    """
    from nnterp_mcp.commands.parser import build_parser
    from nnterp_mcp.errors import NnterpError

    try:
        try:
            options = build_parser().parse_args(arguments)
            return options.run(options) or 0
        except NnterpError as error:
            _report(error)
            return 2
        finally:
            sys.stdout.flush()
    except (BrokenPipeError, BaseExceptionGroup) as error:
        if isinstance(error, BaseExceptionGroup) and error.split(BrokenPipeError)[1] is not None:
            raise
        _close_output()  # whoever read the output has read enough
        return 0
    except OSError as error:  # a full disk, a quota, a folder that may not be written
        _close_output()
        where = f" ({error.filename})" if error.filename else ""
        print(f"error: {(error.strerror or str(error)).rstrip('.')}{where}.", file=sys.stderr)
        return 2


def _close_output() -> None:
    """Lets nothing more be written to standard output, at exit either."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _report(error: NnterpError) -> None:
    from nnterp_mcp.formatting import escaped

    print(escaped(f"{error.code}: {error.message}\n{error.command_step or error.next_step}".rstrip()), file=sys.stderr)
