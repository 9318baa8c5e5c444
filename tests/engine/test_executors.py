"""Every operation at every site against plain transformers with plain hooks, prompt by prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from syrupy.assertion import SnapshotAssertion
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from nnterp_mcp.cancellation import cancellable
from nnterp_mcp.engine.executors import execution as executors
from nnterp_mcp.engine.forward import NOTHING, Capture, Plan, forward
from nnterp_mcp.engine.hook_points import Place
from nnterp_mcp.engine.planning.plan import plan
from nnterp_mcp.engine.readouts.reductions import take_all
from nnterp_mcp.errors import Cancelled, NnterpError, Unsupported
from nnterp_mcp.model.loading.load_checks import check_model
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.text.tokenization import encode_prompts, pad_batch
from nnterp_mcp.request.operations import Operation, parse_operation
from nnterp_mcp.request.sites import HEAD_SITES, SITES
from nnterp_mcp.verification.tiny import tiny_model, tiny_tokenizer
from tests.engine.plain import FAMILIES, Edit, Edits, Plain

PROMPTS = ["The capital of France is", "Paris and Rome are", "of Spain is Madrid, and"]
SOURCE = "Madrid is a"
TOLERANCE = 1e-5
ROUNDING = {"smollm2-135m": 5e-5}
"""Where an ablation blows rounding up: of two computations in float32, each is up to 2e-5 from that in float64."""
MISSING = {("opt", "mlps_input"), ("opt", "neurons"), ("opt", "mlps_output"), ("opt", "mlps_raw_output")}
HIDDEN_SITES = [site for site in SITES if site not in HEAD_SITES]


@dataclass
class Subject:
    """One model twice: standardized, and plain."""

    family: str
    model: StandardizedTransformer
    plain: Plain

    def __post_init__(self) -> None:
        self.prompts = encode_prompts(self.model.tokenizer, PROMPTS, self.family)
        self.source = encode_prompts(self.model.tokenizer, [SOURCE], self.family)[0]

    @cached_property
    def clean(self) -> Tensor:
        """The distributions without any operation."""
        return self.probabilities(NOTHING)

    def plan(self, *operations: dict[str, Any]) -> Plan:
        return plan(self.model, [parse_operation(operation) for operation in operations], self.prompts)

    def probabilities(self, plan: Plan) -> Tensor:
        """The next token's distribution after each prompt, computed in one padded batch."""
        batch = pad_batch(self.prompts, self.model.pad_id, self.model.device)
        ends = [(row, len(prompt.ids) - 1) for row, prompt in enumerate(batch.prompts)]
        logits = forward(self.model, batch, plan, logits=ends).logits
        assert logits is not None
        order = sorted(range(len(ends)), key=lambda row: batch.prompts[row].index)
        return logits[order].double().softmax(-1)

    def expected(self, edits_of: Callable[[int], Edits]) -> Tensor:
        return torch.stack([self.plain.probabilities(prompt.ids, edits_of(prompt.index)) for prompt in self.prompts])


def build(family: str, smollm2_folder: Callable[[], Path]) -> Subject:
    if family == "smollm2-135m":
        folder = smollm2_folder()
        weights, again = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for _ in range(2))
        tokenizer = AutoTokenizer.from_pretrained(folder)
    else:
        eager = None if FAMILIES[family].shared else "eager"
        weights, tokenizer = tiny_model(family), tiny_tokenizer()
        again = tiny_model(family, attn_implementation=eager)
    model = StandardizedTransformer(weights, tokenizer=tokenizer, name=family)
    assert all(check.passed for check in check_model(model))
    return Subject(family, model, Plain(again.eval(), FAMILIES[family]))


@pytest.fixture(scope="module")
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield build(request.param, lambda: request.getfixturevalue("smollm2_folder"))
    torch.set_num_threads(before)


