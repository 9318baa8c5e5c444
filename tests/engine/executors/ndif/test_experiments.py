"""Experiments as they are sent to NDIF, through nnsight's own simulation of it, against plain transformers with hooks.

The simulation writes a trace out as for the wire and reads it back where this package cannot be imported.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM

from nnterp_mcp.engine.executors.ndif import checks, experiments
from nnterp_mcp.engine.executors.ndif.checks import check_served
from nnterp_mcp.engine.executors.ndif.model import ServedTransformer
from nnterp_mcp.engine.forward import Plan, forward
from nnterp_mcp.engine.generation import generate
from nnterp_mcp.engine.hook_points import Place
from nnterp_mcp.engine.kv_cache import cache_name
from nnterp_mcp.engine.planning.plan import plan
from nnterp_mcp.engine.planning.vectors import read_token_rows
from nnterp_mcp.engine.sampling import Sampling
from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.errors import Unsupported
from nnterp_mcp.experiments.activations import collect, index_rows, read_states, state_shape
from nnterp_mcp.experiments.attention_patterns import choose_heads, read_attention
from nnterp_mcp.experiments.attribution.logit_direction import find_final_modules
from nnterp_mcp.experiments.induction_heads import repeat_random_tokens, score_heads
from nnterp_mcp.experiments.logit_lens import read_lens, top_tokens
from nnterp_mcp.experiments.patched_target import SourceReadings, resolve_target
from nnterp_mcp.experiments.patching.activation_patching import Patcher, make_grid
from nnterp_mcp.experiments.patching.corruption import ablate, add_noise, pair_prompts
from nnterp_mcp.experiments.patching.path_patching import Receiver
from nnterp_mcp.experiments.patchscope import read_patchscope
from nnterp_mcp.experiments.steering import sweep
from nnterp_mcp.experiments.steering_vectors import average_states
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.text.tokenization import EncodedPrompt, encode_prompts
from nnterp_mcp.request.operations import Operation
from tests.conftest import FAMILIES
from tests.engine.executors.ndif.simulated import serve
from tests.engine.plain import FAMILIES as NAMES
from tests.engine.plain import Edits, Plain

PROMPTS = ["The capital of France is", "Two and two make four"]
CLOSE = {"rtol": 0, "atol": 2e-5}


@dataclass(frozen=True)
class Pair:
    """A served model, and the same written out plainly."""

    served: ServedTransformer
    plain: Plain

    def encode(self, *prompts: str) -> list[EncodedPrompt]:
        return encode_prompts(self.served.tokenizer, prompts or PROMPTS, self.served.name)

    def plan(self, *operations: dict[str, Any]) -> Plan:
        from pydantic import TypeAdapter

        parsed = TypeAdapter(list[Operation]).validate_python(operations)
        return plan(self.served, parsed, self.encode())

    def probabilities(self, prompt: EncodedPrompt, edits: Edits | None = None) -> Tensor:
        return self.plain.probabilities(prompt.ids, edits or {}).float()


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request: pytest.FixtureRequest, tiny: Callable[..., Path]) -> Pair:
    return _pair(request.param, tiny(request.param))


@pytest.fixture(scope="module")
def llama(tiny: Callable[..., Path]) -> Pair:
    return _pair("llama", tiny("llama"))


@cache
def _pair(family: str, folder: Path) -> Pair:
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)
    return Pair(serve(folder), Plain(plain, NAMES[family]))


def replacing(state: Tensor, at: int) -> Callable[[Tensor], None]:
    def edit(states: Tensor) -> None:
        states[at] = state

    return edit


def test_the_outline_has_no_weights_and_a_trace_on_it_is_refused(pair: Pair) -> None:
    assert {weight.device.type for weight in pair.served.module.parameters()} == {"meta"}
    with pytest.raises(Unsupported, match="NDIF serves"):
        pair.served.trace("a")


def test_the_checks_pass_on_the_served_model(pair: Pair) -> None:
    found = check_served(pair.served)

    assert [(check.name, check.passed) for check in found] == [
        (name, True) for name in ("names", "lens", "batch", "causal", "generation", "attention")
    ]
    assert pair.served.cache_name == cache_name(pair.served.module)


@pytest.mark.parametrize("there", ["", "unknown"])
def test_a_service_may_have_another_name_for_cached_keys_and_values(
    pair: Pair, there: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = cache_name(pair.served.module)
    monkeypatch.setattr(checks, "CACHE_NAMES", ("wrong", there or own))
    monkeypatch.setattr(checks, "cache_name", lambda module: "wrong")

    generation = check_served(pair.served)[4]

    assert generation.passed
    assert pair.served.cache_name == (None if there else own)
    assert ("read again" in generation.detail) is bool(there)
    found = generate(pair.served, Workload(pair.encode()), max_new_tokens=3)
    pair.served.cache_name = own
    assert [one.ids for one in found] == [
        one.ids for one in generate(pair.served, Workload(pair.encode()), max_new_tokens=3)
    ]


@pytest.mark.parametrize("inverse", [False, True])
def test_lens(pair: Pair, inverse: bool) -> None:
    prompts = pair.encode()
    last = pair.served.num_layers - 1

    found = read_lens(
        pair.served,
        Workload(prompts),
        [[1, 3], [2]],
        [0, 2, last],
        top_k=4,
        categories=[[[5, 9], []]] * 2,
        inverse=inverse,
    )

    assert list(zip(found.prompts, found.positions, strict=True)) == [(0, 1), (0, 3), (1, 2)]
    for row, (number, position) in enumerate(zip(found.prompts, found.positions, strict=True)):
        logits = pair.plain.logits(prompts[number].ids, {})[position].double()
        expected = (-logits if inverse else logits).softmax(-1).float()
        top = expected.topk(4)
        torch.testing.assert_close(found.readout.top_probs[row, -1], top.values, **CLOSE)
        assert found.readout.top_ids[row, -1].tolist() == top.indices.tolist()
        torch.testing.assert_close(found.readout.target_probs[row, -1, 0], expected[[5, 9]].sum(), **CLOSE)
        assert found.readout.target_ranks[row, -1].tolist() == [1 + int((expected > expected[[5, 9]].max()).sum()), 0]
        torch.testing.assert_close(found.kl[row, -1], torch.tensor(0.0), rtol=0, atol=1e-5)
        assert float(found.kl[row, 0]) > 1e-3


def test_the_lens_of_an_early_layer_is_the_model_that_leaves_the_others_out(llama: Pair) -> None:
    (prompt,) = llama.encode(PROMPTS[0])
    middle, last = 1, llama.served.num_layers - 1
    state = llama.plain.read(prompt.ids, "layers_output", middle)[-1]
    expected = llama.probabilities(prompt, {("layers_output", last): replacing(state, -1)})

    found = read_lens(llama.served, Workload([prompt]), [[len(prompt.ids) - 1]], [middle], top_k=5)

    torch.testing.assert_close(found.readout.top_probs[0, 0], expected.topk(5).values, **CLOSE)


def test_states(pair: Pair) -> None:
    prompts = pair.encode()

    found = read_states(pair.served, Workload(prompts), [[0, 2], [4]], [0, 3])

    for row, (number, position) in enumerate([(0, 0), (0, 2), (1, 4)]):
        for column, layer in enumerate([0, 3]):
            expected = pair.plain.read(prompts[number].ids, "layers_output", layer)[position]
            torch.testing.assert_close(found[row, column], expected, rtol=1e-4, atol=1e-4)


def test_states_averaged_over_positions(pair: Pair) -> None:
    found = average_states(
        pair.served, Workload(encode_prompts(pair.served.tokenizer, PROMPTS, pair.served.name)), [1, 3], ["1:4"]
    )

    for row, prompt in enumerate(pair.encode()):
        for column, layer in enumerate([1, 3]):
            states = pair.plain.read(prompt.ids, "layers_output", layer)[1:4]
            torch.testing.assert_close(found.means[row, column], states.mean(0), rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(found.lengths[row, column], states.norm(dim=-1).mean(), rtol=1e-4, atol=1e-4)


def test_text_is_what_each_next_top_token_adds(pair: Pair) -> None:
    prompts = pair.encode()

    found = generate(pair.served, Workload(prompts), max_new_tokens=5)

    for prompt, said in zip(prompts, found, strict=True):
        ids = list(prompt.ids)
        for token, log_prob in zip(said.ids, said.log_probs, strict=True):
            expected = pair.plain.probabilities(ids, {}).log()
            assert token == int(expected.argmax())
            assert log_prob == pytest.approx(float(expected[token]), abs=2e-5)
            ids.append(token)


def test_a_text_of_two_requests_goes_on_where_the_first_ended(llama: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    steered = llama.plan({"op": "scale", "site": "mlps_output", "layers": [1], "factor": 0.5, "positions": "last"})
    sampling = Sampling(temperature=1.5, top_p=0.9, seed=7)
    whole = generate(llama.served, Workload(llama.encode(), steered), max_new_tokens=6, sampling=sampling)
    monkeypatch.setattr("nnterp_mcp.engine.executors.ndif.generation._TOKENS", 2)

    parts = generate(llama.served, Workload(llama.encode(), steered), max_new_tokens=6, sampling=sampling)

    assert [said.ids for said in parts] == [said.ids for said in whole]


@pytest.mark.parametrize("cached", [True, False])
def test_a_text_with_an_operation_in_force(llama: Pair, cached: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama.served, "cache_name", cache_name(llama.served.module) if cached else None)
    prompts = llama.encode()

    found = generate(
        llama.served,
        Workload(prompts, llama.plan({"op": "zero", "site": "mlps_output", "layers": [1]})),
        max_new_tokens=4,
    )

    for prompt, said in zip(prompts, found, strict=True):
        ids = list(prompt.ids)
        for token in said.ids:
            expected = llama.plain.probabilities(ids, {("mlps_output", 1): lambda states: states.zero_()})
            assert token == int(expected.argmax())
            ids.append(token)


@pytest.mark.parametrize(
    "site", ["layers_input", "layers_output", "attentions_output", "mlps_output", "token_embeddings"]
)
def test_a_vector_added_at_a_site(pair: Pair, site: str) -> None:
    width = pair.served.hidden_size
    vector = torch.linspace(-1, 1, width)
    layer = -1 if site == "token_embeddings" else 2
    asked = {"op": "add", "site": site, "vector": vector.tolist(), "factor": 2.0, "positions": [1]}
    in_force = pair.plan(asked | ({} if layer < 0 else {"layers": [layer]}))

    _same_as(pair, in_force, {(site, layer): lambda states: states[1].add_(2 * vector)})


def test_heads_zeroed_and_neurons_scaled(pair: Pair) -> None:
    in_force = pair.plan(
        {"op": "zero", "site": "heads_output", "layers": [0], "heads": [1, 3]},
        {"op": "scale", "site": "mlps_output", "layers": [2], "factor": 3.0, "neurons": [0, 5]},
    )

    def zero(states: Tensor) -> None:
        states[:, [1, 3]] = 0

    def scale(states: Tensor) -> None:
        states[:, [0, 5]] *= 3

    _same_as(pair, in_force, {("heads_output", 0): zero, ("mlps_output", 2): scale})


def test_a_direction_projected_out_and_a_layer_skipped(pair: Pair) -> None:
    direction = torch.linspace(-1, 1, pair.served.hidden_size)
    unit = direction / direction.norm()
    in_force = pair.plan(
        {"op": "project_out", "layers": [0], "vector": direction.tolist()}, {"op": "skip", "layers": [2]}
    )
    entering: list[Tensor] = []

    def project(states: Tensor) -> None:
        states[1:] -= (states[1:] @ unit)[:, None] * unit  # every position but the first

    def keep(states: Tensor) -> None:
        entering.append(states.clone())

    def skip(states: Tensor) -> None:
        states.copy_(entering[-1])

    _same_as(pair, in_force, {("layers_output", 0): project, ("layers_input", 2): keep, ("layers_output", 2): skip})


def test_states_of_other_runs_put_in(pair: Pair) -> None:
    source, other = pair.encode()
    in_force = pair.plan(
        {"op": "patch", "layers": [1], "positions": [1], "from": {"prompt": PROMPTS[0], "position": 3}},
        {
            "op": "mean",
            "site": "heads_output",
            "layers": [2],
            "heads": [1],
            "positions": "last",
            "over": "all",
            "over_positions": "all",
        },
    )
    state = pair.plain.read(source.ids, "layers_output", 1)[3]
    heads = torch.cat([pair.plain.read(prompt.ids, "heads_output", 2)[1:, 1] for prompt in (source, other)])

    def average(states: Tensor) -> None:
        states[-1, 1] = heads.mean(0)

    _same_as(pair, in_force, {("layers_output", 1): replacing(state, 1), ("heads_output", 2): average})


@pytest.mark.parametrize("site", ["layers_input", "heads_output", "mlps_output"])
def test_collected_states(pair: Pair, site: Any) -> None:
    prompts = pair.encode()
    places = [Place(site, layer) for layer in (0, 2)]
    rows = [*index_rows(prompts, [1, 3], "none"), *index_rows(prompts, ["1:"], "mean")]

    found = {
        number: states
        for block in collect(pair.served, Workload(prompts), rows, places)
        for number, states in zip(block.rows, block.states, strict=True)
    }

    for number, row in enumerate(rows):
        for column, place in enumerate(places):
            states = pair.plain.read(prompts[row.prompt].ids, site, place.layer or 0)[list(row.positions)]
            torch.testing.assert_close(found[number][column], states.mean(0), rtol=1e-4, atol=1e-4)
    assert state_shape(pair.served, prompts, places) == found[0].shape[1:]


def test_logits_and_gradients_stay_there(llama: Pair) -> None:
    (batch,) = Workload(llama.encode()).batches(llama.served)
    with pytest.raises(Unsupported, match="whole logits"):
        forward(llama.served, batch, logits=[(0, 1)])
    with pytest.raises(Unsupported, match="gradients"):
        forward(llama.served, batch, gradients=True)


def _same_as(pair: Pair, in_force: Plan, edits: Edits) -> None:
    prompts = pair.encode()
    found = read_lens(
        pair.served,
        Workload(prompts, in_force),
        [[len(prompt.ids) - 1] for prompt in prompts],
        [pair.served.num_layers - 1],
        top_k=5,
    )
    for row, prompt in enumerate(prompts):
        expected = pair.probabilities(prompt, edits)
        torch.testing.assert_close(found.readout.top_probs[row, 0], expected.topk(5).values, **CLOSE)
        assert (expected - pair.probabilities(prompt)).abs().max() > 1e-4


def test_steering_beside_its_baseline(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "nnterp_mcp.engine.executors.ndif.branches.PASSES", 2
    )  # several pieces, each with its own baseline
    prompts = pair.encode()
    directions = {layer: torch.linspace(-1, layer + 1, pair.served.hidden_size) for layer in (1, 2)}

    found = sweep(
        pair.served,
        Workload(prompts, batch_tokens=24),
        directions,
        [0.5, -1.0, 0.0],
        top_k=3,
        targets={"a": [7]},
        controls=1,
    )

    clean = [pair.probabilities(prompt) for prompt in prompts]
    for row, dose in enumerate(found.doses):
        if dose.control is not None:
            continue
        edits: Edits = {}
        if dose.layer is not None:
            pushed = dose.factor * directions[dose.layer]
            edits = {("layers_output", dose.layer): lambda states, pushed=pushed: states.add_(pushed)}
        expected = pair.probabilities(prompts[dose.prompt], edits)
        torch.testing.assert_close(found.readout.top_probs[row], expected.topk(3).values, **CLOSE)
        torch.testing.assert_close(found.readout.target_probs[row, 0], expected[7], **CLOSE)
        divergence = (expected * (expected / clean[dose.prompt]).log()).sum()
        torch.testing.assert_close(found.kl[row], divergence, rtol=1e-3, atol=1e-4)
    lengths = [
        [pair.plain.read(prompt.ids, "layers_output", layer)[-1].norm() for layer in (1, 2)] for prompt in prompts
    ]
    torch.testing.assert_close(found.stream, torch.tensor(lengths), rtol=1e-4, atol=1e-4)


def test_attention(pair: Pair) -> None:
    prompts = pair.encode()
    patterns: dict[int, Tensor] = {}
    before = pair.served.attention
    chosen = choose_heads(pair.served, [0, 3])

    found = read_attention(pair.served, Workload(prompts), chosen, [[2], [4]], top_k=2, on_pattern=patterns.__setitem__)

    for row, (prompt, query) in enumerate(zip(prompts, (2, 4), strict=True)):
        read = [pair.plain.read(prompt.ids, "attention_probabilities", layer) for layer in (0, 3)]
        expected = torch.cat([pattern.transpose(0, 1) for pattern in read])
        torch.testing.assert_close(patterns[row], expected, **CLOSE)
        torch.testing.assert_close(found.read_first[row], expected[:, query, 0], **CLOSE)
        torch.testing.assert_close(found.read_probs[row, :, 0], expected[:, query, 1:].amax(-1), **CLOSE)
    assert pair.served.attention == before


def test_kinds_of_heads(llama: Pair) -> None:
    repeated = repeat_random_tokens(llama.served, count=2, length=6)

    found = score_heads(llama.served, Workload(repeated.prompts), choose_heads(llama.served, [1]), repeated.second)

    for row, prompt in enumerate(repeated.prompts):
        pattern = llama.plain.read(prompt.ids, "attention_probabilities", 1).transpose(0, 1)
        second = torch.tensor(list(repeated.second))
        expected = pattern[:, second, second - 1].mean(-1)
        torch.testing.assert_close(found.previous[row], expected, **CLOSE)
        log_probs = llama.plain.logits(prompt.ids, {}).double().log_softmax(-1)
        right = [log_probs[at, prompt.ids[at + 1]] for at in repeated.second[:-1]]
        assert float(found.log_probability[row]) == pytest.approx(float(sum(right)) / len(right), abs=2e-5)


def test_patchscope(pair: Pair) -> None:
    source, target = pair.encode(*PROMPTS)
    states = torch.stack(
        [pair.plain.read(source.ids, "layers_output", layer)[-1] for layer in range(pair.served.num_layers)]
    )[None]
    pairs = [(0, 1), (3, 2)]

    found = read_patchscope(
        pair.served,
        SourceReadings(states, range(4)),
        resolve_target(target.ids, 2),
        pairs,
        categories=[[[4]]],
        max_new_tokens=2,
    )

    for column, (origin, layer) in enumerate(pairs):
        edits = {("layers_output", layer): replacing(states[0, origin], 2)}
        expected = pair.plain.probabilities(target.ids, edits).float()
        torch.testing.assert_close(found.patched.top_probs[0, column], expected.topk(3).values, **CLOSE)
        torch.testing.assert_close(found.patched.target_probs[0, column, 0], expected[4], **CLOSE)
        assert found.continuations[0][column][:1] == [int(expected.argmax())]
    torch.testing.assert_close(found.unpatched.top_probs[0], pair.probabilities(target).topk(3).values, **CLOSE)
    last = torch.stack([pair.plain.read(prompt.ids, "layers_output", 3)[-1] for prompt in (source, target)])
    answers = [int(pair.probabilities(prompt).argmax()) for prompt in (source, target)]
    assert top_tokens(pair.served, last) == answers


CLEAN, CORRUPTED = "The capital of France is", "The capital of Spain is"


@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize("site", ["layers_output", "mlps_output", "attentions_output", "layers_input"])
def test_patching(pair: Pair, site: Any, direction: Any) -> None:
    clean, corrupted = _equally_long(pair)
    grid = make_grid(pair.served, pair_prompts([clean], [corrupted]), [site], layers=[0, 2])
    targets = [[[7, 9], [11]]]

    found = Patcher(pair.served, pair_prompts([clean], [corrupted]), grid, direction, targets=targets).patch(
        work=Workload((), batch_tokens=20)
    )

    own, other = (clean, corrupted) if direction == "noising" else (corrupted, clean)
    for cell, value in zip(grid.cells, found.values[0].tolist(), strict=True):
        state = pair.plain.read(other.ids, site, cell.layer)[cell.column]
        logits = pair.plain.logits(own.ids, {(site, cell.layer): replacing(state, cell.column)})[-1].double()
        assert value == pytest.approx(_difference(logits), abs=1e-4)
    for one, prompt in ((found.clean, clean), (found.corrupted, corrupted)):
        assert one is not None
        assert float(one[0]) == pytest.approx(_difference(pair.plain.logits(prompt.ids, {})[-1].double()), abs=1e-4)
    unmoved = [value for cell, value in zip(grid.cells, found.values[0].tolist(), strict=True) if cell.column == 0]
    assert set(unmoved) == {float((found.clean if direction == "noising" else found.corrupted)[0])}


def test_patching_heads_with_the_divergence(pair: Pair) -> None:
    clean, corrupted = _equally_long(pair)
    pairs = pair_prompts([clean], [corrupted])
    grid = make_grid(pair.served, pairs, ["heads_output"], layers=[1], heads="all")

    found = Patcher(pair.served, pairs, grid, metric="kl").patch()

    states = pair.plain.read(clean.ids, "heads_output", 1)
    reference = pair.plain.logits(clean.ids, {})[-1].double().log_softmax(-1)
    for cell, value in zip(grid.cells, found.values[0].tolist(), strict=True):

        def put(own: Tensor, head: int = cell.column) -> None:
            own[:, head] = states[:, head]

        patched = pair.plain.logits(corrupted.ids, {("heads_output", 1): put})[-1].double().log_softmax(-1)
        assert value == pytest.approx(float((reference.exp() * (reference - patched)).sum()), abs=1e-4)


def test_patching_against_noise_and_zeros(llama: Pair) -> None:
    (clean,) = llama.encode(CLEAN)
    noisy = add_noise(llama.served, [clean], [1, 2], samples=1)
    assert noisy[0].corrupted is not None
    noise = noisy[0].corrupted.noise
    grid = make_grid(llama.served, noisy, ["layers_output"], layers=[1], positions=[2])

    found = Patcher(llama.served, noisy, grid, targets=[[[7, 9], [11]]]).patch()

    state = llama.plain.read(clean.ids, "layers_output", 1)[2]
    edits: Edits = {
        ("token_embeddings", -1): lambda states: states.add_(noise),
        ("layers_output", 1): replacing(state, 2),
    }
    expected = _difference(llama.plain.logits(clean.ids, edits)[-1].double())
    assert float(found.values[0, 0]) == pytest.approx(expected, abs=1e-4)
    zeroed = Patcher(llama.served, ablate([clean]), grid, targets=[[[7, 9], [11]]], ablation="zero").patch()
    logits = llama.plain.logits(clean.ids, {("layers_output", 1): replacing(torch.tensor(0.0), 2)})[-1].double()
    assert float(zeroed.values[0, 0]) == pytest.approx(_difference(logits), abs=1e-4)
    assert zeroed.corrupted is None


def test_paths_and_means_are_those_of_the_local_model(llama: Pair) -> None:
    clean, corrupted = _equally_long(llama)
    local = StandardizedTransformer(llama.plain.model, tokenizer=llama.served.tokenizer, name="local")
    pairs, targets = pair_prompts([clean], [corrupted]), [[[7, 9], [11]]]
    several = ablate([clean, corrupted])

    for receivers in ((), (Receiver(Place("mlps_output", 2)),)):
        here, there = (
            Patcher(
                model, pairs, make_grid(model, pairs, ["heads_output"], layers=[0, 1], heads="all"),
                targets=targets, receivers=receivers,
            ).patch()
            for model in (local, llama.served)
        )  # fmt: skip
        torch.testing.assert_close(there.values, here.values, rtol=1e-4, atol=1e-4)
        assert here.values.std() > 0
    here, there = (
        Patcher(
            model, several, make_grid(model, several, ["mlps_output"], layers=[1]), targets=targets * 2, ablation="mean"
        ).patch()
        for model in (local, llama.served)
    )
    torch.testing.assert_close(there.values, here.values, rtol=1e-4, atol=1e-4)


def _difference(logits: Tensor) -> float:
    return float(logits[[7, 9]].logsumexp(-1) - logits[11])


def _equally_long(pair: Pair) -> tuple[EncodedPrompt, EncodedPrompt]:
    clean, corrupted = pair.encode(CLEAN, CORRUPTED)
    ids = [*corrupted.ids, *clean.ids[len(corrupted.ids) :]][: len(clean.ids)]
    return clean, replace(corrupted, index=0, ids=ids, spans=clean.spans)


def test_rows_of_the_unembedding(llama: Pair) -> None:
    expected = llama.plain.model.get_output_embeddings().weight[[4, 9]]

    torch.testing.assert_close(read_token_rows(llama.served, "unembeddings", [4, 9]), expected)


def test_rows_of_the_head_are_sent_once(llama: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []
    send = experiments.run_passes
    monkeypatch.setattr(experiments, "run_passes", lambda *args: sent.append(args) or send(*args))
    states = torch.randn(3, llama.served.hidden_size)

    for tokens, requests in (([4, 9], 1), ([9, 5, 4, 5], 2), ([5], 2)):
        _, head = find_final_modules(llama.served, tokens)
        assert len(sent) == requests
        torch.testing.assert_close(head(states), llama.plain.model.get_output_embeddings()(states)[:, tokens], **CLOSE)


@pytest.mark.parametrize(
    ("operation", "said"),
    [
        ({"op": "knockout", "layers": [1], "heads": [0]}, "attention"),
        ({"op": "mean", "site": "queries", "layers": [1], "over": 0, "prompts": 0}, "queries"),
        ({"op": "zero", "site": "values", "layers": [1]}, "values"),
    ],
)
def test_what_cannot_be_sent_is_refused_by_name(llama: Pair, operation: dict[str, Any], said: str) -> None:
    check_served(llama.served)
    with pytest.raises(Unsupported) as refusal:
        read_lens(llama.served, Workload(llama.encode(), llama.plan(operation)), [[0], [0]], [1])
    assert said in f"{refusal.value.message} {refusal.value.next_step}"


def test_patching_queries_is_refused_by_name(llama: Pair) -> None:
    check_served(llama.served)
    clean, corrupted = _equally_long(llama)

    with pytest.raises(Unsupported, match="queries of tiny-llama cannot be edited on NDIF"):
        make_grid(llama.served, pair_prompts([clean], [corrupted]), ["queries"], layers=[1])


def test_nothing_as_wide_as_the_vocabulary_comes_back(llama: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    widths: list[int] = []

    def watch(experiment: Callable[..., Any]) -> None:
        import nnterp_mcp.engine.executors.ndif.backend as passes

        run = passes.run_passes

        def counted(*arguments: Any) -> Any:
            found = run(*arguments)
            widths.extend(size for value in tree_leaves(found) if isinstance(value, Tensor) for size in value.shape)
            return found

        monkeypatch.setattr(passes, "run_passes", counted)
        experiment()
        monkeypatch.setattr(passes, "run_passes", run)

    prompts = llama.encode()
    ends = [[len(prompt.ids) - 1] for prompt in prompts]
    watch(lambda: read_lens(llama.served, Workload(prompts), ends, [0, 3]))
    watch(lambda: sweep(llama.served, Workload(prompts), {1: torch.ones(llama.served.hidden_size)}, [1.0]))

    assert widths
    assert max(widths) < llama.served.vocab_size
