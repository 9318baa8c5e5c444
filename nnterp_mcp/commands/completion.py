"""`nnterp-mcp completion`: the script by which a shell completes commands, flags and ids of runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from argparse import _SubParsersAction as Commands  # pyright: ignore[reportPrivateUsage]


def add_completion(commands: Commands[ArgumentParser]) -> None:
    """Adds the command to the parser of `nnterp-mcp`."""
    completion = commands.add_parser(
        "completion",
        help="print a script that completes commands in a shell",
        description='bash and zsh: eval "$(nnterp-mcp completion bash)"; fish: nnterp-mcp completion fish | source',
    )
    completion.add_argument("shell", choices=["bash", "zsh", "fish"], help="the shell to print it for")
    completion.set_defaults(run=_print_script)


def complete(parser: ArgumentParser) -> None:
    """Answers a shell that asks for the words that fit, and ends the process."""
    import argcomplete

    argcomplete.autocomplete(parser)


def _print_script(options: Namespace) -> None:
    import argcomplete

    print(argcomplete.shellcode(["nnterp-mcp"], shell=options.shell))
