"""`nnterp-mcp check`: a model, or a tiny one of every type, against plain transformers with plain hooks."""

from __future__ import annotations

import json
import os
import sys
from contextlib import redirect_stdout
from typing import TYPE_CHECKING

from nnterp_mcp.commands.flags import add_json, whole_number
from nnterp_mcp.errors import InvalidRequest

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from argparse import _SubParsersAction as Commands  # pyright: ignore[reportPrivateUsage]

    from nnterp_mcp.verification.full_checks import Report

_CORES = os.cpu_count() or 1


def add_check(commands: Commands[ArgumentParser]) -> None:
    """Adds the command to the parser of `nnterp-mcp`."""
    check = commands.add_parser("check", help="verify a model, or a tiny one of every architecture")
    check.add_argument("model", nargs="?", help="built-in name, Hub id, folder or .gguf file")
    check.add_argument("--all-types", action="store_true", help="every causal-LM type that transformers knows")
    check.add_argument(
        "--jobs",
        type=whole_number(1, 256),
        default=_CORES,
        help=f"processes for --all-types (one for each core: {_CORES})",
    )
    check.add_argument("--trust-remote-code", action="store_true", help="let the model run code of its own (off)")
    add_json(check)
    check.set_defaults(run=_check)


def _check(options: Namespace) -> int:
    """Prints the checks; the exit code is 1 if a number was wrong, or a model failed a check."""
    if options.all_types == (options.model is not None):
        raise InvalidRequest("check takes a model or --all-types.", "For instance: nnterp-mcp check smollm2-135m")
    return _check_all_types(options) if options.all_types else _check_model(options)


def _check_model(options: Namespace) -> int:
    from nnterp_mcp.formatting import escaped, finite
    from nnterp_mcp.model.standardized import StandardizedTransformer
    from nnterp_mcp.verification.census import to_json
    from nnterp_mcp.verification.full_checks import check_thoroughly

    with redirect_stdout(sys.stderr):
        code = options.trust_remote_code
        report = check_thoroughly(StandardizedTransformer(options.model, check_renaming=False, trust_remote_code=code))
    if "json" in options:
        print(json.dumps(finite(to_json([report])[0])))
    else:
        print(f"{report.name}: {report.architecture}, {report.seconds:.1f} s")
        for check in report.checks:
            print(escaped(f"{'passed' if check.passed else 'FAILED'}  {check.name}: {check.detail}"))
    return int(not all(check.passed for check in report.checks))


def _check_all_types(options: Namespace) -> int:
    from tqdm import tqdm

    from nnterp_mcp.formatting import finite
    from nnterp_mcp.verification.census import check_all_types, render_table, to_json, totals
    from nnterp_mcp.verification.tiny import causal_lm_types

    types = causal_lm_types()
    with tqdm(total=len(types), unit=" types", mininterval=1) as bar:  # on standard error, with the time left

        def count(report: Report) -> None:
            bar.set_postfix_str(report.name, refresh=False)
            bar.update()

        reports = check_all_types(options.jobs, types, count)
    found = totals(reports)
    print(
        json.dumps(finite({"totals": found, "types": to_json(reports)})) if "json" in options else render_table(reports)
    )
    return int(found["wrong"] > 0)
