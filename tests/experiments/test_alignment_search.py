"""Distributed alignment search on a model into which one direction was built, and against plain hooks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from nnterp_mcp.engine.hook_points import Place
from nnterp_mcp.engine.planning.plan import plan
from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.experiments.alignment_search import AlignmentSearch, Interchange, find_answers
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.text.tokenization import EncodedPrompt
from nnterp_mcp.request.operations import parse_operation
from nnterp_mcp.verification.tiny import tiny_model, tiny_tokenizer

CHOICES = (40, 77)
PLACE = Place("layers_output", 1)
FIRST = 100
COUNT = 180
VECTOR = [0.2] * 32 + [0.0] * 32
AXIS = torch.nn.functional.normalize(torch.tensor(VECTOR), dim=0)


@pytest.fixture(scope="module")
def planted() -> tuple[StandardizedTransformer, Tensor]:
    """A Llama that passes its embeddings on; those of some tokens have a direction by their parity, and noise."""
    weights = tiny_model("llama")
    dice = torch.Generator().manual_seed(1234)
    direction = torch.nn.functional.normalize(torch.randn(64, generator=dice), dim=0)
    with torch.no_grad():
        for block in weights.model.layers:
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
        noise = 0.5 * torch.randn(COUNT, 64, generator=dice)
        noise -= (noise @ direction)[:, None] * direction
        signs = torch.tensor([1.0 if at % 2 else -1.0 for at in range(COUNT)])
        weights.model.embed_tokens.weight[FIRST : FIRST + COUNT] = noise + 4 * signs[:, None] * direction
        weights.model.norm.weight.fill_(1)
        weights.lm_head.weight[list(CHOICES)] = 0.2 * torch.stack([direction, -direction])  # far from saturation
    return StandardizedTransformer(weights, tokenizer=tiny_tokenizer(), check_renaming=False), direction


def pairs(count: int, seed: int, tokens: range) -> list[Interchange]:
    """Pairs of prompts of different lengths; the answer is that of the source's last token."""
    dice = torch.Generator().manual_seed(seed)
    found: list[Interchange] = []
    for at in range(count):
        base, source = (FIRST + tokens[int(torch.randint(len(tokens), (), generator=dice))] for _ in range(2))
        prompts = EncodedPrompt(at, "", [5, 6, base], []), EncodedPrompt(at, "", [7, source], [])
        found.append(Interchange(*prompts, 2, 1, CHOICES[0 if (source - FIRST) % 2 else 1]))
    return found


def test_a_planted_direction_is_recovered(planted: tuple[StandardizedTransformer, Tensor]) -> None:
    model, direction = planted
    search = AlignmentSearch(model, PLACE, CHOICES, steps=80)
    found = search.search(pairs(256, 0, range(140)), pairs(64, 1, range(140, COUNT)), 1, draws=5)

    assert abs(float(found.subspace[:, 0] @ direction)) > 0.99
    assert float(found.subspace.norm()) == pytest.approx(1)
    assert (found.accuracy, found.whole) == (1.0, 1.0)
    assert max(*found.randoms, found.shuffled, found.unpatched) < 0.8


def test_an_interchange_is_that_of_a_plain_hook(planted: tuple[StandardizedTransformer, Tensor]) -> None:
    model = StandardizedTransformer(tiny_model("llama"), tokenizer=tiny_tokenizer(), check_renaming=False)
    search = AlignmentSearch(model, PLACE, CHOICES)
    subspace = search.draw(3, 0)
    chosen = pairs(12, 2, range(COUNT))
    plain = tiny_model("llama")
    right = 0
    for pair in chosen:
        with torch.no_grad():
            source = plain(torch.tensor([pair.source.ids]), output_hidden_states=True).hidden_states[2][0, 1]

            def swap(block: object, args: object, output: Tensor, source: Tensor = source) -> Tensor:
                changed = output.clone()
                changed[0, 2] += (source - output[0, 2]) @ subspace @ subspace.T
                return changed

            hook = plain.model.layers[1].register_forward_hook(swap)
            logits = plain(torch.tensor([pair.base.ids])).logits[0, -1]
            hook.remove()
        right += CHOICES[int(logits[list(CHOICES)].argmax())] == pair.answer

    assert torch.allclose(subspace.T @ subspace, torch.eye(3), atol=1e-6)
    assert search.accuracy(chosen, subspace) == right / 12


