"""The long checks over a tiny random model of every causal-LM type that transformers knows, and their table."""

from __future__ import annotations

import json
import multiprocessing
import platform
import signal
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from importlib import resources
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from nnterp_mcp.errors import Unsupported
from nnterp_mcp.model.loading.verdicts import Check
from nnterp_mcp.verification.full_checks import CAPABILITIES, Report, check_thoroughly, measure_once

if TYPE_CHECKING:
    from nnterp_mcp.model.standardized import StandardizedTransformer

HEADINGS = {
    "names": "names",
    "lens": "lens",
    "attention": "attention read",
    "attention_edit": "attention edited",
    "heads": "heads edited",
    "skip": "layers skipped",
    "batch_left": "padded left",
    "batch_right": "padded right",
    "causal": "causal",
    "lengths": "batches beyond windows",
    "generation": "generation as whole passes",
    "as_generate": "generation as transformers'",
    "switches": "RoPE that changes with length",
}
"""The table's headings."""

COLUMNS = (*CAPABILITIES, "switches")
"""The table's columns: the capabilities, and position encodings that change with the length."""


def check_type(model_type: str) -> Report:
    """Build a tiny random model of a type and verify every capability of it.

    Args:
        model_type: One of `tiny.causal_lm_types()`.

    Returns:
        The report; where no model can be built, or none of its layers found, every capability fails with the reason.
    """
    try:
        model = _standardize(model_type)
    except Exception as error:
        reason = str(error).splitlines()[0]
        return Report(model_type, "", tuple(Check(name, False, reason) for name in COLUMNS), (), None, 0.0)
    report = check_thoroughly(model)
    switches, is_wrong = measure_once("switches", lambda: _check_switches(model_type))
    wrong = (*report.wrong, "switches") if is_wrong else report.wrong
    return replace(report, checks=(*report.checks, switches), wrong=wrong)


def _standardize(model_type: str, rope: str | None = None) -> StandardizedTransformer:
    from nnterp_mcp.model.standardized import StandardizedTransformer
    from nnterp_mcp.verification.tiny import tiny_model, tiny_tokenizer

    weights = tiny_model(model_type, rope=rope)
    return StandardizedTransformer(
        weights, tokenizer=tiny_tokenizer(), name=model_type, check_renaming=rope is not None
    )


def _check_switches(model_type: str) -> str:
    """Batches and generated text where rotary frequencies switch beyond a length, and where they are scaled beyond it.

    Raises:
        DiffersError: They are not what transformers gives for each text alone.
        Unsupported: The type has no encoding of either kind.
    """
    from nnterp_mcp.verification.long_texts import LongTexts

    said: list[str] = []
    for rope in ("longrope", "dynamic"):
        try:
            model = _standardize(model_type, rope)
        except Exception:  # the type has no rotary encoding, or transformers not this one for it
            continue
        texts = LongTexts(model, everywhere=False)
        texts.lengths()
        texts.generation()
        theirs = measure_once("as_generate", texts.as_generate)[0]
        said.append(f"{rope} as whole passes" + ("" if theirs.passed else f" ({theirs.detail})"))
    if not said:
        raise Unsupported("no rotary encoding that may change with the length")
    return "; ".join(said)


def check_all_types(
    jobs: int = 1, types: Sequence[str] | None = None, on_report: Callable[[Report], None] = lambda report: None
) -> list[Report]:
    """Verify every type, in processes side by side.

    Args:
        jobs: How many processes; each computes on one thread.
        types: Which types; all of the installed transformers' causal-LM types by default.
        on_report: Called with each report as it is ready, in the order of the types.

    Returns:
        The reports, in the order of the types.
    """
    from nnterp_mcp.verification.tiny import causal_lm_types

    chosen = list(types) if types is not None else causal_lm_types()
    reports: list[Report] = []
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"), initializer=_calm) as pool:
        try:
            with _without_interrupts():
                found = pool.map(check_type, chosen)
            for report in found:
                on_report(report)
                reports.append(report)
        except BaseException:
            for process in multiprocessing.active_children():
                process.kill()
            raise
    return reports