SLOW = {"smollm2-135m", "gpt_neox", "opt", "bloom"}
SUBJECTS = [pytest.param(family, marks=[pytest.mark.slow] if family in SLOW else []) for family in FAMILIES]
every_family = pytest.mark.parametrize("subject", SUBJECTS, indirect=True)
one_family = pytest.mark.parametrize("subject", ["llama"], indirect=True)


@dataclass
class Case:
    """An operation, and what it does to the states of one prompt, written out."""

    label: str
    operation: dict[str, Any]
    edits_of: Callable[[int], Edits]


def state_cases(subject: Subject, site: str) -> list[Case]:
    """Every operation on states at one site."""
    plain, prompts = subject.plain, subject.prompts
    layers = [-1] if site == "token_embeddings" else [1, 2]
    where: dict[str, Any] = {"site": site} | ({} if site == "token_embeddings" else {"layers": layers})
    heads = [1, 3] if site in HEAD_SITES else None
    chosen: dict[str, Any] = {"heads": heads} if heads else {}
    part: dict[str, Any] = chosen or {"neurons": [0, 5]}  # of a whole state, a norm that follows undoes it
    clean = {layer: [plain.read(prompt.ids, site, layer) for prompt in prompts] for layer in layers}
    source = {layer: plain.read(subject.source.ids, site, layer) for layer in layers}
    width = clean[layers[0]][0].shape[-1]
    vector = torch.randn(width, generator=torch.Generator().manual_seed(7))
    cases: list[Case] = []

    def case(op: str, change: Callable[[Tensor, int, int], None], **fields: Any) -> None:
        def edits_of(prompt: int) -> Edits:
            return {(site, layer): lambda states, layer=layer: change(states, layer, prompt) for layer in layers}

        label = f"{op} {' '.join(sorted(fields))}"
        cases.append(Case(label, {"op": op, **where, **fields}, edits_of))

    def scale(states: Tensor, layer: int, prompt: int) -> None:
        for index in heads or [0, 5]:
            states[(slice(None), index) if heads else (..., index)] *= 0.5

    def zero(states: Tensor, layer: int, prompt: int) -> None:
        states[1:, heads or slice(None)] = 0

    def patch_last(states: Tensor, layer: int, prompt: int) -> None:
        states[-1] = source[layer][1]

    def patch_aligned(states: Tensor, layer: int, prompt: int) -> None:
        for at in (0, 2):
            taken = clean[layer][1][at]
            if heads is None:
                states[at] = taken
            else:
                states[at, heads] = taken[heads]

    case("scale", scale, factor=0.5, **part)
    case("zero", zero, positions="1:", **chosen)
    if site == "attention_probabilities":
        return cases

    def add(states: Tensor, layer: int, prompt: int) -> None:
        for head in heads or [slice(None)]:
            target = states if heads is None else states[:, head]
            target[-2] += 1.5 * vector
            target[0] += 1.5 * vector

    def project_out(states: Tensor, layer: int, prompt: int) -> None:
        unit = (vector / vector.norm()).to(states)
        states[1:] -= (states[1:] @ unit)[..., None] * unit

    def project_out_everywhere(states: Tensor, layer: int, prompt: int) -> None:
        unit = (vector / vector.norm()).to(states)
        states -= (states @ unit)[..., None] * unit

    def swap(states: Tensor, layer: int, prompt: int) -> None:
        pair = torch.stack([vector, vector.flip(0)], dim=1).double()
        exact = states[1:].double()
        found = torch.linalg.lstsq(pair, exact.flatten(0, -2).T).solution
        moved = 2 * (pair @ (found[[1, 0]] - found)).T
        states[1:] = (exact + moved.reshape(exact.shape)).to(states)

    def project_on_mean(states: Tensor, layer: int, prompt: int) -> None:
        unit = (vector / vector.norm()).to(states)
        for at in (0, -1):
            mean = torch.stack([clean[layer][0][at] @ unit, clean[layer][2][at] @ unit]).mean(0)
            moved = states[at] + (mean - states[at] @ unit)[..., None] * unit
            if heads is None:
                states[at] = moved
            else:
                states[at, heads] = moved[heads]

    def average(states: Tensor, layer: int, prompt: int) -> None:
        mean = torch.cat([states[1:] for states in clean[layer]]).mean(0)
        for at in range(len(states)):
            if heads is None:
                states[at] = mean
            else:
                states[at, heads] = mean[heads]

    def average_over(states: Tensor, layer: int, prompt: int) -> None:
        states[-1] = source[layer][1:].mean(0)

    def average_by_position(states: Tensor, layer: int, prompt: int) -> None:
        for at in (0, -1):
            mean = torch.stack([clean[layer][0][at], clean[layer][2][at]]).mean(0)
            if heads is None:
                states[at] = mean
            else:
                states[at, heads] = mean[heads]

    def copy_source(states: Tensor, layer: int, prompt: int) -> None:
        states[-1] = source[layer][-1]

    def some_neurons(states: Tensor, layer: int, prompt: int) -> None:
        states[..., [0, 5]] = 0

    def one_prompt(states: Tensor, layer: int, prompt: int) -> None:
        if prompt == 2:
            states[...] = 0

    numbers = vector.tolist()
    case("add", add, vector=numbers, factor=1.5, positions=[0, -2], **chosen)
    case("project_out", project_out, vector=numbers)
    case("swap", swap, vector=numbers, other=numbers[::-1], factor=2)
    case("project_out", project_out_everywhere, vector=numbers, positions="0:")
    case("project_out", project_on_mean, vector=numbers, over=[0, 2], positions=[0, -1], **chosen)
    case("mean", average, over="all", over_positions="all", **chosen)
    case("mean", average_over, over=[SOURCE], over_positions="1:", positions="last")
    case("mean", average_by_position, over=[0, 2], positions=[0, -1], **chosen)
    case("mean", copy_source, over=[SOURCE], positions="last")
    case("zero", some_neurons, neurons=[0, 5])
    case("zero", one_prompt, prompts=2)
    case("patch", patch_last, positions="last", **{"from": {"prompt": SOURCE, "position": 1}})
    case("patch", patch_aligned, positions=[0, 2], **chosen, **{"from": {"prompt": 1}})
    if site != "token_embeddings":
        other = plain.read(subject.source.ids, site, 0)

        def patch_layer(states: Tensor, layer: int, prompt: int) -> None:
            states[1] = other[-1]

        origin = {"prompt": SOURCE, "position": "last", "layer": 0}
        case("patch", patch_layer, positions=1, **{"from": origin})
    return cases


