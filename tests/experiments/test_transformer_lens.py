"""Edge scores, circuits and interchanges against TransformerLens.

`NNTERP_MCP_LENSES_PYTHON` names a Python that has transformer-lens 4.3, which wants other versions of what this project
uses. It has edge attribution patching at the corrupted end alone, without integration.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from nnterp_mcp import (
    AlignmentSearch,
    EdgeGraph,
    EdgePatcher,
    Interchange,
    Place,
    StandardizedTransformer,
    encode_prompts,
    make_edge_graph,
    make_edge_patcher,
    pair_prompts,
    score_edges,
)
from nnterp_mcp.model.text.tokenization import EncodedPrompt

PYTHON = os.environ.get("NNTERP_MCP_LENSES_PYTHON", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="NNTERP_MCP_LENSES_PYTHON names no Python that has TransformerLens"),
]

CLEAN, CORRUPTED = "The capital of France is Paris, and", "The capital of Spain is Madrid, and"
CHOICES = (40, 77)
LAYER = 1
PAIRS, TOKENS = 6, 5


@dataclass
class Compared:
    """Both libraries on one model."""

    graph: EdgeGraph
    patcher: EdgePatcher
    scores: torch.Tensor
    kept: torch.Tensor
    search: AlignmentSearch
    pairs: list[Interchange]
    basis: torch.Tensor
    theirs: dict[str, Any]


@pytest.fixture(scope="module")
def compared(tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Compared:
    folder = tiny("gpt2")
    model = StandardizedTransformer(str(folder))
    graph = make_edge_graph(model)
    clean, corrupted = (encode_prompts(model.tokenizer, [text], "it") for text in (CLEAN, CORRUPTED))
    (pair,) = pair_prompts(clean, corrupted)
    patcher = make_edge_patcher(graph, pair, "logit_difference", [[CHOICES[0]], [CHOICES[1]]])
    scores = score_edges(patcher, [1.0])
    kept = graph.exists & (torch.rand(graph.exists.shape, generator=torch.Generator().manual_seed(0)) < 0.5)
    drawn = torch.randint(5, 200, (2, PAIRS, TOKENS), generator=torch.Generator().manual_seed(0)).tolist()
    bases, sources = ([EncodedPrompt(at, "", ids, []) for at, ids in enumerate(side)] for side in drawn)
    last = TOKENS - 1
    pairs = [
        Interchange(base, source, last, last, CHOICES[at % 2])
        for at, (base, source) in enumerate(zip(bases, sources, strict=True))
    ]
    search = AlignmentSearch(model, Place("layers_output", LAYER), CHOICES)
    basis = search.draw(3, 1)
    names = [f"{graph.senders[sender]} > {graph.receivers[receiver]}" for sender, receiver in kept.nonzero().tolist()]
    asked = {
        "clean": clean[0].ids,
        "corrupted": corrupted[0].ids,
        "targets": CHOICES,
        "kept": names,
        "bases": drawn[0],
        "sources": drawn[1],
        "answers": [one.answer for one in pairs],
        "choices": CHOICES,
        "layer": LAYER,
        "basis": basis.tolist(),
    }
    file = tmp_path_factory.mktemp("lens") / "asked.json"
    file.write_text(json.dumps(asked))
    script = Path(__file__).with_name("by_transformer_lens.py")
    done = subprocess.run([PYTHON, script, folder, file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Compared(graph, patcher, scores, kept, search, pairs, basis, json.loads(done.stdout.splitlines()[-1]))


def test_edge_scores_are_those_of_its_attribution_patching(compared: Compared) -> None:
    graph, theirs = compared.graph, compared.theirs["scores"]
    edges = graph.exists.nonzero().tolist()
    names = [f"{graph.senders[sender]} > {graph.receivers[receiver]}" for sender, receiver in edges]
    assert set(names) == theirs.keys()

    # It patches clean states into the corrupted run, whose effect has the other sign.
    other = -torch.tensor([theirs[name] for name in names])
    own = compared.scores[graph.exists].float()
    assert float(own.abs().max()) > 1e-2
    torch.testing.assert_close(own, other, atol=1e-5 * float(own.abs().max()), rtol=0)


def test_a_circuit_recovers_what_its_faithfulness_says(compared: Compared) -> None:
    patcher = compared.patcher
    value = float(patcher.run(compared.kept[None])) - patcher.corrupted_value
    recovered = value / (patcher.clean_value - patcher.corrupted_value)
    assert recovered == pytest.approx(compared.theirs["faithfulness"], abs=1e-4)
    assert abs(recovered - 1) > 1e-2


def test_an_interchange_along_a_subspace_gives_its_logits(compared: Compared) -> None:
    theirs = compared.theirs
    for basis, wanted in ((compared.basis, theirs["logits"]), (torch.tensor(theirs["das"]), theirs["das_logits"])):
        found = compared.search.logits(compared.pairs, basis)
        torch.testing.assert_close(found, torch.tensor(wanted), atol=1e-5, rtol=0)
        assert (found - compared.search.logits(compared.pairs, torch.zeros_like(basis))).abs().max() > 1e-3