@contextmanager
def _without_interrupts() -> Generator[None]:
    """Processes that start in it never see Ctrl-C, which a terminal sends to all: the first one ends them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def totals(reports: Iterable[Report]) -> dict[str, int]:
    """The number of models with each capability; under `wrong`, of those that differ from transformers."""
    listed = list(reports)
    counts = {name: sum(report.passed(name) for report in listed) for name in COLUMNS}
    return {"types": len(listed), **counts, "wrong": sum(bool(report.wrong) for report in listed)}


def worst_lens(reports: Iterable[Report]) -> float:
    """The largest difference of a last layer's lens from the logits, where the lens is offered."""
    return max((report.lens_difference or 0.0 for report in reports if report.passed("lens")), default=0.0)


def census_versions() -> dict[str, str]:
    """The versions that the results were measured with."""
    packages = ("nnterp-mcp", "transformers", "nnsight", "torch")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def verified_classes() -> frozenset[str]:
    """The classes of transformers whose names and lens the last census verified; the package carries the list."""
    stored = resources.files("nnterp_mcp.verification") / "verified.json"
    return frozenset(json.loads(stored.read_text(encoding="utf-8"))["classes"])


def render_classes(reports: Iterable[Report]) -> str:
    """The list that `verified_classes` reads, as JSON."""
    passed = {report.architecture for report in reports if report.passed("names") and report.passed("lens")}
    return json.dumps({"transformers": version("transformers"), "classes": sorted(passed)}, indent=1) + "\n"


def render_table(reports: Sequence[Report]) -> str:
    """The table of types and capabilities, with totals, in Markdown."""
    counts = totals(reports)
    listed = ", ".join(f"{name} {number}" for name, number in census_versions().items())
    columns = [HEADINGS[name] for name in COLUMNS]
    lines = [
        "# Architectures",
        "",
        "What was verified for each of the causal-LM types of transformers, on a tiny random model of the type in",
        "float32, against plain transformers with plain PyTorch hooks. What is not marked is refused, with the reason.",
        "But for the last two columns: where transformers' own `generate` differs from its whole passes, text is that",
        "of whole passes; and not every type has rotary frequencies that may change with the length of a text.",
        "Generated by `python tools/architectures.py`.",
        "",
        f"Versions: {listed}.",
        "",
        f"Of {counts['types']} types: " + ", ".join(f"{HEADINGS[name]} {counts[name]}" for name in COLUMNS) + ".",
        f"Wrong numbers: {counts['wrong']}. Largest difference of the last layer's lens from the logits: "
        f"{worst_lens(reports):.1g}.",
        "",
        f"| type | {' | '.join(columns)} | the first that is missing |",
        f"|---|{'|'.join(':-:' for _ in columns)}|---|",
    ]
    return "\n".join([*lines, *(_row(report) for report in reports), ""])


def to_json(reports: Iterable[Report]) -> list[dict[str, Any]]:
    """The reports as plain data."""
    return [asdict(report) for report in reports]


def _row(report: Report) -> str:
    marks = ["✓" if report.passed(name) else "" for name in COLUMNS]
    return f"| {report.name} | {' | '.join(marks)} | {_reason(report)} |"


def _reason(report: Report) -> str:
    missing = next((check for check in report.checks if not check.passed and check.name != "switches"), None)
    if missing is None:
        return ""
    detail = missing.detail.removeprefix(f"{report.name}: ").replace("|", "\\|").rstrip(".")
    return f"{HEADINGS[missing.name]}: {detail}"


def _calm() -> None:
    import warnings

    import torch
    from transformers.utils import logging

    torch.set_num_threads(1)
    logging.set_verbosity_error()
    warnings.filterwarnings("ignore")
