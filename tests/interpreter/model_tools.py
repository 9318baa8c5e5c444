"""The answers that `compare_models` should give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tests.interpreter.comparison import Comparison, divergence
from tests.interpreter.plain import Edit, Place, Ran, States
from tests.interpreter.reading_tools import Arguments, put, text, texts
from tests.interpreter.subject import Subject, normal
from tests.interpreter.text import Text


def compare_models(subject: Subject, arguments: Arguments, result: Any, told: Comparison) -> None:
    """Predictions, changes of activations, exchanges and texts of two models, the interventions made in both."""
    prompts, operations = texts(subject, arguments), arguments["interventions"]
    runs = [[side.run(operations, prompts, which) for which in range(len(prompts))] for side in _sides(subject)]
    for one in result.positions:
        base, model = (normal(ran[one.prompt].logits[one.position]) for ran in runs)
        told.near("kl", one.kl, divergence(model, base))
        told.top("base", [(one.base_top, one.base_p)], base)
        told.top("model", [(one.top, one.p)], model)
    if result.places:
        _activations(subject, arguments, result, told, runs)
    for cell in result.cells:
        for field, source, target in (("into_base", 1, 0), ("into_model", 0, 1)):
            expected, weight = _recovery(
                subject, arguments, (cell.site, cell.layer), runs, source, target, result.patched
            )
            told.near(f"{field} {cell.site} of layer {cell.layer}", getattr(cell, field) * weight, expected * weight)
    for one in result.steering:
        place: Place = ("layers_output", result.steered_layer)
        vector = subject.lab.arrays["mean_difference"][result.steered_layer] * one.strength
        ends: list[Tensor] = []
        for which in range(min(3, len(prompts))):
            ran = subject.second.run(operations, prompts, which, then={place: _push(vector)})
            ends.append(divergence(normal(runs[1][which].logits[-1]), normal(ran.logits[-1])))
        told.near(f"steered by {one.strength}", one.kl, torch.stack(ends).mean())
    for one in result.texts:
        for field, side in zip(("base", "model"), _sides(subject), strict=True):
            ids, _, gap, _ = side.say(operations, prompts, one.prompt, 20)
            text(side, told, f"{field} {one.prompt}", getattr(one, field), ids, gap)


def _sides(subject: Subject) -> tuple[Subject, Subject]:
    return subject.second, subject


def _push(vector: Tensor) -> Edit:
    def edit(came: Tensor, seen: States) -> Tensor:
        return came + vector

    return edit


def _activations(
    subject: Subject, arguments: Arguments, result: Any, told: Comparison, runs: Sequence[Sequence[Ran]]
) -> None:
    """The mean change over all tokens but the first, and what each layer of the base makes of the model's input."""
    prompts, layers = texts(subject, arguments), range(subject.plain.layers)
    remade: list[Ran] = []
    for which, prompt in enumerate(prompts):
        inputs = {("layers_input", layer): runs[1][which].states["layers_input", layer] for layer in layers}
        then = {place: put([*range(len(prompt.ids))], states) for place, states in inputs.items()}
        remade.append(subject.second.run(arguments["interventions"], prompts, which, then=then))
    for one in result.places:
        place = (one.site, one.layer)
        base, model, own = (_rows(prompts, listed, place) for listed in (*runs, remade))
        norms = base.norm(dim=-1).clamp_min(1e-30)
        if bool((norms < 1e-4).any()):  # a state that was taken away has no relative change
            continue
        told.near(f"change {place}", one.change, ((model - base).norm(dim=-1) / norms).mean())
        told.near(f"cosine {place}", one.cosine, torch.cosine_similarity(base, model, dim=-1).mean())
        if one.made is not None:
            told.near(f"made {place}", one.made, ((model - own).norm(dim=-1) / norms).mean())
            told.near(f"came {place}", one.came, ((own - base).norm(dim=-1) / norms).mean())


def _rows(prompts: Sequence[Text], runs: Sequence[Ran], place: Place) -> Tensor:
    first = [min(1, len(prompt.ids) - 1) for prompt in prompts]
    return torch.cat([ran.states[place][start:] for start, ran in zip(first, runs, strict=True)]).double()


def _recovery(
    subject: Subject,
    arguments: Arguments,
    place: Place,
    runs: Sequence[Sequence[Ran]],
    source: int,
    target: int,
    patched: Sequence[int],
) -> tuple[Tensor, float]:
    """The mean recovery, and the least divergence that was to be recovered, by which its errors are to be weighed."""
    prompts, side = texts(subject, arguments), _sides(subject)[target]
    found: list[Tensor] = []
    apart: list[float] = []
    for which in patched:
        wanted = normal(runs[source][which].logits[-1])
        states = runs[source][which].states[place]
        then = {place: put([*range(len(prompts[which].ids))], states)}
        ran = side.run(arguments["interventions"], prompts, which, then=then)
        apart.append(float(divergence(wanted, normal(runs[target][which].logits[-1]))))
        found.append(1 - divergence(wanted, normal(ran.logits[-1])) / apart[-1])
    return torch.stack(found).mean(), min(1.0, *apart)
