"""`patch_activations` of sets of heads and whole sublayers, as `find_circuit` names them, against plain hooks."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.laboratory import Laboratory
from nnterp_mcp.toolset.patch_activations.result import PatchActivationsResult

CLEAN, CORRUPTED = "The capital of France is", "The capital of Spain is"
ANSWER, WRONG = 40, 77
LAYERS, HEADS = (1, 2, 3), 4
CALL = {
    "clean": [CLEAN, CORRUPTED],
    "corrupted": [CORRUPTED, CLEAN],
    "targets": {"answer": {"id": ANSWER}, "wrong": {"id": WRONG}},
    "layers": list(LAYERS),
}


class Part(NamedTuple):
    """A head, or the MLP of a layer."""

    layer: int
    head: int | None


EVERY = frozenset(Part(layer, head) for layer in LAYERS for head in (*range(HEADS), None))
NAMED = {"mlps_output L2": Part(2, None), "L3H1": Part(3, 1), "L2H3": Part(2, 3), "L1H0": Part(1, 0)}


class Plain:
    """The model's own modules, with hooks at output projections and MLPs."""

    def __init__(self, lab: Laboratory) -> None:
        model: Any = lab.bench.model.module
        self.model = model.eval()
        llama = hasattr(model, "model")
        layers = model.model.layers if llama else model.transformer.h
        self.projections = {at: layers[at].self_attn.o_proj if llama else layers[at].attn.c_proj for at in LAYERS}
        self.mlps = {at: layers[at].mlp for at in LAYERS}
        tokenizer = lab.bench.model.tokenizer
        self.ids = [torch.tensor([tokenizer(text)["input_ids"]]) for text in (CLEAN, CORRUPTED)]

    @torch.no_grad()
    def run(self, given: Tensor, new: dict[Part, Tensor]) -> tuple[float, dict[Part, Tensor]]:
        """The metric of a run in which some parts have other states, and the states that it had of its own."""
        seen: dict[Part, Tensor] = {}
        width = self.projections[1].weight.shape[0] // HEADS

        def at_heads(layer: int) -> Any:
            def edit(module: Any, args: Any) -> Any:
                states = args[0].clone()
                for head in range(HEADS):
                    columns = slice(head * width, (head + 1) * width)
                    seen[Part(layer, head)] = states[..., columns].clone()
                    if Part(layer, head) in new:
                        states[..., columns] = new[Part(layer, head)]
                return (states,)

            return self.projections[layer].register_forward_pre_hook(edit)

        def at_mlp(layer: int) -> Any:
            def edit(module: Any, args: Any, output: Tensor) -> Tensor:
                seen[Part(layer, None)] = output.clone()
                return new.get(Part(layer, None), output)

            return self.mlps[layer].register_forward_hook(edit)

        hooks = [place(layer) for layer in LAYERS for place in (at_heads, at_mlp)]
        logits = self.model(given).logits[0, -1]
        for hook in hooks:
            hook.remove()
        return float(logits[ANSWER] - logits[WRONG]), seen

    def mean(self, kind: str, intact: Collection[Part]) -> float:
        """The mean metric of both prompts with some parts as in the clean run and all others replaced."""
        states = [self.run(given, {})[1] for given in self.ids]
        values: list[float] = []
        for at in (0, 1):
            clean, other = states[at], states[1 - at]
            zeros = {part: torch.zeros_like(value) for part, value in clean.items()}
            if kind == "denoising":
                values.append(self.run(self.ids[1 - at], {part: clean[part] for part in intact})[0])
            else:
                new = zeros if kind == "zero" else other
                values.append(self.run(self.ids[at], {part: new[part] for part in EVERY - set(intact)})[0])
        return sum(values) / 2


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("kind", ["denoising", "noising", "zero"])
def test_heads_and_mlps_are_patched_and_measured_together(kind: str, family: str, tiny: Callable[..., Path]) -> None:
    lab = Laboratory(tiny(family))
    how = {"corrupted": {"ablate": "zero"}} if kind == "zero" else {"direction": kind}
    result = lab.call("patch_activations", **CALL | how, cells=list(NAMED), complement=True)
    assert isinstance(result, PatchActivationsResult)
    plain, named = Plain(lab), frozenset(NAMED.values())

    found = result.patched_set
    assert found is not None
    assert found.circuit is not None
    assert found.cells == list(NAMED)
    assert found.circuit.total == len(EVERY)
    intact, none = plain.mean(kind, EVERY), plain.mean(kind, ())
    assert [found.circuit.intact.mean, found.circuit.none.mean] == pytest.approx([intact, none], abs=1e-4)

    def share(parts: Collection[Part]) -> float:
        return (plain.mean(kind, parts) - none) / (intact - none)

    replaced = named if kind == "denoising" else EVERY - named
    assert found.metric.mean == pytest.approx(plain.mean(kind, replaced), abs=1e-4)
    assert found.circuit.faithfulness.mean == pytest.approx(share(named), abs=3e-3)
    assert found.circuit.completeness.mean == pytest.approx(share(EVERY - named), abs=3e-3)
    losses = [share(named) - share(named - {part}) for part in NAMED.values()]
    assert [member.loss.mean for member in result.members] == pytest.approx(losses, abs=4e-3)
    # A layer has one MLP: random sets have another one, of the nearest layers.
    assert len(found.controls) == len(set(found.circuit.random_faithfulness)) == 20
    assert not found.matched


def test_a_cell_with_heads_or_positions_that_its_site_or_the_call_lacks_is_refused(tiny: Callable[..., Path]) -> None:
    lab = Laboratory(tiny("llama"))
    with pytest.raises(InvalidRequest, match="there are no heads at mlps_output"):
        lab.call("patch_activations", **CALL, cells=["L1H0", {"site": "mlps_output", "layers": 1, "heads": 2}])
    with pytest.raises(InvalidRequest, match="all cells are patched at those of the call"):
        lab.call("patch_activations", **CALL, cells=["L1H0", "mlps_output L1@3"])
