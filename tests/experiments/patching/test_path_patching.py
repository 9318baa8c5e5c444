"""Path patching against the algorithm of its papers, written out with plain hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from nnterp_mcp.engine.branches import Branches
from nnterp_mcp.engine.hook_points import Place
from nnterp_mcp.engine.readouts.metrics import reduce_to_metric
from nnterp_mcp.errors import Unsupported
from nnterp_mcp.experiments.patching.activation_patching import Patcher, make_grid
from nnterp_mcp.experiments.patching.corruption import pair_prompts
from nnterp_mcp.experiments.patching.path_patching import PathBranches, Receiver
from nnterp_mcp.model.text.tokenization import encode_prompts
from tests.engine.plain import Edits
from tests.engine.test_executors import Subject, build
from tests.experiments.patching.test_activation_patching import ANSWER, CLEAN, CORRUPTED, WRONG, close, pair_of

TO_HEADS = [Receiver(Place("queries", 2), [1]), Receiver(Place("values", 3), [0, 2])]
TO_MLP = [Receiver(Place("mlps_output", 2))]


@pytest.fixture(scope="module")
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield build(request.param, lambda: request.getfixturevalue("smollm2_folder"))
    torch.set_num_threads(before)


families = pytest.mark.parametrize("subject", ["gpt2", "llama", "gemma2", "gpt_neox"], indirect=True)


def keeper(found: dict[Any, Tensor], key: Any) -> Callable[[Tensor], None]:
    return lambda states: found.update({key: states.clone()})


def setter(new: Tensor, heads: Any = slice(None)) -> Callable[[Tensor], None]:
    def put(states: Tensor) -> None:
        states[:, heads] = new[:, heads]

    return put


def written_out(subject: Subject, layer: int, head: int, receivers: list[Receiver], through_mlps: bool) -> Tensor:
    """The logits of the corrupted run with one head's clean output acting along direct paths alone."""
    plain, pair = subject.plain, pair_of(subject)
    assert pair.corrupted is not None
    clean, own = pair.clean.prompt.ids, pair.corrupted.prompt.ids
    sites = ["heads_output"] if through_mlps else ["heads_output", "mlps_output"]
    base: dict[Any, Tensor] = {}
    plain.logits(own, {(site, at): keeper(base, (site, at)) for site in sites for at in range(len(plain.layers))})
    sent = base["heads_output", layer].clone()
    sent[:, head] = plain.read(clean, "heads_output", layer)[:, head]

    received: dict[Any, Tensor] = {}
    edits: Edits = {key: setter(states) for key, states in base.items()} | {("heads_output", layer): setter(sent)}
    for place in {receiver.place for receiver in receivers}:
        key, held = (place.site, place.layer), edits.get((place.site, place.layer or 0))

        def edit(states: Tensor, key: Any = key, held: Any = held) -> None:
            received[key] = states.clone()
            if held:
                held(states)

        edits[place.site, place.layer or 0] = edit
    logits = plain.logits(own, edits)[-1]
    if not receivers:
        return logits
    puts: Edits = {}
    for receiver in receivers:
        key = (receiver.place.site, receiver.place.layer or 0)
        puts[key] = setter(received[key], slice(None) if receiver.heads is None else list(receiver.heads))
    return plain.logits(own, puts)[-1]


@pytest.mark.parametrize("through_mlps", [True, False], ids=["through MLPs", "past MLPs"])
@pytest.mark.parametrize("receivers", [[], TO_HEADS, TO_MLP], ids=["logits", "heads", "mlp"])
@families
def test_every_head_acts_along_direct_paths_alone(
    subject: Subject, receivers: list[Receiver], through_mlps: bool
) -> None:
    pair = pair_of(subject)
    grid = make_grid(subject.model, [pair], ["heads_output"], heads="all")
    paths = Patcher(
        subject.model, [pair], grid, targets=[[ANSWER, WRONG]], receivers=receivers, through_mlps=through_mlps
    ).patch()
    everything = Patcher(subject.model, [pair], grid, targets=[[ANSWER, WRONG]]).patch()

    for cell, value in zip(grid.cells, paths.values[0], strict=True):
        close(value, written_out(subject, cell.layer, cell.column, receivers, through_mlps), subject)
    assert paths.corrupted is not None
    moved = (paths.values - paths.corrupted).abs()[0]
    last = max((receiver.place.layer or 0 for receiver in receivers), default=4)
    assert float(moved[[cell.layer < min(last, 2) for cell in grid.cells]].max()) > 1e-4
    assert not moved[[cell.layer > last for cell in grid.cells]].any()
    assert float((paths.values - everything.values).abs().max()) > 1e-3


@pytest.mark.parametrize("subject", ["llama"], indirect=True)
def test_senders_act_together(subject: Subject) -> None:
    pair = pair_of(subject)
    grid = make_grid(subject.model, [pair], ["heads_output"], layers=[3], heads="all")
    paths = Patcher(subject.model, [pair], grid, targets=[[ANSWER, WRONG]], receivers=[]).patch([grid.cells])
    whole = make_grid(subject.model, [pair], ["attentions_output"], layers=[3], positions={"all": (("all",), ("all",))})
    expected = Patcher(subject.model, [pair], whole, targets=[[ANSWER, WRONG]]).patch()

    assert float(paths.values[0, 0]) == pytest.approx(float(expected.values[0, 0]), abs=2e-5)


def test_a_model_that_mixes_positions_by_other_means_is_refused() -> None:
    from nnterp_mcp.model.standardized import StandardizedTransformer
    from nnterp_mcp.verification.tiny import tiny_model, tiny_tokenizer

    model = StandardizedTransformer(tiny_model("falcon_h1"), tokenizer=tiny_tokenizer(), name="hybrid")
    prompts = [encode_prompts(model.tokenizer, [text], "it") for text in (CLEAN, CORRUPTED)]
    measure = reduce_to_metric("kl", [])
    branch = partial(Branches, model, pair_prompts(*prompts)[0].clean, reduction=lambda order: measure)
    with pytest.raises(Unsupported, match=r"moves information between positions by model\.layers\.0\.mamba"):
        PathBranches(model, branch, [], [], True)