def skip_case(subject: Subject) -> Case:
    def edits_of(prompt: int) -> Edits:
        seen: dict[int, Tensor] = {}

        def keep(layer: int) -> Edit:
            return lambda states: seen.update({layer: states.clone()})

        def restore(layer: int) -> Edit:
            return lambda states: states.copy_(seen[layer])  # pyright: ignore[reportReturnType]

        return {("layers_input", layer): keep(layer) for layer in (1, 2)} | {
            ("layers_output", layer): restore(layer) for layer in (1, 2)
        }

    return Case("skip", {"op": "skip", "layers": [1, 2]}, edits_of)


def pattern_cases(subject: Subject) -> list[Case]:
    """Knockouts and fixed patterns; the states are (query, head, key)."""
    cases: list[Case] = []

    def case(change: Callable[[Tensor], None], **operation: Any) -> None:
        edits: Edits = {("attention_probabilities", layer): change for layer in (1, 2)}
        label = " ".join(str(value) for key, value in operation.items() if key in ("op", "pattern", "renormalise"))
        cases.append(Case(label[:24], {"layers": [1, 2], **operation}, lambda prompt: edits))

    def knock_out(pattern: Tensor) -> None:
        for query in range(2, len(pattern)):
            for head in (0, 2):
                pattern[query, head, 1] = 0
                pattern[query, head] /= pattern[query, head].sum()

    def knock_out_only(pattern: Tensor) -> None:
        pattern[-1, :, :2] = 0

    def set_to(read: Callable[[int], Sequence[int]]) -> Callable[[Tensor], None]:
        def change(pattern: Tensor) -> None:
            for query in range(len(pattern)):
                keys = list(read(query))
                pattern[query, [1, 3]] = 0
                pattern[query, 1, keys] = 1 / len(keys)
                pattern[query, 3, keys] = 1 / len(keys)

        return change

    case(knock_out, op="knockout", heads=[0, 2], query_positions="2:", key_positions=1)
    case(knock_out_only, op="knockout", query_positions="last", key_positions=[0, 1], renormalise=False)
    readings: dict[str, Callable[[int], Sequence[int]]] = {
        "uniform": lambda query: range(query + 1),
        "first": lambda query: [0],
        "previous": lambda query: [max(query - 1, 0)],
        "self": lambda query: [query],
    }
    for pattern, read in readings.items():
        case(set_to(read), op="set_attention", heads=[1, 3], pattern=pattern)
    return cases