def edited() -> Any:
    """A Llama with three interventions as plain hooks: an MLP times 3, a vector after layer 1, a direction removed."""
    weights: Any = tiny_model("llama")
    layers = weights.model.layers
    layers[0].mlp.register_forward_hook(lambda module, args, output: 3 * output)
    layers[1].register_forward_hook(lambda module, args, output: output + torch.tensor(VECTOR))
    layers[2].register_forward_hook(lambda module, args, output: output - (output @ AXIS)[..., None] * AXIS)
    return weights


OPERATIONS: list[dict[str, Any]] = [
    {"op": "scale", "site": "mlps_output", "layers": 0, "factor": 3.0},
    {"op": "add", "vector": VECTOR, "layers": 1},
    {"op": "project_out", "vector": VECTOR, "layers": 2},
]


def test_both_runs_are_under_interventions_as_with_plain_hooks() -> None:
    """The answers to sources, the accuracy of a subspace, and the first step of training."""
    model = StandardizedTransformer(tiny_model("llama"), tokenizer=tiny_tokenizer(), check_renaming=False)
    chosen = pairs(6, 2, range(COUNT))
    operations = [parse_operation(one) for one in OPERATIONS]
    bases, sources = [pair.base for pair in chosen], [pair.source for pair in chosen]
    of_bases, of_sources = (plan(model, operations, prompts) for prompts in (bases, sources))
    search = AlignmentSearch(model, PLACE, CHOICES, steps=1, batch=6, seed=3, of_bases=of_bases, of_sources=of_sources)
    plain, seen = edited(), list[Tensor]()
    plain.model.layers[1].register_forward_hook(lambda module, args, output: seen.append(output))

    def choose(pair: Interchange, subspace: Tensor) -> Tensor:
        with torch.no_grad():
            plain(torch.tensor([pair.source.ids]))
            source = seen[-1][0, pair.from_]

        def swap(block: object, args: object, output: Tensor) -> Tensor:
            moved = (source - output[0, pair.at]) @ subspace @ subspace.T
            return torch.cat([output[:, : pair.at], output[:, pair.at :] + moved], dim=1)

        hook = plain.model.layers[1].register_forward_hook(swap)
        logits = plain(torch.tensor([pair.base.ids])).logits[0, -1, list(CHOICES)]
        hook.remove()
        return logits

    subspace = search.draw(2, 3)
    said = [CHOICES[int(choose(pair, subspace).argmax())] == pair.answer for pair in chosen]
    assert search.accuracy(chosen, subspace) == sum(said) / 6
    assert find_answers(model, sources, of_sources) == [
        int(plain(torch.tensor([source.ids])).logits[0, -1].argmax()) for source in sources
    ]

    numbers = search.draw(2, 3).requires_grad_()
    descent = torch.optim.Adam([numbers], lr=search.rate)
    logits = torch.stack([choose(pair, torch.linalg.qr(numbers).Q) for pair in chosen])
    answers = torch.tensor([CHOICES.index(pair.answer) for pair in chosen])
    torch.nn.functional.cross_entropy(logits, answers).backward()
    descent.step()
    assert search.fit(chosen, 2) == pytest.approx(torch.linalg.qr(numbers.detach()).Q, abs=1e-3)


def test_what_cannot_be_searched_is_refused(planted: tuple[StandardizedTransformer, Tensor]) -> None:
    model, _ = planted
    with pytest.raises(InvalidRequest, match="not as wide"):
        AlignmentSearch(model, Place("heads_output", 1), CHOICES)
    with pytest.raises(InvalidRequest, match="at least 2"):
        AlignmentSearch(model, PLACE, [40])
    with pytest.raises(InvalidRequest, match="65 dimensions"):
        AlignmentSearch(model, PLACE, CHOICES).fit(pairs(2, 0, range(4)), 65)
    with pytest.raises(InvalidRequest, match="not among the choices"):
        AlignmentSearch(model, PLACE, (1, 2)).fit(pairs(2, 0, range(4)), 1)
