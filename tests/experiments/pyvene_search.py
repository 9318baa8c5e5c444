"""pyvene's alignment search, run by a Python that has pyvene: of the pairs in a file, on the model of a folder.

Prints the interchange accuracy on the pairs to measure and the subspace, as JSON.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import torch


def main(folder: str, file: str) -> None:
    """Trains on some pairs with the optimizer of the file, and measures on the others."""
    import pyvene  # pyright: ignore[reportMissingImports] - an environment of its own has it
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    given = json.loads(Path(file).read_text(encoding="utf-8"))
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    place = {"layer": given["layer"], "component": "block_output", "low_rank_dimension": 1}
    config: Any = pyvene.IntervenableConfig(place, pyvene.LowRankRotatedSpaceIntervention)
    searched: Any = pyvene.IntervenableModel(config, model.eval(), use_fast=False)
    searched.set_device("cpu")
    searched.disable_model_gradients()
    choices = given["choices"]

    def run(pairs: list[Any]) -> tuple[torch.Tensor, torch.Tensor]:
        base, source = (torch.tensor([pair[side] for pair in pairs]) for side in ("base", "source"))
        last = [[[base.shape[1] - 1]] * len(pairs)]
        _, output = searched({"input_ids": base}, [{"input_ids": source}], {"sources->base": (last, last)})
        answers = torch.tensor([choices.index(pair["answer"]) for pair in pairs])
        return output.logits[:, -1][:, choices], answers

    descent = torch.optim.Adam(list(searched.get_trainable_parameters()), lr=given["rate"])
    slowing = torch.optim.lr_scheduler.LinearLR(descent, 1.0, 0.01, given["steps"])
    dice = random.Random(0)
    for _ in range(given["steps"]):
        descent.zero_grad()
        torch.nn.functional.cross_entropy(*run(dice.sample(given["train"], given["batch"]))).backward()
        descent.step()
        slowing.step()
    with torch.no_grad():
        logits, answers = run(given["test"])
    (found,) = searched.interventions.values()
    rotation = found[0] if isinstance(found, list | tuple) else found
    direction = rotation.rotate_layer.weight.detach().flatten().tolist()
    print(json.dumps({"accuracy": float((logits.argmax(-1) == answers).double().mean()), "direction": direction}))


if __name__ == "__main__":
    main(*sys.argv[1:])
