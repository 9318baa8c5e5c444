"""Activation patching against plain transformers with plain hooks, cell by cell."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nnterp_mcp.engine import prefix_sharing
from nnterp_mcp.engine.branch_pass import Input
from nnterp_mcp.engine.branches import Branches
from nnterp_mcp.engine.prefix_sharing import Sharing
from nnterp_mcp.engine.readouts.metrics import make_metric
from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.errors import InvalidRequest, OutOfMemory, Unsupported
from nnterp_mcp.experiments.patching.activation_patching import Cell, Patcher, make_grid
from nnterp_mcp.experiments.patching.corruption import Pair, ablate, add_noise, pair_prompts
from nnterp_mcp.model.loading import trials
from nnterp_mcp.model.text.tokenization import encode_prompts
from tests.engine.plain import FAMILIES, Edits
from tests.engine.test_executors import MISSING, ROUNDING, TOLERANCE, Subject, build

CLEAN, CORRUPTED = "The capital of France is Paris, and that of", "The capital of Spain is Paris, and that of"
SITES = (
    "layers_input",
    "layers_output",
    "attentions_output",
    "mlps_output",
    "heads_output",
    "queries",
    "keys",
    "values",
)
BY_HEAD = ("heads_output", "queries", "keys", "values")
BY_UNIT = (*BY_HEAD, "neurons")
ANSWER, WRONG = [7, 9], [11]
POSITIONS = [2, 4, 7, 10]
"""Before the first token that differs, that token, one between, and the last."""


@pytest.fixture(scope="module")
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield build(request.param, lambda: request.getfixturevalue("smollm2_folder"))
    torch.set_num_threads(before)


TINY = [family for family in FAMILIES if family != "smollm2-135m"]
every_family = pytest.mark.parametrize("subject", TINY, indirect=True)
one_family = pytest.mark.parametrize("subject", ["llama"], indirect=True)
real = pytest.mark.parametrize("subject", ["smollm2-135m"], indirect=True)


def pair_of(subject: Subject, clean: str = CLEAN, corrupted: str = CORRUPTED) -> Pair:
    (pair,) = pair_prompts(*(encode_prompts(subject.model.tokenizer, [text], "it") for text in (clean, corrupted)))
    assert pair.corrupted is not None
    assert len(pair.clean) == len(pair.corrupted)
    return pair


def noisy(given: Input) -> Edits:
    """The noise of an input as a plain edit."""
    noise = given.noise
    if noise is None:
        return {}

    def add(states: Tensor) -> None:
        states += noise

    return {("token_embeddings", -1): add}


def expected(
    subject: Subject, into: Input, from_: Input, cells: Sequence[Cell], positions: Sequence[int], by_head: bool = False
) -> Tensor:
    """The logits after one run with the cells' states of another, computed with plain hooks."""
    sources: dict[tuple[str, int], Tensor] = {}

    def keep(key: tuple[str, int]) -> Callable[[Tensor], None]:
        return lambda states: sources.update({key: states.clone()})

    keys = {(cell.site, cell.layer) for cell in cells}
    subject.plain.logits(from_.prompt.ids, noisy(from_) | {key: keep(key) for key in keys})

    def put(key: tuple[str, int]) -> Callable[[Tensor], None]:
        def edit(states: Tensor) -> None:
            for cell in cells:
                if (cell.site, cell.layer) == key:
                    heads: Any = [cell.column] if by_head else slice(None)
                    where: Any = list(positions) if by_head else [positions[cell.column]]
                    for at in where:
                        states[at, heads] = sources[key][at, heads]

        return edit

    return subject.plain.logits(into.prompt.ids, noisy(into) | {key: put(key) for key in keys})[-1]


def close(found: Tensor, logits: Tensor, subject: Subject) -> None:
    metric = make_metric("logit_difference", [ANSWER, WRONG])
    size = max(1.0, float(logits.abs().max()))
    difference = (found - metric(logits[None])[0]).abs()
    assert float(difference) <= ROUNDING.get(subject.family, TOLERANCE) * size


