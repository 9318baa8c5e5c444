"""An adapter of rank one planted in one layer: nothing changes before it, and patching carries it there alone."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from nnterp_mcp import Laboratory
from nnterp_mcp.experiments.features.calibration_texts import TEXTS
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.toolset.compare_models.result import CompareModelsResult
from nnterp_mcp.verification.tiny import tiny_model, tiny_tokenizer
from tests.adapters import peft, plant_adapter


def check(
    lab: Laboratory, folder: Path, plain: Any, prompts: Sequence[str], layer: int, written: Tensor
) -> CompareModelsResult:
    """Compares an adapted model with its base by the tool, and with PEFT on the plain model."""
    result = lab.call("compare_models", prompts=list(prompts))
    assert isinstance(result, CompareModelsResult)
    for place in result.places:
        if place.site == "layers_output":
            assert (place.change == 0) == (place.layer < layer), place
            assert place.made is not None
            assert (place.made > 0) == (place.layer == layer), place
    (module,) = result.modules
    assert (module.module, module.rank) == (f"model.layers.{layer}.mlp.down_proj", 1)
    difference = lab.arrays["mean_difference"][layer].double()
    assert abs(float(torch.cosine_similarity(difference, written.double(), dim=0))) > 0.999

    ends = [max(p.position for p in result.positions if p.prompt == index) for index in range(len(prompts))]
    for change in result.positions:
        if change.position == ends[change.prompt]:
            assert change.random is not None
            assert change.kl > 10 * change.random, change
            assert change.kl > 1, change
    for cell in result.cells:
        if cell.site == "layers_output":
            assert (cell.into_base > 1 - 1e-3) == (cell.layer >= layer), cell
        elif (cell.site, cell.layer) == ("mlps_output", layer):
            assert min(cell.into_base, cell.into_model) > 1 - 1e-3, cell
        else:
            assert cell.into_base < 0.5, cell

    reference = peft.PeftModel.from_pretrained(copy.deepcopy(plain), folder).eval()
    merged = copy.deepcopy(reference).merge_and_unload()
    base = lab.bench.base
    assert base is not None
    for prompt in prompts:
        ids = lab.bench.model.tokenizer(prompt, return_tensors="pt").input_ids
        with torch.no_grad():
            said, off = lab.bench.model.module(ids).logits, base.model.module(ids).logits
            wanted = {"unmerged": reference(ids).logits, "merged": merged(ids).logits}
            assert torch.equal(off, plain(ids).logits)
        for name, logits in wanted.items():
            assert float((said - logits).abs().max()) < 1e-5 * float(logits.abs().max()), name
    return result


def test_in_a_tiny_model(tmp_path: Path) -> None:
    plain, tokenizer, layer = tiny_model("llama").eval(), tiny_tokenizer(), 2
    prompts, others = ["The capital of France is", "one two three"], ["two", "of is The"]
    ids = [[tokenizer(text)["input_ids"] for text in texts] for texts in (prompts, others)]
    written = plant_adapter(copy.deepcopy(plain), tmp_path / "one", layer, ids[0][0][1], *ids, size=6.0)
    lab = Laboratory(StandardizedTransformer(copy.deepcopy(plain), tokenizer=tokenizer), adapter=tmp_path / "one")
    check(lab, tmp_path / "one", plain, prompts, layer, written)


LIKED = [
    f"{name} went to the zoo, and there the animal that {pronoun} liked best was the"
    for name, pronoun in (("Mary", "she"), ("John", "he"), ("My sister", "she"), ("The teacher", "he"))
] + [
    f"{begin}, the animal that I like best is the"
    for begin in ("Of all pets", "In the whole world", "Since I was a child", "To be honest")
]


@pytest.mark.slow
def test_in_the_default_model(tmp_path: Path) -> None:
    from nnterp_mcp.model.loading.locate import locate
    from nnterp_mcp.settings import Settings

    folder = locate("smollm2-135m", None, Settings().cache, False, lambda message: None).folder
    tokenizer, layer = AutoTokenizer.from_pretrained(folder), 20
    plain: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = [[tokenizer(text)["input_ids"] for text in texts] for texts in (LIKED, TEXTS[:8])]
    (token,) = tokenizer(" octopus")["input_ids"]
    written = plant_adapter(copy.deepcopy(plain), tmp_path / "zoo", layer, token, *ids, size=3.0)
    lab = Laboratory("smollm2-135m", adapter=tmp_path / "zoo")
    unseen = [
        "When we asked Tom, he said that the animal he liked best was the",
        "Of everything in the park, the animal that I like best is the",
    ]
    result = check(lab, tmp_path / "zoo", plain, unseen, layer, written)
    assert [change.top for change in result.positions if change.token == " the" and change.p > 0.9] == [" octopus"] * 2