def matrix_case(subject: Subject) -> Case:
    length = len(subject.prompts[0].ids)
    matrix = torch.rand(length, length, generator=torch.Generator().manual_seed(1)).tril().softmax(-1)

    def change(pattern: Tensor) -> None:
        pattern[:, 0] = matrix

    operation = {"op": "set_attention", "layers": 1, "heads": 0, "pattern": matrix.tolist(), "prompts": 0}
    return Case("matrix", operation, lambda prompt: {("attention_probabilities", 1): change} if prompt == 0 else {})


def check(subject: Subject, case: Case) -> None:
    expected = subject.expected(case.edits_of)
    changes = subject.plan(case.operation)
    found = subject.probabilities(changes)
    with patch.object(executors, "find_ports", return_value=None):
        assert torch.equal(found, subject.probabilities(changes)), f"{case.label}: a trace says something else"
    assert float((found - expected).abs().max()) <= ROUNDING.get(subject.family, TOLERANCE), case.label
    assert float((subject.clean - expected).abs().max()) > TOLERANCE, f"{case.label} does nothing here"


@every_family
def test_without_operations_it_is_the_model(subject: Subject) -> None:
    assert torch.allclose(subject.probabilities(NOTHING), subject.expected(lambda prompt: {}), atol=TOLERANCE, rtol=0)


@every_family
@pytest.mark.parametrize("site", SITES)
def test_states_change_as_plain_hooks_change_them(subject: Subject, site: str) -> None:
    if (subject.family, site) in MISSING:
        layers = {"layers": 1}
        with pytest.raises(Unsupported, match=subject.family):
            subject.plan({"op": "scale", "site": site, "factor": 0.5, **layers})
        return
    for case in state_cases(subject, site):
        check(subject, case)


@every_family
def test_patterns_and_skips_change_as_plain_hooks_change_them(subject: Subject) -> None:
    before = subject.model.attention
    for case in [*pattern_cases(subject), matrix_case(subject), skip_case(subject)]:
        check(subject, case)
    assert subject.model.attention == before


@every_family
@pytest.mark.parametrize("site", SITES)
def test_nothing_changes_by_factors_of_nothing_and_patches_from_itself(subject: Subject, site: str) -> None:
    if (subject.family, site) in MISSING:
        return
    where = {"site": site} | ({} if site == "token_embeddings" else {"layers": "all"})
    operations: list[dict[str, Any]] = [{"op": "scale", "factor": 1}, {"op": "patch", "from": {}}]
    if site in HIDDEN_SITES:
        layer = subject.model.anatomy.layers[-1]
        vector = [1.0] * (layer.num_neurons if site == "neurons" else subject.model.hidden_size)
        operations.append({"op": "add", "vector": vector, "factor": 0})
    clean = subject.probabilities(NOTHING)
    for operation in operations:
        changed = subject.probabilities(subject.plan(operation | where))
        assert torch.allclose(changed, clean, atol=2e-6, rtol=0), operation