@pytest.mark.parametrize("site", SITES)
@every_family
def test_a_grid_of_layers_and_positions_is_that_of_plain_hooks(subject: Subject, site: Any) -> None:
    if (subject.family, site) in MISSING:
        pytest.skip("the family has no such site")
    pair = pair_of(subject)
    grid = make_grid(subject.model, [pair], [site], layers=[1, -1], positions=POSITIONS)
    patching = Patcher(subject.model, [pair], grid, targets=[[ANSWER, WRONG]]).patch()

    assert [cell.column for cell in grid.cells] == [0, 1, 2, 3] * 2
    assert pair.corrupted is not None
    assert patching.corrupted is not None
    changed = 0
    for cell, value in zip(grid.cells, patching.values[0], strict=True):
        close(value, expected(subject, pair.corrupted, pair.clean, [cell], POSITIONS), subject)
        changed += bool((value - patching.corrupted[0]).abs() > 1e-4)
    assert changed >= 2


@pytest.mark.parametrize("site", BY_UNIT)
@every_family
def test_a_grid_of_layers_and_heads_or_neurons_is_that_of_plain_hooks(subject: Subject, site: Any) -> None:
    if (subject.family, site) in MISSING:
        pytest.skip("the family has no such site")
    pair = pair_of(subject)
    grid = make_grid(subject.model, [pair], [site], layers=[0, 2], positions=["2:"], heads="0:4")
    patching = Patcher(subject.model, [pair], grid, "noising", targets=[[ANSWER, WRONG]]).patch()

    assert pair.corrupted is not None
    for cell, value in zip(grid.cells, patching.values[0], strict=True):
        where = range(2, len(pair.clean))
        close(value, expected(subject, pair.clean, pair.corrupted, [cell], where, by_head=True), subject)


@one_family
def test_cells_patched_together_are_one_run(subject: Subject) -> None:
    pair = pair_of(subject)
    grid = make_grid(subject.model, [pair], ["mlps_output", "attentions_output"], layers=[1, 3], positions=[5, -1])
    chosen = [grid.cells[0], grid.cells[3], grid.cells[6]]
    patching = Patcher(subject.model, [pair], grid, targets=[[ANSWER, WRONG]]).patch([chosen])
    positions = [span.clean[0] for span in grid.spans[0]]

    assert pair.corrupted is not None
    close(patching.values[0, 0], expected(subject, pair.corrupted, pair.clean, chosen, positions), subject)


@every_family
def test_patching_every_position_gives_the_other_run_and_patching_oneself_nothing(subject: Subject) -> None:
    pair = pair_of(subject)
    everywhere = {"all": (("all",), ("all",))}
    for direction in ("denoising", "noising"):
        grid = make_grid(subject.model, [pair], ["layers_output", "layers_input"], positions=everywhere)
        patching = Patcher(subject.model, [pair], grid, direction, targets=[[ANSWER, WRONG]]).patch()
        assert patching.corrupted is not None
        other = patching.clean if direction == "denoising" else patching.corrupted
        assert patching.values[0].tolist() == pytest.approx([float(other)] * len(grid.cells), abs=2e-5)
        assert float((patching.clean - patching.corrupted).abs()) > 1e-2

    itself = pair_of(subject, CLEAN, CLEAN)
    patching = Patcher(subject.model, [itself], grid, targets=[[ANSWER, WRONG]]).patch()
    assert torch.equal(patching.values[0], patching.clean.expand(len(grid.cells)))


