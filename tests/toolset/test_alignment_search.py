"""`make_vector` by alignment search: a planted direction, and subspaces in the tools that take them."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.laboratory import Laboratory
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.settings import Settings
from nnterp_mcp.toolset import specs
from nnterp_mcp.toolset.make_vector import SPEC, aligned
from nnterp_mcp.toolset.make_vector.result import MakeVectorResult
from nnterp_mcp.toolset.run_prompts.result import RunPromptsResult
from nnterp_mcp.verification.tiny import tiny_model, tiny_tokenizer

PYVENE = os.environ.get("NNTERP_MCP_PYVENE_PYTHON", "")

WORDS = "abcdefghijklmnopqrstuvwxyz"
ANSWERS = (40, 77)
LAYER = 1


def plant(scale: float) -> tuple[StandardizedTransformer, Tensor]:
    """A Llama that passes embeddings on, in which letters have a direction by their parity, read by two answers."""
    weights = tiny_model("llama")
    dice = torch.Generator().manual_seed(1234)
    direction = torch.nn.functional.normalize(torch.randn(64, generator=dice), dim=0)
    tokenizer = tiny_tokenizer()
    letters = [tokenizer(word, add_special_tokens=False).input_ids[0] for word in WORDS]
    with torch.no_grad():
        for block in weights.model.layers:
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
        noise = 0.5 * torch.randn(len(letters), 64, generator=dice)
        noise -= (noise @ direction)[:, None] * direction
        signs = torch.tensor([1.0 if at % 2 else -1.0 for at in range(len(letters))])
        weights.model.embed_tokens.weight[letters] = noise + 4 * signs[:, None] * direction
        weights.model.norm.weight.fill_(1)
        weights.lm_head.weight[list(ANSWERS)] = scale * torch.stack([direction, -direction])
    return StandardizedTransformer(weights, tokenizer=tokenizer, check_renaming=False), direction


def pairs(count: int, seed: int = 0) -> dict[str, Any]:
    """Pairs of prompts that end in a letter, and the answer to the source's."""
    dice = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(WORDS), (2, count), generator=dice).tolist()
    bases, sources = ([f"1 {WORDS[at]}" for at in side] for side in drawn)
    return {
        "positive": bases,
        "negative": sources,
        "answers": [{"id": ANSWERS[0 if at % 2 else 1]} for at in drawn[1]],
    }


def search(model: StandardizedTransformer, folder: Path, **given: Any) -> tuple[Laboratory, MakeVectorResult]:
    lab = Laboratory(model, settings=Settings(data=folder))
    found = lab.call("make_vector", name="parity", method="alignment_search", layers=LAYER, **given)
    assert isinstance(found, MakeVectorResult)
    return lab, found


def test_a_planted_direction_is_found_next_to_its_controls(tmp_path: Path) -> None:
    model, direction = plant(0.2)
    lab, found = search(model, tmp_path, **pairs(160))
    (row,) = found.aligned

    assert abs(float(lab.bench.find_vector("parity")[LAYER] @ direction)) > 0.99
    assert (row.accuracy, row.whole, len(row.randoms)) == (1.0, 1.0, 20)
    assert row.untrained is not None
    assert row.control < 0.9
    assert "100 % of 80 other pairs give the counterfactual answer" in lab.show(found)
    assert "only roughly" not in lab.show(found)
    assert len(lab.figure(found).panels) == 1


@pytest.mark.skipif(not PYVENE, reason="NNTERP_MCP_PYVENE_PYTHON names no Python that has pyvene")
def test_pyvene_finds_the_same_direction(tmp_path: Path) -> None:
    model, direction = plant(0.2)
    given = pairs(160)
    lab, found = search(model, tmp_path / "data", **given)
    sides = ([model.tokenizer(text).input_ids for text in given[side]] for side in ("positive", "negative"))
    rows = [
        {"base": base, "source": source, "answer": answer["id"]}
        for base, source, answer in zip(*sides, given["answers"], strict=True)
    ]
    descent = {"steps": 100, "batch": 16, "rate": 0.05}
    asked = {"layer": LAYER, "choices": list(ANSWERS), "train": rows[::2], "test": rows[1::2], **descent}
    (tmp_path / "pairs.json").write_text(json.dumps(asked))
    model.module.save_pretrained(tmp_path / "model")
    script = Path(__file__).parents[1] / "experiments" / "pyvene_search.py"
    command = [PYVENE, str(script), str(tmp_path / "model"), str(tmp_path / "pairs.json")]
    run = subprocess.run(command, check=True, capture_output=True, text=True, env={"PATH": os.environ["PATH"]})
    theirs = json.loads(run.stdout.splitlines()[-1])

    assert found.aligned[0].accuracy == theirs["accuracy"] == 1.0
    other = torch.nn.functional.normalize(torch.tensor(theirs["direction"]), dim=0)
    ours = lab.bench.find_vector("parity")[LAYER]
    assert abs(float(other @ direction)) > 0.99
    assert abs(float(other @ ours)) > 0.98


