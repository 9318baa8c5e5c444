"""Checks of a served model at load, on the model itself, in a few short requests."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from nnterp_mcp.engine.executors.ndif.backend import inputs_of, pass_data, replayed
from nnterp_mcp.engine.executors.ndif.generation import generate_served
from nnterp_mcp.engine.executors.ndif.kernels import compare_lens, compare_replayed
from nnterp_mcp.engine.executors.ndif.model import ServedTransformer
from nnterp_mcp.engine.executors.ndif.refusals import lacking
from nnterp_mcp.engine.executors.ndif.traces import run_passes
from nnterp_mcp.engine.executors.ndif.wire_format import steps_of
from nnterp_mcp.engine.forward import Capture, Pass, forward
from nnterp_mcp.engine.generation import Generation
from nnterp_mcp.engine.hook_points import Place
from nnterp_mcp.engine.interpreter import Data
from nnterp_mcp.engine.kv_cache import CACHE_NAMES, cache_name
from nnterp_mcp.engine.readouts.reductions import take_heads, take_rows
from nnterp_mcp.engine.token_spans import Window
from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.errors import Internal, InvalidRequest, Unsupported
from nnterp_mcp.model.loading.load_checks import LONG, SHORT
from nnterp_mcp.model.loading.verdicts import TOLERANCES, Check
from nnterp_mcp.model.text.tokenization import EncodedPrompt, pad_batch

Run = TypeVar("Run")
_FAULTS = (Internal, InvalidRequest, Unsupported)
"""Errors that concern the model; any other concerns the connection, and ends the load."""


def check_served(model: ServedTransformer) -> list[Check]:
    """Verifies a served model; what fails is refused later, with its reason."""
    names = _check_names(model)
    checks = [names]
    if names.passed:
        checks += [*_check_lens(model), _check_cache(model), _check_attention(model)]
    refused = {check.name: f"{model.name}: {check.detail}" for check in checks if not check.passed}
    model.refuse(refused | lacking(model.name))
    return checks


def _prompts(model: ServedTransformer) -> list[EncodedPrompt]:
    """A longer prompt of plain tokens and a shorter one."""
    step = max(model.vocab_size // (LONG + 3), 1)
    ids = [(place * step) % model.vocab_size for place in range(1, LONG + 1)]
    return [EncodedPrompt(0, "", ids, []), EncodedPrompt(1, "", ids[:SHORT], [])]


def _check_names(model: ServedTransformer) -> Check:
    anatomy = model.anatomy
    if anatomy.faults:
        return Check("names", False, anatomy.faults[0])
    return Check("names", True, f"{anatomy.num_layers} layers, width {anatomy.hidden_size}, as the configuration says")


def _check_lens(model: ServedTransformer) -> list[Check]:
    """Checks that the last layer's lens equals the logits, and a padded prompt the prompt alone."""
    long, short = _prompts(model)

    def compare(prompts: list[EncodedPrompt]) -> Data:
        batch = pad_batch(prompts, model.pad_id, model.device)
        ends = [(row, at) for row, prompt in enumerate(batch.prompts) for at in range(len(prompt.ids))]
        at = Pass(batch, logits=ends).ends
        assert at is not None
        captures = [Capture(model.last_output, take_rows, {"rows": at[0], "columns": at[1]})]
        steps = steps_of(model, Window.over(batch), captures=captures)
        one = pass_data(model, inputs_of(batch), steps, ends=at)
        own = {"short": SHORT, "compared": len(prompts) > 1}
        return one | {"read": compare_lens, "options": one["options"] | own, "stops": False}

    passes = [compare([short]), compare([long, short])]
    if not model.head:
        passes.append(replayed(model, LONG + SHORT, "states", compare_replayed, {}))
    found = _attempt(lambda: run_passes(model.connection, passes))
    if isinstance(found, str):
        return [Check(name, False, found) for name in ("lens", "batch", "causal")]
    padded = found[1]
    model.dtype_served = getattr(torch, str(padded["dtype"]))
    allowed = TOLERANCES.get(model.dtype_served, 1e-1) * max(float(padded["largest"]), 1.0)
    lens, batch, later = float(found[-1]["lens"]), float(padded["padded"]), float(padded["later"])
    how = "" if model.head else " (through the model's own tail)"
    return [
        Check("lens", lens <= allowed, f"last layer's lens differs from the logits by at most {lens:.1g}{how}"),
        Check("batch", batch <= allowed, f"a padded prompt differs from the prompt alone by at most {batch:.1g}"),
        Check("causal", later <= allowed, f"later tokens change earlier logits by at most {later:.1g}"),
    ]


def _check_cache(model: ServedTransformer) -> Check:
    """Finds the name under which the model takes cached keys and values there: with them a text is the one without.

    The service may run another release of transformers than this machine, with another name.
    """

    def write(name: str | None) -> Generation | str:
        model.cache_name = name
        return _attempt(lambda: generate_served(model, Workload([_prompts(model)[0]]), max_new_tokens=3)[0])

    without = write(None)
    if isinstance(without, str):
        return Check("generation", False, without)
    allowed = TOLERANCES.get(model.dtype_served, 1e-1) * max(1.0, *map(abs, without.log_probs))
    own = cache_name(model.module)
    for name in sorted(CACHE_NAMES, key=lambda name: name != own):
        found = write(name)
        if isinstance(found, str) or found.ids != without.ids:
            continue
        difference = max(abs(a - b) for a, b in zip(found.log_probs, without.log_probs, strict=True))
        if difference <= allowed:
            how = f"on cached keys and values log-probabilities differ by at most {difference:.1g}"
            return Check("generation", True, how)
    model.cache_name = None
    return Check("generation", True, "texts are read again for each token: cached keys and values give others")


def _check_attention(model: ServedTransformer) -> Check:
    readable = sorted(model.patterns)
    if not readable:
        return Check("attention", False, "no layer returns its attention probabilities")
    layer = readable[len(readable) // 2]
    place, heads = Place("attention_probabilities", layer), [*range(model.anatomy.layers[layer].num_heads)]
    (batch,) = Workload(_prompts(model), batch_tokens=1 << 20).batches(model)
    found = _attempt(lambda: forward(model, batch, captures=[Capture(place, take_heads, {"heads": heads})]).values[0])
    if isinstance(found, str):
        return Check("attention", False, f"NDIF gives no attention probabilities: {found}")
    real = batch.inputs["attention_mask"].bool()
    sink = float((1 - found.sum(-1)).clamp_min(0).transpose(1, 2)[real].max())
    return Check("attention", True, "rows sum to 1" if sink < 1e-3 else f"an attention sink takes up to {sink:.2g}")


def _attempt(run: Callable[[], Run]) -> Run | str:
    """The result of a request, or the served model's refusal."""
    try:
        return run()
    except _FAULTS as error:
        return error.message
