"""TransformerLens on the model of a folder: its edge scores, its circuit's metric, and its interchanges, as JSON.

Run by a Python that has TransformerLens 4.3, with the folder of the model and the file of the questions.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformer_lens.model_bridge import TransformerBridge  # pyright: ignore
from transformer_lens.tools.analysis import attribution_patching as edges  # pyright: ignore
from transformer_lens.tools.analysis import interchange  # pyright: ignore

NAMES = {"embed": "embeddings", "logits": "logits"}
INPUTS = {"q_input": " queries", "k_input": " keys", "v_input": " values"}


def name_of(node: Any) -> str:
    """A node as our tables name it."""
    if node.kind in NAMES:
        return NAMES[node.kind]
    return f"MLP {node.layer}" if node.head is None else f"L{node.layer}H{node.head}{INPUTS.get(node.kind, '')}"


def score(model: Any, given: Any) -> dict[str, Any]:
    """The score of each edge, summed over positions, and what the metric is with some edges intact alone."""
    clean, corrupted = (torch.tensor([given[side]]) for side in ("clean", "corrupted"))
    answer, wrong = given["targets"]

    def metric(logits: torch.Tensor) -> torch.Tensor:
        return logits[0, -1, answer] - logits[0, -1, wrong]

    found: Any = edges.attribution_patch(
        model, clean, corrupted, metric, edges.EdgeAttributionConfig(granularity="edge")
    ).edge_scores
    summed: dict[str, float] = {}
    for (writer, reader), value in found.items():
        name = f"{name_of(writer)} > {name_of(reader)}"
        summed[name] = summed.get(name, 0.0) + value
    kept = [pair for pair in found if f"{name_of(pair[0])} > {name_of(pair[1])}" in set(given["kept"])]
    measured: Any = edges.faithfulness(model, clean, corrupted, metric, kept)
    return {"scores": summed, "faithfulness": measured.recovered}


def exchange(model: Any, given: Any) -> dict[str, Any]:
    """The choices' logits under interchanges along our subspace; a subspace that DAS found, and those along it."""
    bases, sources = (torch.tensor(given[side]) for side in ("bases", "sources"))
    choices, place = given["choices"], f"blocks.{given['layer']}.hook_resid_post"
    last = torch.full((len(bases),), bases.shape[1] - 1)

    def answers(tokens: torch.Tensor) -> torch.Tensor:
        return model(tokens)[:, -1, choices]

    states = interchange.collect_activations(model, place, sources, answers, positions=last)

    def run(basis: torch.Tensor) -> Any:
        change = interchange.SubspaceInterchange(basis)
        return interchange.intervened_logits(model, place, change, bases, states, answers, positions=last).tolist()

    targets = torch.tensor([choices.index(answer) for answer in given["answers"]])
    trained: Any = interchange.fit_das(
        model, place, bases, sources, targets, answers, rank=2, base_positions=last, source_positions=last, epochs=5
    )
    return {
        "logits": run(torch.tensor(given["basis"])),
        "das": trained.basis.tolist(),
        "das_logits": run(trained.basis),
    }


def main(folder: str, file: str) -> None:
    given = json.loads(Path(file).read_text(encoding="utf-8"))
    model: Any = TransformerBridge.boot_transformers(folder, device="cpu", dtype=torch.float32).eval()
    print(json.dumps(score(model, given) | exchange(model, given)))


if __name__ == "__main__":
    main(*sys.argv[1:])