def test_interventions_are_active_in_every_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aligned, "_STEPS", 40)
    model, direction = plant(0.2)
    given = pairs(64)
    removed = {"op": "project_out", "vector": direction.tolist(), "layers": LAYER + 1}
    lab, lost = search(model, tmp_path, **given, interventions=[removed])
    assert lost.aligned[0].certainty == pytest.approx(0.5, abs=1e-4), "the last layers say nothing of the letter"
    assert "Active interventions: project_out" in lab.show(lost)

    given["answers"] = [{"id": sum(ANSWERS) - answer["id"]} for answer in given["answers"]]
    _, turned = search(model, tmp_path, **given, interventions=[{"op": "scale", "factor": -1.0, "layers": 0}])
    assert (turned.aligned[0].accuracy, turned.aligned[0].whole) == (1.0, 1.0)


def test_a_saturated_answer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aligned, "_STEPS", 40)
    model, _ = plant(1.0)
    lab, found = search(model, tmp_path, **pairs(64))
    assert "where the loss is flat: the direction is found only roughly" in lab.show(found)


def test_a_subspace_is_projected_out_and_patched_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aligned, "_STEPS", 3)
    model, _ = plant(0.2)
    lab, _ = search(model, tmp_path, **pairs(48), dimensions=3)
    basis = lab.bench.find_vector("parity")[LAYER]
    assert basis.shape == (3, 64)
    assert torch.allclose(basis @ basis.T, torch.eye(3), atol=1e-5)

    plain = tiny_model("llama").eval()
    plain.load_state_dict(model.module.state_dict())
    ids, source = (model.tokenizer(text, return_tensors="pt").input_ids for text in ("1 a", "1 b"))
    state = plain(source, output_hidden_states=True).hidden_states[LAYER + 1][0, -1]
    for operation, other in (
        ({"op": "project_out", "vector": "parity", "positions": "last"}, torch.zeros(64)),
        ({"op": "patch", "along": "parity", "positions": "last", "from": {"prompt": "1 b"}}, state),
    ):

        def change(block: object, args: object, output: Tensor, other: Tensor = other) -> Tensor:
            changed = output.clone()
            changed[0, -1] += (other - output[0, -1]) @ basis.T @ basis
            return changed

        hook = plain.model.layers[LAYER].register_forward_hook(change)
        wanted = plain(ids).logits[0, -1].softmax(-1)[list(ANSWERS)]
        hook.remove()
        edits = [operation | {"layers": LAYER}]
        targets = {str(token): {"id": token} for token in ANSWERS}
        seen = lab.call("run_prompts", prompts=["1 a"], targets=targets, interventions=edits)
        assert isinstance(seen, RunPromptsResult)
        assert seen.rows[0].probabilities[0] == pytest.approx(wanted.tolist())
    with pytest.raises(InvalidRequest, match="a subspace of 3 dimensions, and one direction is needed"):
        lab.call("steer", prompts=["1 a"], vector="parity", layers=LAYER, factors=1)


def test_what_cannot_be_searched_is_refused(tmp_path: Path) -> None:
    model, _ = plant(0.2)
    assert SPEC.parse({"name": "it", "method": "alignment_search", "layers": 0, **pairs(8)}).layers == 0
    with pytest.raises(InvalidRequest, match="needs layers, each of which"):
        SPEC.parse({"name": "it", "method": "alignment_search", **pairs(8)})
    with pytest.raises(InvalidRequest, match="6 base prompts and 6 source prompts"):
        search(model, tmp_path, **pairs(6))
    edit = {"op": "patch", "site": "attention_probabilities", "layers": 1, "from": {}, "along": [1.0]}
    with pytest.raises(InvalidRequest, match="no along at attention_probabilities"):
        specs()["run_prompts"].parse({"prompts": "1 a", "interventions": [edit]})
