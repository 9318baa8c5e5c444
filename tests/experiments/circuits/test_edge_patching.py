"""Edge patching and edge scores against models that are written out receiver by receiver."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nnterp_mcp.engine.planning.plan import plan
from nnterp_mcp.errors import InvalidRequest, Unsupported
from nnterp_mcp.experiments.circuits import edge_scores
from nnterp_mcp.experiments.circuits.edge_graph import EdgeGraph, Node, make_edge_graph
from nnterp_mcp.experiments.circuits.edge_patching import EdgePatcher, make_edge_patcher
from nnterp_mcp.experiments.circuits.edge_scores import midpoints, score_edges
from nnterp_mcp.experiments.patching.corruption import ablate, pair_prompts, put_in_force
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.text.tokenization import encode_prompts
from nnterp_mcp.request.operations import Zero, parse_operation
from nnterp_mcp.verification.tiny import tiny_model, tiny_tokenizer
from tests.experiments.circuits.written_out import WrittenOut, write_out

FAMILIES = ["llama", "gpt2", "gpt_neox", "gemma2"]
CLEAN, CORRUPTED = "The capital of France is Paris, and", "The capital of Spain is Madrid, and"
ANSWER, WRONG = 40, 77


@dataclass
class Case:
    graph: EdgeGraph
    patcher: EdgePatcher
    plain: WrittenOut
    clean: list[int]
    corrupted: list[int]

    def metric(self, logits: Tensor) -> Tensor:
        return logits[ANSWER] - logits[WRONG]

    def written(self, ids: list[int]) -> Tensor:
        return self.plain.run(ids)[1]

    def expected(self, intact: Tensor) -> float:
        """The metric with every other edge patched."""
        logits, _ = self.plain.run(self.clean, corrupted=self.written(self.corrupted), intact=intact)
        return float(self.metric(logits))


def standardized(family: str, change: Callable[[Any], None] = lambda module: None) -> StandardizedTransformer:
    weights = tiny_model(family)
    weights.requires_grad_(False)
    change(weights)
    return StandardizedTransformer(weights, tokenizer=tiny_tokenizer(), name=family, check_renaming=False)


def case_of(model: StandardizedTransformer) -> Case:
    graph = make_edge_graph(model)
    clean, corrupted = (encode_prompts(model.tokenizer, [text], "it") for text in (CLEAN, CORRUPTED))
    (pair,) = pair_prompts(clean, corrupted)
    patcher = make_edge_patcher(graph, pair, "logit_difference", [[ANSWER], [WRONG]])
    plain = write_out(model.module, len(clean[0].ids))
    return Case(graph, patcher, plain, clean[0].ids, corrupted[0].ids)


@pytest.fixture(scope="module")
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        yield case_of(standardized(request.param))
    torch.set_num_threads(before)


every_family = pytest.mark.parametrize("case", FAMILIES, indirect=True)
one_family = pytest.mark.parametrize("case", ["llama"], indirect=True)


@every_family
def test_senders_write_what_they_add_to_the_stream(case: Case) -> None:
    assert torch.allclose(case.patcher.clean, case.written(case.clean), atol=1e-5)
    assert torch.allclose(case.patcher.corrupted, case.written(case.corrupted), atol=1e-5)


@every_family
def test_any_set_of_edges_is_patched_as_a_loop_over_receivers_would(case: Case) -> None:
    exists = case.graph.exists
    dice = torch.Generator().manual_seed(0)
    drawn = [exists & (torch.rand(exists.shape, generator=dice) < share) for share in (0.95, 0.6, 0.2)]
    heads = next(at for at, node in enumerate(case.graph.receivers) if node == Node("keys", 2, 1))
    single = exists.clone()
    single[0, heads] = False
    intact = torch.stack([*drawn, single, exists, torch.zeros_like(exists)])
    found = case.patcher.run(intact)

    wanted = [case.expected(one) for one in intact]
    assert found.tolist() == pytest.approx(wanted, abs=2e-5)
    assert len({round(value, 5) for value in wanted}) == len(wanted)
    assert [case.patcher.clean_value, case.patcher.corrupted_value] == pytest.approx(wanted[-2:], abs=2e-5)
    (effect,) = case.patcher.patch_edges([(0, heads)]).tolist()
    assert effect == pytest.approx(wanted[3] - wanted[4], abs=2e-5)


@every_family
def test_scores_are_slopes_along_each_receivers_input(case: Case) -> None:
    shares = [0.0, 0.3, 1.0]
    clean, corrupted = case.written(case.clean), case.written(case.corrupted)
    wanted = torch.zeros(case.graph.exists.shape)
    for share in shares:
        entry = clean[0] + share * (corrupted[0] - clean[0])
        with torch.enable_grad():
            added = torch.zeros(len(case.graph.receivers), *entry.shape, requires_grad=True)
            (slope,) = torch.autograd.grad(case.metric(case.plain.run(case.clean, added=added, entry=entry)[0]), added)
        wanted += torch.einsum("sph,rph->sr", corrupted - clean, slope) / len(shares)
    wanted = torch.where(case.graph.exists, wanted, 0)

    found = score_edges(case.patcher, shares)
    assert torch.allclose(found.float(), wanted, atol=1e-5 * float(wanted.abs().max()))
    assert float(wanted.abs().max()) > 1e-2


@one_family
def test_layers_that_do_not_fit_the_memory_together_are_scored_pass_by_pass(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = score_edges(case.patcher, midpoints(2))
    monkeypatch.setattr(edge_scores, "_SHARE", 0.0)
    assert torch.allclose(score_edges(case.patcher, midpoints(2)), whole, atol=1e-6)


class Straight(nn.Module):
    """In the place of a norm."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight: nn.Parameter = norm.weight

    def forward(self, states: Tensor) -> Tensor:
        return states * self.weight