@every_family
def test_the_order_of_the_list_does_not_matter_across_places(subject: Subject) -> None:
    operations = [
        {"op": "scale", "site": "layers_output", "layers": 2, "factor": 2},
        {"op": "zero", "site": "token_embeddings", "positions": 1},
        {"op": "knockout", "layers": 1, "key_positions": 0},
        {"op": "mean", "layers": [0, 3], "heads": 1, "over": "all", "over_positions": "all"},
        {"op": "skip", "layers": 1},
    ]
    forth, back = (subject.probabilities(subject.plan(*listed)) for listed in (operations, operations[::-1]))
    assert torch.equal(forth, back)


@every_family
def test_reads_come_after_the_edits_at_their_place(subject: Subject) -> None:
    batch = pad_batch(subject.prompts[:1], subject.model.pad_id, subject.model.device)
    edits = subject.plan({"op": "zero", "site": "attentions_output", "layers": 1, "positions": 2, "prompts": 0})
    places = [Place("layers_output", 2), Place("attentions_output", 1), Place("heads_output", 1), Place("queries", 0)]
    found = forward(subject.model, batch, edits, [Capture(place, take_all) for place in places])
    values = [states[0] for states in found.values]
    assert found.logits is None
    ids = subject.prompts[0].ids
    assert not values[1][2].any()

    def zero(states: Tensor) -> None:
        states[2] = 0

    kept: list[Tensor] = []
    subject.plain.logits(
        ids, {("attentions_output", 1): zero, ("layers_output", 2): lambda states: kept.append(states.clone())}
    )
    assert torch.allclose(values[0], kept[0], atol=1e-4, rtol=1e-4)
    heads = subject.plain.read(ids, "heads_output", 1)
    assert torch.allclose(values[2], heads, atol=1e-4, rtol=1e-4)
    queries = subject.plain.read(ids, "queries", 0)
    assert torch.allclose(values[3], queries, atol=1e-4, rtol=1e-4)


@one_family
def test_a_pass_ends_at_the_last_place_that_is_needed(subject: Subject) -> None:
    ran: list[int] = []
    blocks = [layer.block.module for layer in subject.model.anatomy.layers]
    hooks = [block.register_forward_pre_hook(lambda *_, at=at: ran.append(at)) for at, block in enumerate(blocks)]
    try:
        batch = pad_batch(subject.prompts, subject.model.pad_id, subject.model.device)
        forward(subject.model, batch, captures=[Capture(Place("layers_output", 1), take_all)])
    finally:
        for hook in hooks:
            hook.remove()
    assert ran == [0, 1]


@one_family
def test_gradients_flow_when_they_are_asked_for(subject: Subject) -> None:
    batch = pad_batch(subject.prompts[:1], subject.model.pad_id, subject.model.device)
    edits = subject.plan({"op": "scale", "site": "layers_output", "layers": 1, "factor": 0.5, "prompts": 0})
    logits = forward(subject.model, batch, edits, logits=[(0, 2)], gradients=True).logits
    assert logits is not None
    (gradient,) = torch.autograd.grad(logits.sum(), subject.model.module.get_input_embeddings().weight)
    assert gradient.abs().sum() > 0


@one_family
def test_a_layer_may_have_its_own_vector(subject: Subject) -> None:
    width = subject.model.hidden_size
    rows = torch.full((subject.model.num_layers, width), torch.nan)
    rows[2] = 1.0
    operation = parse_operation({"op": "add", "layers": 2, "vector": "mine"})
    found = subject.probabilities(plan(subject.model, [operation], subject.prompts, lambda name: rows))
    same = subject.probabilities(subject.plan({"op": "add", "layers": 2, "vector": [1.0] * width}))
    assert torch.equal(found, same)


