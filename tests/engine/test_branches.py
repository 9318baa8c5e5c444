"""Rows that share what they can, against plain transformers with plain hooks: one pass for each row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nnterp_mcp.engine.branch_pass import AddedByEntry, Input
from nnterp_mcp.engine.branches import Branches
from nnterp_mcp.engine.edits import StateEdit
from nnterp_mcp.engine.forward import LogitReduction
from nnterp_mcp.engine.hook_points import Place
from nnterp_mcp.engine.planning.plan import plan
from nnterp_mcp.engine.prefix_sharing import Sharing
from nnterp_mcp.engine.replacements import Replacement, replace_states
from nnterp_mcp.engine.token_spans import Reach
from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.model.loading import trials
from nnterp_mcp.model.text.tokenization import EncodedPrompt
from nnterp_mcp.request.operations import parse_operation
from tests.engine.plain import Edits
from tests.engine.test_executors import Subject, build
from tests.experiments.patching.test_edited_patching import OPERATIONS, joined

TOLERANCE = 2e-5
LENGTH = 11
SITES = ["layers_output", "layers_input", "mlps_output"]


@pytest.fixture(scope="module")
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield build(request.param, lambda: request.getfixturevalue("smollm2_folder"))
    torch.set_num_threads(before)


families = pytest.mark.parametrize("subject", ["gpt2", "llama", "gemma2", "gpt_neox"], indirect=True)
one_family = pytest.mark.parametrize("subject", ["llama"], indirect=True)


def prompt_of(length: int = LENGTH) -> EncodedPrompt:
    ids = torch.randint(5, 290, (length,), generator=torch.Generator().manual_seed(length)).tolist()
    return EncodedPrompt(0, "", ids, [])


def replacements(subject: Subject, positions: Sequence[int], sites: Sequence[Any] = SITES) -> list[Replacement]:
    """A row for each site, layer and position, with random states; rows are numbered in no order of theirs."""
    dice = torch.Generator().manual_seed(0)
    places = [(Place(site, layer), at) for at in positions for site in sites for layer in (0, 2, 3)]
    numbers = torch.randperm(len(places), generator=dice).tolist()
    width = subject.model.hidden_size
    return [
        Replacement(number, place, [at], torch.randn(1, width, generator=dice))
        for number, (place, at) in zip(numbers, places, strict=True)
    ]


def hooks_of(row: Replacement) -> Edits:
    """The same by a plain hook."""

    def put(states: Tensor) -> None:
        states[list(row.positions)] = row.states

    return {(row.place.site, row.place.layer or 0): put}


def keep_base(order: Sequence[int]) -> LogitReduction:
    """The logits of the unedited input."""
    return LogitReduction(lambda logits, options, entries: {"base": logits[0]}, {})


def assert_plain(
    subject: Subject, branches: Branches, rows: Sequence[Replacement], ids: list[int], edits: Edits
) -> None:
    found: dict[int, Tensor] = {}
    for batch in branches.run():
        found |= zip(batch.rows, batch.logits, strict=True)
        base = subject.plain.logits(ids, edits)[-1]
        assert float((batch.numbers["base"] - base).abs().max()) <= TOLERANCE * max(1.0, float(base.abs().max()))
    assert sorted(found) == list(range(len(rows)))
    for row in rows:
        expected = subject.plain.logits(ids, joined(edits, hooks_of(row)))[-1]
        size = max(1.0, float(expected.abs().max()))
        assert float((found[row.row] - expected).abs().max()) <= TOLERANCE * size, row


@pytest.mark.parametrize("name", [None, *OPERATIONS])
@pytest.mark.parametrize(
    ("subject", "attention"),
    [("gemma2", "eager"), *((family, kind) for family in ("gpt2", "llama", "gpt_neox") for kind in ("eager", "sdpa"))],
    indirect=["subject"],
)
def test_rows_with_operations_share_everything_and_equal_plain_hooks(
    subject: Subject, name: str | None, attention: str
) -> None:
    operation, edits = OPERATIONS[name] if name else (None, {})
    prompt = prompt_of()
    subject.model.set_attention(attention)
    operations = [parse_operation(operation)] if operation else []
    base = Input(prompt, plan=plan(subject.model, operations, [prompt]))
    rows = replacements(subject, [1, 6, LENGTH - 1])
    branches = Branches(
        subject.model, base, replace_states(rows), reduction=keep_base, work=Workload((), batch_tokens=150)
    )

    assert branches.sharing == Sharing(prefix=True, layers=True)
    assert subject.model.attention == attention
    assert_plain(subject, branches, rows, prompt.ids, edits)


@pytest.mark.parametrize("subject", ["gemma2"], indirect=True)
@pytest.mark.parametrize("operated", [False, True])
def test_rows_beyond_a_sliding_window_share_the_tokens_before_them(subject: Subject, operated: bool) -> None:
    window = subject.model.module.config.sliding_window
    prompt = prompt_of(window + 20)
    operation, edits = OPERATIONS["heads"]
    operations = [parse_operation(operation)] if operated else []
    base = Input(prompt, plan=plan(subject.model, operations, [prompt]))
    rows = replacements(subject, [2, window - 1, window + 3, window + 19], ["layers_output"])
    branches = Branches(
        subject.model, base, replace_states(rows), reduction=keep_base, work=Workload((), batch_tokens=4 * window)
    )

    assert branches.sharing == Sharing(prefix=True, layers=True)
    assert_plain(subject, branches, rows, prompt.ids, edits if operated else {})


@families
def test_what_rows_share_is_tried_once_for_the_same_operations(subject: Subject) -> None:
    prompt = prompt_of()
    passes: list[None] = []
    hook = subject.model.module.get_input_embeddings().register_forward_hook(lambda *_: passes.append(None))
    trials.forget(subject.model.module)
    counts: list[int] = []
    try:
        for factor in (2, 2, 3):
            scale = {"op": "scale", "site": "mlps_output", "layers": 1, "factor": factor}
            base = Input(prompt, plan=plan(subject.model, [parse_operation(scale)], [prompt]))
            passes.clear()
            list(Branches(subject.model, base, replace_states(replacements(subject, [6]))).run())
            counts.append(len(passes))
    finally:
        hook.remove()

    assert counts[0] == counts[2] > counts[1] == 2  # the tokens before, and the rows


@one_family
@settings(max_examples=15)
@given(data=st.data())
def test_any_states_of_a_row_together_in_any_batches(subject: Subject, data: st.DataObject) -> None:
    prompt = prompt_of()
    pool = replacements(subject, range(LENGTH))
    chosen = [data.draw(st.lists(st.sampled_from(pool), min_size=1, max_size=3)) for _ in range(3)]
    rows = [one._replace(row=number) for number, listed in enumerate(chosen) for one in listed]
    branches = Branches(
        subject.model,
        Input(prompt),
        replace_states(rows),
        reduction=keep_base,
        work=Workload((), batch_tokens=data.draw(st.integers(1, 100))),
    )
    found = {row: logits for batch in branches.run() for row, logits in zip(batch.rows, batch.logits, strict=True)}

    for number, listed in enumerate(chosen):
        expected = subject.plain.logits(prompt.ids, joined(*(hooks_of(one) for one in listed)))[-1]
        assert float((found[number] - expected).abs().max()) <= TOLERANCE * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("operated", [False, True])
@pytest.mark.parametrize("onward", [False, True])
@families
def test_generated_tokens_are_those_of_plain_hooks(subject: Subject, onward: bool, operated: bool) -> None:
    prompt, count, model = prompt_of(), 5, subject.model
    module: Any = model.module
    module.generation_config.eos_token_id = None
    operation, edits = OPERATIONS["residual stream"]
    base = Input(prompt, plan=plan(model, [parse_operation(operation)] if operated else [], [prompt]))
    vectors = 6 * torch.randn(3, model.hidden_size, generator=torch.Generator().manual_seed(2))
    added = [
        StateEdit(Place("layers_output", layer), Reach({row: [4]}, onward), AddedByEntry(vectors, lambda row, at: row))
        for row, layer in enumerate((3, 0, 1))
    ]
    (batch,) = Branches(model, base, added, max_new_tokens=count).run()

    said = dict(zip(batch.rows, batch.continuations, strict=True)) | {-1: batch.base_continuation}
    for row, tokens in said.items():
        text = list(prompt.ids)
        for token in tokens:

            def add(states: Tensor, row: int = row) -> None:
                reached = [4, *range(LENGTH, len(states))] if onward else [4]
                states[reached] += vectors[row]

            own: Edits = {} if row < 0 else {("layers_output", (3, 0, 1)[row]): add}
            logits = subject.plain.logits(text, joined(edits if operated else {}, own))[-1]
            assert float(logits.max() - logits[token]) < 1e-3  # where logits all but tie, either token is right
            text.append(token)
        assert len(tokens) == count


@one_family
def test_a_batch_with_operations_that_does_not_fit_the_memory_is_halved(subject: Subject) -> None:
    operation, edits = OPERATIONS["residual stream"]
    prompt = prompt_of()
    base = Input(prompt, plan=plan(subject.model, [parse_operation(operation)], [prompt]))
    rows = replacements(subject, [1, 6])
    sizes: list[int] = []

    def limit(module: Any, args: tuple[Tensor, ...]) -> None:
        sizes.append(len(args[0]))
        if len(args[0]) > 6:
            raise torch.OutOfMemoryError

    branches = Branches(subject.model, base, replace_states(rows), reduction=keep_base)
    hook = subject.model.module.get_submodule("model.layers.3.mlp").register_forward_pre_hook(limit)
    try:
        assert_plain(subject, branches, rows, prompt.ids, edits)
    finally:
        hook.remove()
    assert max(sizes) > 6


@families
@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("positions", [[0], [4, 8]], ids=["nothing shared", "a prefix shared"])
def test_a_skipped_layer_does_not_run(subject: Subject, layer: int, positions: list[int]) -> None:
    skip = parse_operation({"op": "skip", "layers": layer})
    prompt = prompt_of()
    base = Input(prompt, plan=plan(subject.model, [skip], [prompt]))
    pool = replacements(subject, positions, ["layers_output"])
    rows = [one._replace(row=row) for row, one in enumerate(one for one in pool if one.place.layer == 3)]
    branches = Branches(subject.model, base, replace_states(rows), reduction=keep_base)
    entered: Tensor = torch.empty(0)

    def enter(states: Tensor) -> None:
        nonlocal entered
        entered = states.clone()

    def leave(states: Tensor) -> None:
        states.copy_(entered)

    shared = branches.sharing.prefix and positions[0] > 0
    mlp, ran = subject.model.anatomy.layers[layer].mlp, list[int]()
    assert mlp is not None
    hook = mlp.module.register_forward_hook(lambda module, args, output: ran.append(1))
    try:
        assert_plain(
            subject, branches, rows, prompt.ids, {("layers_input", layer): enter, ("layers_output", layer): leave}
        )
    finally:
        hook.remove()

    assert len(ran) == shared  # while the keys and values of the shared tokens are read
