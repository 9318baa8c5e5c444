"""Patching runs that are edited alike, and windows of layers, against plain transformers with plain hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nnterp_mcp.engine.branch_pass import Input
from nnterp_mcp.engine.planning.plan import plan
from nnterp_mcp.errors import InvalidRequest, Unsupported
from nnterp_mcp.experiments.patching.activation_patching import Cell, Patcher, make_grid
from nnterp_mcp.experiments.patching.attribution_patching import estimate_effects
from nnterp_mcp.experiments.patching.corruption import Pair, ablate, add_noise, put_in_force
from nnterp_mcp.model.text.tokenization import encode_prompts
from nnterp_mcp.request.operations import parse_operation
from tests.engine.plain import Edit, Edits
from tests.engine.test_executors import Subject, build
from tests.experiments.patching.test_activation_patching import ANSWER, CLEAN, POSITIONS, WRONG, close, noisy, pair_of

FAMILIES = ["gpt2", "llama", "gemma2", "gpt_neox"]


@pytest.fixture(scope="module")
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield build(request.param, lambda: request.getfixturevalue("smollm2_folder"))
    torch.set_num_threads(before)


every_family = pytest.mark.parametrize("subject", FAMILIES, indirect=True)
one_family = pytest.mark.parametrize("subject", ["llama"], indirect=True)


def scale_neurons(states: Tensor) -> None:
    states[:, :8] *= -2


def zero_heads(states: Tensor) -> None:
    states[2:, [0, 3]] = 0


def cut(pattern: Tensor) -> None:
    pattern[4:, :, 1] = 0
    pattern /= pattern.sum(-1, keepdim=True)


def double_keys(states: Tensor) -> None:
    states[:3] *= 2


OPERATIONS: dict[str, tuple[dict[str, Any], Edits]] = {
    "residual stream": (
        {"op": "scale", "site": "layers_output", "layers": 1, "neurons": "0:8", "factor": -2},
        {("layers_output", 1): scale_neurons},
    ),
    "heads": ({"op": "zero", "layers": 2, "heads": [0, 3], "positions": "2:"}, {("heads_output", 2): zero_heads}),
    "attention": (
        {"op": "knockout", "layers": 2, "query_positions": "4:", "key_positions": 1},
        {("attention_probabilities", 2): cut},
    ),
    "keys": (
        {"op": "scale", "site": "keys", "layers": 1, "positions": "0:3", "factor": 2},
        {("keys", 1): double_keys},
    ),
    "embeddings": (
        {"op": "scale", "site": "token_embeddings", "neurons": "0:8", "factor": -2},
        {("token_embeddings", -1): scale_neurons},
    ),
}


def in_force(subject: Subject, pairs: Sequence[Pair], *operations: dict[str, Any]) -> list[Pair]:
    parsed = [parse_operation(operation) for operation in operations]
    return put_in_force(pairs, lambda prompts: plan(subject.model, parsed, prompts))


def both(first: Edit | None, then: Edit | None) -> Edit:
    """One edit after another at one place."""

    def edit(states: Tensor) -> None:
        for change in (first, then):
            if change is not None:
                change(states)

    return edit


def joined(*sets: Edits) -> Edits:
    made: Edits = {}
    for edits in sets:
        for key, edit in edits.items():
            made[key] = both(made.get(key), edit)
    return made


def expected(
    subject: Subject, into: Input, from_: Input, cells: Sequence[Cell], positions: Sequence[int], edits: Edits
) -> Tensor:
    """The logits of a run with edits, into which states of another such run are put, with plain hooks."""
    sources: dict[tuple[str, int], Tensor] = {}
    keys = {(cell.site, cell.layer) for cell in cells}

    def keep(key: tuple[str, int]) -> Edit:
        return lambda states: sources.update({key: states.clone()})

    def put(key: tuple[str, int]) -> Edit:
        def edit(states: Tensor) -> None:
            for at in [positions[cell.column] for cell in cells if (cell.site, cell.layer) == key]:
                states[at] = sources[key][at]

        return edit

    def run(given: Input, change: Callable[[tuple[str, int]], Edit]) -> Tensor:
        return subject.plain.logits(given.prompt.ids, joined(noisy(given), edits, {key: change(key) for key in keys}))

    run(from_, keep)
    return run(into, put)[-1]


@pytest.mark.parametrize("name", OPERATIONS)
@every_family
def test_a_grid_of_edited_runs_is_that_of_plain_hooks(subject: Subject, name: str) -> None:
    operation, edits = OPERATIONS[name]
    (pair,) = in_force(subject, [pair_of(subject)], operation)
    sites: list[Any] = ["layers_output", "layers_input", "heads_output", "keys", "mlps_output"]
    grid = make_grid(subject.model, [pair], sites, layers=[1, 2], positions=POSITIONS)
    patching = Patcher(subject.model, [pair], grid, targets=[[ANSWER, WRONG]]).patch()

    assert pair.corrupted is not None
    assert patching.corrupted is not None
    close(patching.clean[0], subject.plain.logits(pair.clean.prompt.ids, edits)[-1], subject)
    close(patching.corrupted[0], subject.plain.logits(pair.corrupted.prompt.ids, edits)[-1], subject)
    for cell, value in zip(grid.cells, patching.values[0], strict=True):
        close(value, expected(subject, pair.corrupted, pair.clean, [cell], POSITIONS, edits), subject)
    unedited = Patcher(subject.model, [pair_of(subject)], grid, targets=[[ANSWER, WRONG]]).patch()
    assert float((unedited.values - patching.values).abs().max()) > 1e-2


@every_family
def test_what_is_put_into_a_skipped_layer_is_passed_on(subject: Subject) -> None:
    (pair,) = in_force(subject, [pair_of(subject)], {"op": "skip", "layers": 1})
    grid = make_grid(subject.model, [pair], ["layers_input", "layers_output"], layers=[1], positions=POSITIONS)
    values = Patcher(subject.model, [pair], grid, targets=[[ANSWER, WRONG]]).patch().values[0]

    assert torch.allclose(values[:4], values[4:], atol=2e-5)
    assert pair.corrupted is not None
    passed = {given: subject.plain.read(given.prompt.ids, "layers_output", 0) for given in (pair.clean, pair.corrupted)}
    for cell, value in zip(grid.cells[4:], values[4:], strict=True):

        def put(states: Tensor, at: int = POSITIONS[cell.column]) -> None:
            assert pair.corrupted is not None
            states[:] = passed[pair.corrupted]
            states[at] = passed[pair.clean][at]

        close(value, subject.plain.logits(pair.corrupted.prompt.ids, {("layers_output", 1): put})[-1], subject)


@one_family
def test_noise_and_ablations_are_made_in_edited_runs_too(subject: Subject) -> None:
    operation, edits = OPERATIONS["heads"]
    prompts = encode_prompts(subject.model.tokenizer, [CLEAN], "it")
    (noise,) = in_force(subject, add_noise(subject.model, prompts, [3, 4], samples=1), operation)
    grid = make_grid(subject.model, [noise], ["layers_output"], layers=[1, 2], positions=POSITIONS)
    found = Patcher(subject.model, [noise], grid, targets=[[ANSWER, WRONG]]).patch()
    assert noise.corrupted is not None
    for cell, value in zip(grid.cells, found.values[0], strict=True):
        close(value, expected(subject, noise.corrupted, noise.clean, [cell], POSITIONS, edits), subject)

    (alone,) = in_force(subject, ablate(prompts), operation)
    grid = make_grid(subject.model, [alone], ["mlps_output"], layers=[2], positions=[5])
    found = Patcher(subject.model, [alone], grid, targets=[[ANSWER, WRONG]], ablation="zero").patch()

    def zero(states: Tensor) -> None:
        states[5] = 0

    logits = subject.plain.logits(alone.clean.prompt.ids, edits | {("mlps_output", 2): zero})
    close(found.values[0, 0], logits[-1], subject)


@every_family
def test_a_direct_path_in_edited_runs_holds_the_edited_heads(subject: Subject) -> None:
    operation, edits = OPERATIONS["heads"]
    (pair,) = in_force(subject, [pair_of(subject)], operation)
    grid = make_grid(subject.model, [pair], ["heads_output"], layers=[0, 1], heads=[1])
    found = Patcher(subject.model, [pair], grid, targets=[[ANSWER, WRONG]], receivers=[]).patch().values[0]
    assert pair.corrupted is not None
    heads: dict[tuple[Input, int], Tensor] = {}

    def setter(new: Tensor) -> Edit:
        def put(states: Tensor) -> None:
            states[:] = new

        return put

    for side in (pair.clean, pair.corrupted):
        keep: Edits = {
            ("heads_output", layer): lambda states, at=(side, layer): heads.update({at: states.clone()})
            for layer in range(4)
        }
        subject.plain.logits(side.prompt.ids, joined(edits, keep))
    for cell, value in zip(grid.cells, found, strict=True):
        held = {layer: heads[pair.corrupted, layer].clone() for layer in range(4)}
        held[cell.layer][:, 1] = heads[pair.clean, cell.layer][:, 1]
        puts: Edits = {("heads_output", layer): setter(states) for layer, states in held.items()}
        close(value, subject.plain.logits(pair.corrupted.prompt.ids, puts)[-1], subject)


@pytest.mark.parametrize("site", ["mlps_output", "attentions_output", "layers_output"])
@pytest.mark.parametrize("window", [2, 3, 9])
@every_family
def test_a_window_patches_adjacent_layers_together(subject: Subject, site: Any, window: int) -> None:
    pair = pair_of(subject)
    grid = make_grid(subject.model, [pair], [site], layers=[0, 2, 3], positions=POSITIONS, window=window)
    patching = Patcher(subject.model, [pair], grid, targets=[[ANSWER, WRONG]]).patch()
    about = {2: lambda layer: range(layer - 1, layer + 1), 3: lambda layer: range(layer - 1, layer + 2)}

    assert [cell.layer for cell in grid.cells] == [0] * 4 + [2] * 4 + [3] * 4
    assert pair.corrupted is not None
    for cell, value in zip(grid.cells, patching.values[0], strict=True):
        layers = [layer for layer in about.get(window, lambda _: range(4))(cell.layer) if 0 <= layer < 4]
        patched = [Cell(cell.site, layer, cell.column) for layer in layers]
        close(value, expected(subject, pair.corrupted, pair.clean, patched, POSITIONS, {}), subject)


@one_family
@settings(max_examples=20)
@given(data=st.data())
def test_any_windows_in_edited_runs_are_those_of_plain_hooks(subject: Subject, data: st.DataObject) -> None:
    operation, edits = OPERATIONS[data.draw(st.sampled_from(sorted(OPERATIONS)))]
    (pair,) = in_force(subject, [pair_of(subject)], operation)
    window = data.draw(st.integers(1, 5))
    grid = make_grid(subject.model, [pair], ["mlps_output", "keys"], positions=POSITIONS, window=window)
    run = data.draw(st.lists(st.sampled_from(grid.cells), min_size=1, max_size=3))
    value = Patcher(subject.model, [pair], grid, targets=[[ANSWER, WRONG]]).patch([run]).values[0, 0]

    first = [max(0, cell.layer - window // 2) for cell in run]
    last = [min(3, cell.layer - window // 2 + window - 1) for cell in run]
    patched = [
        Cell(cell.site, layer, cell.column)
        for cell, begin, end in zip(run, first, last, strict=True)
        for layer in range(begin, end + 1)
    ]
    assert pair.corrupted is not None
    close(value, expected(subject, pair.corrupted, pair.clean, patched, POSITIONS, edits), subject)


@one_family
def test_what_windows_and_edits_do_not_fit_is_refused(subject: Subject) -> None:
    pair = pair_of(subject)
    with pytest.raises(InvalidRequest, match="a window of 3 layers cannot be patched by head"):
        make_grid(subject.model, [pair], ["keys"], heads="all", window=3)
    with pytest.raises(InvalidRequest, match="France"):
        in_force(subject, [pair], {"op": "zero", "site": "mlps_output", "layers": 1, "positions": {"text": "France"}})
    windows = make_grid(subject.model, [pair], ["mlps_output"], window=3)
    with pytest.raises(Unsupported, match="pairs of unedited runs, one layer at a time"):
        estimate_effects(Patcher(subject.model, [pair], windows, targets=[[ANSWER, WRONG]]))
    edited = in_force(subject, [pair], OPERATIONS["heads"][0])
    alone = make_grid(subject.model, edited, ["mlps_output"])
    with pytest.raises(Unsupported, match="pairs of unedited runs"):
        estimate_effects(Patcher(subject.model, edited, alone, targets=[[ANSWER, WRONG]]))