def straighten(model: Any) -> None:
    """Makes a Llama linear: norms that only multiply, uniform attention, MLPs without a bend."""
    for block in model.model.layers:
        block.input_layernorm = Straight(block.input_layernorm)
        block.post_attention_layernorm = Straight(block.post_attention_layernorm)
        block.self_attn.q_proj.weight.zero_()
        block.mlp.gate_proj.weight.zero_()
    model.model.norm = Straight(model.model.norm)


def test_scores_are_the_effects_of_patches_in_a_linear_model() -> None:
    with torch.no_grad():
        case = case_of(standardized("llama", straighten))
        values = [
            (sender, receiver)
            for sender, receiver in case.graph.exists.nonzero().tolist()
            if case.graph.receivers[receiver].kind in ("values", "logits")
        ]
        effects = case.patcher.patch_edges(values)
    scores = score_edges(case.patcher, [0.0])[tuple(zip(*values, strict=True))]

    assert scores.tolist() == pytest.approx(effects.tolist(), abs=1e-4)
    assert float(effects.abs().max()) > 0.1


@pytest.mark.parametrize("family", ["opt", "mamba"])
def test_a_model_whose_edges_cannot_be_told_apart_is_refused_by_name(family: str) -> None:
    with pytest.raises(Unsupported, match=f"of {family}"):
        make_edge_graph(standardized(family))


def test_code_that_needs_one_row_for_each_prompt_is_refused_by_name() -> None:
    with pytest.raises(Unsupported, match="the code of bloom"):
        case_of(standardized("bloom"))


@one_family
def test_pairs_have_tokens_that_correspond(case: Case) -> None:
    tokenizer = case.graph.model.tokenizer
    clean, longer = (encode_prompts(tokenizer, [text], "it") for text in (CLEAN, f"{CORRUPTED} a"))
    with pytest.raises(InvalidRequest, match="do not correspond"):
        make_edge_patcher(case.graph, pair_prompts(clean, longer)[0], "logit_difference", [[ANSWER], [WRONG]])
    with pytest.raises(Unsupported, match="between a clean and a corrupted prompt"):
        make_edge_patcher(case.graph, ablate(clean)[0], "logit_difference", [[ANSWER], [WRONG]])


def test_operations_act_as_the_same_change_of_weights_does() -> None:
    def without_a_head(module: Any) -> None:
        module.model.layers[1].self_attn.o_proj.weight.data[:, 16:32] = 0

    changed = case_of(standardized("llama", without_a_head))
    model = standardized("llama")
    clean, corrupted = (encode_prompts(model.tokenizer, [text], "it") for text in (CLEAN, CORRUPTED))
    zero = [Zero(site="heads_output", layers=1, heads=1)]
    operated = put_in_force(pair_prompts(clean, corrupted), lambda prompts: plan(model, zero, prompts))
    patcher = make_edge_patcher(make_edge_graph(model), operated[0], "logit_difference", [[ANSWER], [WRONG]])

    assert patcher.clean_value == pytest.approx(changed.patcher.clean_value, abs=1e-5)
    assert torch.allclose(patcher.corrupted, changed.patcher.corrupted, atol=1e-5)
    scores, wanted = (score_edges(one, midpoints(2)) for one in (patcher, changed.patcher))
    assert torch.allclose(scores, wanted, atol=1e-5)
    edges = [(0, 3), (6, -1), (2, 40), (4, 50)]
    assert torch.allclose(patcher.patch_edges(edges), changed.patcher.patch_edges(edges), atol=1e-5)

    steered = [parse_operation({"op": "add", "vector": {"positive": " a"}, "layers": 1, "positions": "last"})]
    added = put_in_force(pair_prompts(clean, corrupted), lambda prompts: plan(model, steered, prompts))
    with pytest.raises(Unsupported, match="does not add up to its residual stream"):
        make_edge_patcher(patcher.graph, added[0], "logit_difference", [[ANSWER], [WRONG]])
