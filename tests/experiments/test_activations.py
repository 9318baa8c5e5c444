"""Collected states against plain hooks in float32, and their summaries against NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnterp_mcp.errors import InvalidRequest, Unsupported
from nnterp_mcp.request.operations.request import parse_operation

# What brings nnsight in is imported where it is used: pydantic models that are defined after it break.

PROMPTS = ["The capital of France is", "Rome", "One two three four five six seven", "The capital of Italy"]
SITES = (
    "layers_input",
    "queries",
    "keys",
    "values",
    "heads_output",
    "attentions_output",
    "mlps_output",
    "layers_output",
)


@pytest.fixture(scope="module")
def scene() -> tuple[Any, Any, list[Any]]:
    """A tiny model, its own copy with plain hooks, and prompts."""
    from nnterp_mcp.model.standardized import StandardizedTransformer
    from nnterp_mcp.model.text.tokenization import encode_prompts
    from nnterp_mcp.verification.tiny import tiny_model, tiny_tokenizer
    from tests.engine.plain import FAMILIES, Plain

    model = StandardizedTransformer(tiny_model("llama"), tokenizer=tiny_tokenizer(), name="tiny")
    plain = Plain(tiny_model("llama"), FAMILIES["llama"])
    return model, plain, encode_prompts(model.tokenizer, PROMPTS, "tiny")


def collected(scene: Any, site: str, positions: Any, pool: Any, layers: Any = (1, 2), **options: Any) -> Any:
    """Rows, and their states in the order of the rows."""
    import torch

    from nnterp_mcp.engine.hook_points import Place
    from nnterp_mcp.engine.workload import Workload
    from nnterp_mcp.experiments.activations import collect, index_rows

    model, _, prompts = scene
    rows = index_rows(prompts, positions, pool)
    places = [Place(site, layer) for layer in layers]
    done: list[int] = []
    work = Workload(prompts, progress=lambda count, total, unit: done.append(count), **{"batch_tokens": 16} | options)
    blocks = list(collect(model, work, rows, places))
    assert len(done) == len(blocks) > 1
    assert done[-1] == len(prompts)
    numbers = [number for block in blocks for number in block.rows]
    assert sorted(numbers) == list(range(len(rows)))
    return rows, torch.cat([block.states for block in blocks])[torch.tensor(numbers).argsort()]


@pytest.mark.parametrize("site", SITES)
def test_states_at_every_site_are_those_of_plain_hooks(scene: Any, site: str) -> None:
    import torch

    from nnterp_mcp.engine.hook_points import Place
    from nnterp_mcp.experiments.activations import state_shape

    model, plain, prompts = scene
    rows, states = collected(scene, site, ("all",), "none")

    assert len(rows) == sum(len(prompt.ids) for prompt in prompts)
    assert states.dtype == torch.float32
    assert states.shape[2:] == state_shape(model, prompts, [Place(site, 1), Place(site, 2)])
    for row, state in zip(rows, states, strict=True):
        for place, layer in enumerate((1, 2)):
            expected = plain.read(prompts[row.prompt].ids, site, layer)[row.position]
            if site in ("keys", "values"):
                expected = expected[:: plain.heads // state.shape[1]]
            assert torch.allclose(state[place], expected, atol=1e-5)


def test_embeddings_have_no_layer(scene: Any) -> None:
    import torch

    _, plain, prompts = scene
    rows, states = collected(scene, "token_embeddings", ("last",), "none", layers=[None])

    for row, state in zip(rows, states, strict=True):
        expected = plain.read(prompts[row.prompt].ids, "token_embeddings", -1)[-1]
        assert torch.allclose(state[0], expected, atol=1e-6)


@settings(max_examples=10)
@given(
    start=st.integers(-3, 0),
    stop=st.integers(1, 8),
    pool=st.sampled_from(["none", "mean", "last"]),
    tokens=st.integers(1, 14),
)
def test_pooling(scene: Any, start: int, stop: int, pool: str, tokens: int) -> None:
    import torch

    _, plain, prompts = scene
    rows, states = collected(scene, "layers_output", ("last", start, f":{stop}"), pool, batch_tokens=tokens)

    assert pool == "none" or len(rows) == len(prompts)
    for prompt in prompts:
        length = len(prompt.ids)
        if start < -length:
            continue
        chosen = sorted({length - 1, start % length, *range(length)[:stop]})
        expected = plain.read(prompt.ids, "layers_output", 2)[chosen]
        expected = {"none": expected, "mean": expected.mean(0)[None], "last": expected[-1:]}[pool]
        mine = [number for number, row in enumerate(rows) if row.prompt == prompt.index]
        assert torch.allclose(states[mine][:, 1], expected, atol=1e-5)
        if pool != "mean":
            assert [rows[number].position for number in mine] == (chosen if pool == "none" else chosen[-1:])


def test_interventions_are_in_force(scene: Any) -> None:
    import torch

    from nnterp_mcp.engine.planning.plan import plan

    model, plain, prompts = scene
    zero = parse_operation({"op": "zero", "site": "mlps_output", "layers": [1]})
    rows, states = collected(scene, "layers_output", ("last",), "none", plan=plan(model, [zero], prompts))

    for row, state in zip(rows, states, strict=True):
        found: list[Any] = []
        edits = {("mlps_output", 1): lambda value: value.zero_(), ("layers_output", 2): found.append}
        plain.logits(prompts[row.prompt].ids, edits)
        assert torch.allclose(state[1], found[0][-1], atol=1e-5)


def test_refusals(scene: Any) -> None:
    from nnterp_mcp.engine.hook_points import Place
    from nnterp_mcp.experiments.activations import index_rows, state_shape

    model, _, prompts = scene
    with pytest.raises(Unsupported, match="attention_probs keeps them"):
        state_shape(model, prompts, [Place("attention_probabilities", 0)])
    with pytest.raises(InvalidRequest, match=r"a state at the layers_output of layer 0 has the shape \(.*queries"):
        state_shape(model, prompts, [Place("queries", 0), Place("layers_output", 0)])
    with pytest.raises(InvalidRequest, match="position 9 does not exist"):
        index_rows(prompts, [9], "none")


def test_lengths_and_angles_are_those_of_numpy() -> None:
    import torch

    from nnterp_mcp.experiments.statistics.geometry import compare_groups, measure_norms

    drawn = np.random.default_rng(0).normal(size=(9, 6)).astype(np.float32)
    one, other = drawn[:5] + 1, drawn[5:]
    found = measure_norms(torch.from_numpy(one))
    apart = compare_groups(torch.from_numpy(one), torch.from_numpy(other), [0, 0, 1, 2, 2], [3, 4, 5, 5])

    norms = np.linalg.norm(one, axis=1)
    assert (found.mean, found.deviation) == pytest.approx((norms.mean(), norms.std(ddof=1)), abs=1e-5)
    a, b = one.mean(0), other.mean(0)
    assert apart.cosine == pytest.approx(float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)), abs=1e-6)
    scale = np.linalg.norm(np.concatenate([one, other]), axis=1).mean()
    assert apart.gap == pytest.approx(float(np.linalg.norm(a - b) / scale), abs=1e-6)
    assert measure_norms(torch.from_numpy(one[:1])).deviation is None


def test_groups_that_differ_in_nothing_are_as_far_apart_as_random_ones() -> None:
    import torch

    from nnterp_mcp.experiments.statistics.geometry import compare_groups

    states = torch.randn(400, 256, generator=torch.Generator().manual_seed(0))
    same = compare_groups(states[:200], states[200:], range(200), range(200, 400))
    other = compare_groups(states[:200] + 1, states[200:], range(200), range(200, 400))

    assert abs(same.gap - same.shuffled_gap) < 0.02
    assert other.gap > 5 * other.shuffled_gap
    assert other.cosine < other.shuffled


def test_random_groups_keep_prompts_whole() -> None:
    import torch

    from nnterp_mcp.experiments.statistics.geometry import compare_groups

    # Two prompts: however they are dealt, the groups are the prompts themselves.
    states = torch.randn(10, 4, generator=torch.Generator().manual_seed(1))
    found = compare_groups(states[:3], states[3:], [0] * 3, [1] * 7)

    assert found.shuffled == pytest.approx(found.cosine, abs=1e-12)
    assert found.shuffled_gap == pytest.approx(found.gap, abs=1e-12)


def test_principal_components_are_those_of_the_covariance() -> None:
    import torch

    from nnterp_mcp.experiments.statistics.geometry import principal_components

    states = np.random.default_rng(1).normal(size=(12, 5)) * np.array([5, 3, 1, 0.5, 0.1]) + 7
    found = principal_components(torch.from_numpy(states.astype(np.float32)), 3)
    values, vectors = np.linalg.eigh(np.cov(states.T))

    assert found is not None
    assert found.explained.tolist() == pytest.approx((values[::-1] / values.sum())[:3], abs=1e-5)
    for direction, expected in zip(found.directions.numpy(), vectors.T[::-1], strict=False):
        assert abs(float(direction @ expected)) == pytest.approx(1, abs=1e-5)
        assert direction[np.abs(direction).argmax()] > 0


def test_states_that_do_not_differ_have_no_components() -> None:
    import torch

    from nnterp_mcp.experiments.statistics.geometry import principal_components

    assert principal_components(torch.ones(4, 3), 2) is None
    assert principal_components(torch.ones(1, 3), 2) is None