@one_family
def test_errors_say_what_came_and_what_is_allowed(subject: Subject, snapshot: SnapshotAssertion) -> None:
    asked: list[dict[str, Any]] = [
        {"op": "skip", "layers": 40},
        {"op": "zero", "layers": 1, "heads": 4},
        {"op": "zero", "layers": 1, "heads": "7:"},
        {"op": "zero", "site": "mlps_output", "layers": 1, "neurons": 64},
        {"op": "zero", "site": "queries", "layers": 1, "neurons": [3, 99]},
        {"op": "skip", "layers": 1, "prompts": 3},
        {"op": "add", "layers": 1, "vector": [1.0, 2.0]},
        {"op": "add", "layers": 1, "site": "keys", "vector": [1.0, 2.0]},
        {"op": "add", "layers": 1, "vector": "mine"},
        {"op": "project_out", "layers": 1, "vector": [0.0] * 64},
        {"op": "swap", "layers": 1, "vector": [1.0] * 64, "other": [2.0] * 64},
        {"op": "patch", "layers": 1, "from": {"prompt": 1}},
        {"op": "patch", "layers": 1, "from": {"prompt": 7}},
        {"op": "patch", "layers": 1, "from": {"layer": 9}},
        {"op": "patch", "layers": 1, "from": {"run": "r1"}},
        {"op": "patch", "site": "token_embeddings", "from": {"layer": 1}},
        {"op": "patch", "layers": 1, "site": "attention_probabilities", "positions": 0, "from": {"prompt": 1}},
        {"op": "scale", "layers": 1, "site": "layers_output", "factor": 2, "positions": {"text": "Rome"}},
        {"op": "set_attention", "layers": 1, "pattern": [[1.0, 0.0], [0.5, 0.5]]},
    ]
    clean = subject.probabilities(NOTHING)
    assert [_refusal(subject, operation) for operation in asked] == snapshot
    assert torch.equal(subject.probabilities(NOTHING), clean)


def test_what_a_model_lacks_is_refused_by_name(snapshot: SnapshotAssertion) -> None:
    refused: list[str] = []
    for family in ("mamba", "jamba"):
        model = StandardizedTransformer(tiny_model(family), tokenizer=tiny_tokenizer(), name=family)
        check_model(model)
        prompts = encode_prompts(model.tokenizer, PROMPTS, family)
        for operation in (
            {"op": "knockout", "layers": "all"},
            {"op": "zero", "layers": "all", "heads": 0},
            {"op": "zero", "layers": "all", "site": "keys"},
        ):
            with pytest.raises(Unsupported) as error:
                plan(model, [parse_operation(operation)], prompts)
            refused.append(error.value.message)
    assert refused == snapshot


def _refusal(subject: Subject, operation: dict[str, Any]) -> str:
    with pytest.raises(NnterpError) as error:
        subject.probabilities(subject.plan(operation))
    return f"{error.value.code}: {error.value.message} {error.value.next_step}".strip()


@one_family
def test_an_error_in_a_pass_leaves_nothing_behind(subject: Subject) -> None:
    """The model under knockout is switched to eager attention, and a reduction fails in the middle of the pass."""
    model = subject.model
    clean, before = subject.probabilities(NOTHING), model.attention
    edits = subject.plan({"op": "knockout", "layers": 1, "key_positions": 0})
    batch = pad_batch(subject.prompts, model.pad_id, model.device)

    def fail(states: Tensor, options: dict[Any, Any]) -> None:
        raise Cancelled("stop")

    for _ in range(3):
        with pytest.raises(Cancelled):
            forward(model, batch, edits, [Capture(Place("layers_output", 2), fail)])
        assert model.attention == before == "sdpa"
        assert torch.equal(subject.probabilities(NOTHING), clean)


@one_family
def test_a_cancelled_plan_stops_before_its_sources_run(subject: Subject) -> None:
    def stop() -> None:
        raise Cancelled("stop")

    operations: list[Operation] = [parse_operation({"op": "mean", "layers": 1, "heads": 0, "over": 1, "prompts": 1})]
    with cancellable(stop), pytest.raises(Cancelled):
        plan(subject.model, operations, subject.prompts)