@pytest.mark.parametrize("sharing", [Sharing(False, False), Sharing(False, True), Sharing(True, False)])
@one_family
def test_every_way_of_sharing_gives_the_same(
    subject: Subject, sharing: Sharing, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = pair_of(subject)
    grid = make_grid(subject.model, [pair], ["layers_output", "keys"])
    patcher = Patcher(subject.model, [pair], grid, targets=[[ANSWER, WRONG]])
    trials.forget(subject.model.module)
    work = Workload((), batch_tokens=200)
    found = patcher.patch(work=work).values
    assert set(prefix_sharing.known_sharing(subject.model.module)) == {Sharing(True, True)}
    monkeypatch.setattr(Branches, "sharing", sharing)

    assert float((patcher.patch(work=work).values - found).abs().max()) <= 2e-5


@one_family
def test_a_batch_that_does_not_fit_the_memory_is_halved(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = pair_of(subject)
    grid = make_grid(subject.model, [pair], ["layers_output"])
    patcher = Patcher(subject.model, [pair], grid, targets=[[ANSWER, WRONG]])
    whole = patcher.patch().values
    run, most = Branches._compute, 5  # pyright: ignore[reportPrivateUsage]

    def limited(self: Any, batch: Any, *args: Any) -> Any:
        if len(batch) > most:
            raise torch.OutOfMemoryError
        return run(self, batch, *args)

    monkeypatch.setattr(Branches, "_compute", limited)
    assert float((patcher.patch().values - whole).abs().max()) <= 2e-5
    most = 0
    with pytest.raises(OutOfMemory, match="a prompt of 11 tokens with one patched row does not fit the memory of cpu"):
        patcher.patch()


def test_a_model_that_allows_no_sharing_gets_none() -> None:
    from nnterp_mcp.model.standardized import StandardizedTransformer
    from nnterp_mcp.verification.tiny import tiny_model, tiny_tokenizer

    model = StandardizedTransformer(tiny_model("falcon_h1"), tokenizer=tiny_tokenizer(), name="hybrid")
    (pair,) = pair_prompts(*(encode_prompts(model.tokenizer, [text], "it") for text in (CLEAN, CORRUPTED)))
    grid = make_grid(model, [pair], ["layers_output"], positions=[5, -1])
    patching = Patcher(model, [pair], grid, metric="kl").patch()

    assert {sharing.prefix for sharing in prefix_sharing.known_sharing(model.module)} == {False}
    assert float(patching.values[0, -1]) == pytest.approx(0, abs=1e-5)
    assert patching.corrupted is not None
    assert float(patching.corrupted[0]) > 1e-3


@every_family
def test_noise_on_embeddings_is_restored_as_by_plain_hooks(subject: Subject) -> None:
    prompts = encode_prompts(subject.model.tokenizer, [CLEAN], "it")
    pairs = add_noise(subject.model, prompts, [3, 4], scale=2.0, samples=2)
    grid = make_grid(subject.model, pairs, ["layers_output"], layers=[0, 1], positions=[3, 5, -1])
    patching = Patcher(subject.model, pairs, grid, targets=[[ANSWER, WRONG]]).patch()
    positions = [span.clean[0] for span in grid.spans[0]]

    assert patching.corrupted is not None
    for at, pair in enumerate(pairs):
        assert pair.corrupted is not None
        assert pair.corrupted.noise is not None
        assert pair.corrupted.noise.any(-1).nonzero()[:, 0].tolist() == [3, 4]
        close(patching.corrupted[at], expected(subject, pair.corrupted, pair.clean, [], []), subject)
        for cell, value in zip(grid.cells, patching.values[at], strict=True):
            close(value, expected(subject, pair.corrupted, pair.clean, [cell], positions), subject)
    assert abs(float(patching.corrupted[0] - patching.corrupted[1])) > 1e-3


def test_noise_is_as_large_as_it_is_said_to_be() -> None:
    subject = build("llama", Path)
    prompts = encode_prompts(subject.model.tokenizer, [CLEAN, CLEAN * 4], "it")
    states = [subject.plain.read(prompt.ids, "token_embeddings", -1) for prompt in prompts]
    pairs = add_noise(subject.model, prompts, ["all"], scale=3.0, samples=20)
    for index, own in enumerate(states):
        inputs = [pair.corrupted for pair in pairs if pair.index == index]
        drawn = torch.cat([given.noise for given in inputs if given and given.noise is not None])
        assert float(drawn.std() / own.std()) == pytest.approx(3.0, rel=0.02)


@pytest.mark.parametrize("ablation", ["zero", "mean"])
@every_family
def test_ablations_put_zeros_or_the_mean_over_prompts(subject: Subject, ablation: Any) -> None:
    prompts = encode_prompts(subject.model.tokenizer, [CLEAN, CORRUPTED], "it")
    states = [subject.plain.read(prompt.ids, "heads_output", 1) for prompt in prompts]
    put = torch.zeros_like(states[0]) if ablation == "zero" else torch.stack(states).mean(0)
    pairs = ablate(prompts)
    grid = make_grid(subject.model, pairs, ["heads_output"], layers=[1], heads=[0, 3])
    patching = Patcher(subject.model, pairs, grid, targets=[[ANSWER, WRONG]] * 2, ablation=ablation).patch()

    assert patching.corrupted is None
    for prompt in prompts:
        for cell, value in zip(grid.cells, patching.values[prompt.index], strict=True):

            def edit(heads: Tensor, head: int = cell.column) -> None:
                heads[:, head] = put[:, head]

            close(value, subject.plain.logits(prompt.ids, {("heads_output", 1): edit})[-1], subject)


@one_family
def test_metrics_are_those_of_their_definitions(subject: Subject) -> None:
    pair = pair_of(subject)
    assert pair.corrupted is not None
    grid = make_grid(subject.model, [pair], ["layers_output"], layers=[1], positions=[5])
    clean, bad = (subject.plain.logits(given.prompt.ids, {})[-1].double() for given in (pair.clean, pair.corrupted))
    cell = expected(subject, pair.corrupted, pair.clean, grid.cells, [5]).double()
    log_probs = [logits.log_softmax(-1) for logits in (clean, bad, cell)]

    def measured(name: Any) -> list[float]:
        found = Patcher(subject.model, [pair], grid, metric=name, targets=[[ANSWER, WRONG]]).patch()
        assert found.corrupted is not None
        return [float(found.clean), float(found.corrupted), float(found.values)]

    answer = [float(row[ANSWER].exp().sum().log()) for row in log_probs]
    wrong = [float(row[WRONG].exp().sum().log()) for row in log_probs]
    divergence = [float((log_probs[0].exp() * (log_probs[0] - row)).sum()) for row in log_probs]
    assert measured("log_probability") == pytest.approx(answer, abs=1e-5)
    assert measured("logit_difference") == pytest.approx([a - b for a, b in zip(answer, wrong, strict=True)], abs=1e-5)
    assert measured("kl") == pytest.approx(divergence, abs=1e-5)


@one_family
@settings(max_examples=15)
@given(data=st.data())
def test_any_cells_in_any_batches_are_those_of_one_row(subject: Subject, data: st.DataObject) -> None:
    pair = pair_of(subject)
    grid = make_grid(subject.model, [pair], ["layers_output", "values", "attentions_output"])
    chosen = data.draw(st.lists(st.lists(st.sampled_from(grid.cells), min_size=1, max_size=3), max_size=4))
    batch_tokens = data.draw(st.integers(1, 200))
    patcher = Patcher(subject.model, [pair], grid, targets=[[ANSWER, WRONG]])
    together = patcher.patch(chosen, Workload((), batch_tokens=batch_tokens)).values[0].tolist()

    alone = [float(patcher.patch([run]).values) for run in chosen]
    assert together == pytest.approx(alone, abs=2e-5)


@one_family
def test_what_does_not_fit_is_refused(subject: Subject) -> None:
    pair, model = pair_of(subject), subject.model
    with pytest.raises(InvalidRequest, match="there are no heads at mlps_output"):
        make_grid(model, [pair], ["mlps_output"], heads=[0])
    with pytest.raises(InvalidRequest, match="layer 9 does not exist"):
        make_grid(model, [pair], ["keys"], layers=[9])
    with pytest.raises(InvalidRequest, match="head 9 does not exist: layer 1 of llama has heads 0 to 3"):
        make_grid(model, [pair], ["keys"], layers=[1], heads=[9])
    grid = make_grid(model, [pair], ["layers_output"], layers=[1])
    with pytest.raises(InvalidRequest, match="logit_difference needs 2 target categories, and 1 came"):
        Patcher(model, [pair], grid, targets=[[ANSWER]]).patch()
    with pytest.raises(InvalidRequest, match="position by position: 1 came, of 11 tokens"):
        Patcher(model, ablate([pair.clean.prompt]), grid, ablation="mean", metric="kl").patch()


@pytest.mark.parametrize("subject", ["opt"], indirect=True)
def test_a_site_that_a_model_lacks_is_refused(subject: Subject) -> None:
    with pytest.raises(Unsupported, match="layer 0 of opt has no MLP module"):
        make_grid(subject.model, [pair_of(subject)], ["mlps_output"], layers=[0])


@real
@pytest.mark.slow
@pytest.mark.smollm2
def test_the_real_model_is_patched_as_by_plain_hooks(subject: Subject) -> None:
    pair = pair_of(subject, "Paris is in the country of", "London is in the country of")
    positions = [0, 3, -1]
    grid = make_grid(subject.model, [pair], ["layers_output", "keys"], layers=[4, 20], positions=positions)
    patching = Patcher(subject.model, [pair], grid, targets=[[ANSWER, WRONG]]).patch()
    where = [span.clean[0] for span in grid.spans[0]]

    assert pair.corrupted is not None
    for cell, value in zip(grid.cells, patching.values[0], strict=True):
        close(value, expected(subject, pair.corrupted, pair.clean, [cell], where), subject)
