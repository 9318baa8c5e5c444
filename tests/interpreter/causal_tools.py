"""What the tools that patch and attribute should answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tests.interpreter.comparison import Comparison, divergence, first_tokens
from tests.interpreter.plain import Edit, Ran, States
from tests.interpreter.reading_tools import Arguments, put, texts, words
from tests.interpreter.subject import Subject, normal
from tests.interpreter.text import as_list, numbers


def patch_activations(subject: Subject, arguments: Arguments, result: Any, told: Comparison) -> None:
    """The metric of every cell: states of one run, its interventions made, put into the other."""
    sides = {side: texts(subject, arguments, side) for side in ("clean", "corrupted")}
    layers, sites = numbers(arguments["layers"], subject.plain.layers), as_list(arguments["sites"])
    operations, patched, source = arguments["interventions"], "corrupted", "clean"
    if arguments["direction"] == "noising":
        patched, source = source, patched
    found = subject.lab.arrays["metric"]
    for pair in range(len(sides["clean"])):
        runs = {side: subject.run(operations, listed, pair) for side, listed in sides.items()}
        clean = normal(runs["clean"].logits[-1])
        if len(sides["clean"]) == 1:
            told.near("clean", result.clean.mean, _metric(told, arguments, clean, clean))
            corrupted = normal(runs["corrupted"].logits[-1])
            told.near("corrupted", result.corrupted.mean, _metric(told, arguments, corrupted, clean))
        for site_at, site in enumerate(sites):
            for layer_at, layer in enumerate(layers):
                states = runs[source].states[site, layer]
                for column, edit in enumerate(_edits(subject, arguments, states, sides[patched][pair].ids)):
                    ran = subject.run(operations, sides[patched], pair, then={(site, layer): edit})
                    expected = _metric(told, arguments, normal(ran.logits[-1]), clean)
                    what = f"pair {pair}, {site} of layer {layer}, column {column}"
                    told.near(what, found[pair, site_at, layer_at, column], expected)


def find_circuit(subject: Subject, arguments: Arguments, result: Any, told: Comparison) -> None:
    """The metric of both runs, between which edges are patched."""
    runs = {
        side: normal(subject.run(arguments["interventions"], texts(subject, arguments, side), 0).logits[-1])
        for side in ("clean", "corrupted")
    }
    for side, found in (("clean", result.clean), ("corrupted", result.corrupted)):
        told.near(side, found.mean, _metric(told, arguments, runs[side], runs["clean"]))


def verify_claim(subject: Subject, arguments: Arguments, result: Any, told: Comparison) -> None:
    """The metric of both runs of each prompt, between which the claim's states are exchanged."""
    clean, corrupted = (texts(subject, arguments, side) for side in ("clean", "corrupted"))
    for prompt in result.prompts:
        one, other = (
            normal(subject.run(arguments["interventions"], side, prompt.prompt).logits[-1])
            for side in (clean, corrupted)
        )
        told.near("clean", prompt.clean, _metric(told, arguments, one, one))
        told.near("corrupted", prompt.corrupted, _metric(told, arguments, other, one))


def _edits(subject: Subject, arguments: Arguments, states: Tensor, ids: Sequence[int]) -> list[Edit]:
    """What each column of the grid puts in."""
    if arguments.get("heads") is not None:
        return [_put_head(head, states) for head in numbers(arguments["heads"], subject.plain.heads)]
    positions = sorted({at for one in as_list(arguments["positions"]) for at in numbers(one, len(ids))})
    return [put([at], states[[at]]) for at in positions]


def _put_head(head: int, states: Tensor) -> Edit:
    def edit(came: Tensor, seen: States) -> Tensor:
        changed = came.clone()
        changed[:, head] = states[:, head]
        return changed

    return edit


def _metric(told: Comparison, arguments: Arguments, log_probs: Tensor, clean: Tensor) -> Tensor:
    """The default for so many targets: the answer's log-probability, less the wrong one's; or the divergence."""
    found = [log_probs[first_tokens(told.tokenizer, strings)].logsumexp(-1) for strings in words(arguments)]
    return divergence(clean, log_probs) if not found else found[0] - (found[1] if len(found) > 1 else 0)


def attribute(subject: Subject, arguments: Arguments, result: Any, told: Comparison) -> None:
    """Gradient × input by token, or what layers and sublayers write straight to the logits."""
    prompts = texts(subject, arguments)
    for which in range(len(prompts)):
        if arguments["method"] == "gradient":
            with torch.enable_grad():
                ran = _with_gradients(subject, arguments, which)
                log_probs = ran.logits[-1].double().log_softmax(-1)
                embedded = ran.states["token_embeddings", -1]
                (slope,) = torch.autograd.grad(_metric(told, arguments, log_probs, log_probs), embedded)
            expected = (slope * embedded).sum(-1)
            told.near("tokens", [part.value.mean for part in result.parts if part.prompt == which], expected)
    if arguments["method"] == "direct":
        runs = [subject.run(arguments["interventions"], prompts, which) for which in range(len(prompts))]
        for part in result.parts:
            if part.kind in _WRITTEN:
                added = [_written(subject, arguments, ran, _WRITTEN[part.kind](ran, part.layer), told) for ran in runs]
                mean = torch.stack(added).mean()
                if not mean.isnan():
                    told.near(f"{part.kind} of layer {part.layer}", part.value.mean, mean)


def _layer(ran: Ran, layer: int) -> Tensor:
    """From layer to layer, so that what is done to a layer's input counts with it."""
    before = ran.states["layers_output", layer - 1] if layer else ran.states["layers_input", 0]
    return ran.states["layers_output", layer] - before


_WRITTEN: dict[str, Callable[[Ran, int], Tensor]] = {
    "layer": _layer,
    "attention": lambda ran, layer: ran.states["attentions_output", layer],
    "mlp": lambda ran, layer: ran.states["mlps_output", layer],
}
"""What each kind of part writes to the residual stream, at every position."""


def _with_gradients(subject: Subject, arguments: Arguments, which: int) -> Ran:
    prompts = texts(subject, arguments)
    ids = prompts[which].ids
    return subject.plain.run(ids, subject.by.edits(arguments["interventions"], prompts, which, len(ids)))


def _written(subject: Subject, arguments: Arguments, ran: Ran, part: Tensor, told: Comparison) -> Tensor:
    """What a part adds to the answer's logit, less that to the wrong one's, all scales held."""
    model = subject.plain.model
    last = ran.states["layers_output", subject.plain.layers - 1][-1].double()
    norm = model.get_submodule(subject.plain.family.norm)
    if not last.any():  # at zero neither a scale nor what comes after the head can be told
        return torch.tensor(torch.nan)
    with torch.no_grad():
        head = model.get_output_embeddings()
        normed = norm(last.float()[None, None])[0, 0].double()
        raw = head(normed.float()).double()
        bias = getattr(norm, "bias", None)
        centred = last - last.mean() if _centres(norm) else last
        gain = (normed - (0 if bias is None else bias.double())) / centred
        part = part[-1].double() - (part[-1].double().mean() if _centres(norm) else 0)
        logits = ran.logits[-1].double()
        added = (head.weight.double() @ (gain * part)) * (logits / raw)
    found: list[Tensor] = []
    for strings in words(arguments):
        ids = first_tokens(told.tokenizer, strings)
        found.append((logits[ids].softmax(-1) * added[ids]).sum())
    return found[0] - (found[1] if len(found) > 1 else 0)


def _centres(norm: nn.Module) -> bool:
    """Whether a norm takes the mean away."""
    return "RMS" not in type(norm).__name__
