"""Handles that share weights, or that another process has: what a call compares with, how many there are, replays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
import torch

from nnterp_mcp import Laboratory
from nnterp_mcp.commands.reproduce.export import export
from nnterp_mcp.commands.reproduce.replay import replay
from nnterp_mcp.errors import LimitExceeded
from nnterp_mcp.pool.entry import Entry
from nnterp_mcp.pool.queue import Turns
from nnterp_mcp.pool.room import (
    MOST_ADAPTERS,
    MOST_SCALED,
    replaced_by_scaled,
    require_room_for_adapter,
    require_room_for_model,
)
from nnterp_mcp.request.operations import Skip
from nnterp_mcp.runs.store import RunStore
from nnterp_mcp.settings import Settings
from nnterp_mcp.verification.tiny import tiny_model
from tests.adapters import peft, write_adapter
from tests.serving import stdio, text, until

TEXT = "The capital of France is"
PREDICTIONS = ["predictions"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_adapter(tiny_model("llama"), tmp_path / "persona", r=1, target_modules=["down_proj"])


def divergences(result: Any) -> list[float]:
    return [position.kl for position in result.positions]


def test_a_laboratory_compares_with_other_models(tiny: Callable[..., Path], folder: Path) -> None:
    base, seed = str(tiny("llama")), str(tiny("llama", seed=1))
    others = {
        "half": {"model": base, "adapter": f"{folder}@0.5"},
        "seed": {"model": seed},
        "seed, adapted": {"model": seed, "adapter": str(folder)},
    }
    lab = Laboratory(base, adapter=folder, others=others, handle="tiny+persona")
    ids = lab.bench.model.tokenizer(TEXT, return_tensors="pt").input_ids
    own = peft.PeftModel.from_pretrained(tiny_model("llama"), folder).merge_and_unload()(ids).logits.log_softmax(-1)

    for name in ("tiny", *others):
        plain = tiny_model("llama", seed=int(name.startswith("seed")))
        if name in ("half", "seed, adapted"):
            plain = peft.PeftModel.from_pretrained(plain, folder)
            for module in plain.modules():
                if hasattr(module, "set_scale") and name == "half":
                    module.set_scale("default", 0.5)
        other = plain(ids).logits.log_softmax(-1)
        found = lab.call("compare_models", prompts=TEXT, base=name, parts=PREDICTIONS)
        wanted = (own.exp() * (own - other)).sum(-1)[0]
        torch.testing.assert_close(torch.tensor(divergences(found)), wanted, rtol=1e-3, atol=1e-6)
    seconds = lab.bench.seconds
    assert seconds.held == {"seed": lab.bench.base.model.held_bytes, "seed, adapted": 0}  # type: ignore[union-attr]
    seconds.forget("seed")
    assert list(seconds.held) == ["seed, adapted"]
    seconds.forget("seed, adapted")
    assert seconds.held == {}


def entry(handle: str, base: Entry | None = None, scaled: bool = False, used: float = 0) -> Entry:
    return Entry(handle, handle, {}, Turns(1, handle), base=base, scaled=scaled, used=used)


def test_adapters_count_apart_from_models_and_the_scale_used_least_recently_goes() -> None:
    async def count() -> None:  # an entry needs an event loop
        base = entry("base")
        adapters = [entry(f"base+{number}", base) for number in range(MOST_ADAPTERS)]
        scaled = [entry(f"base+0@{number}", base, scaled=True, used=-number) for number in range(2, 2 + MOST_SCALED)]

        require_room_for_model([base, *adapters, *scaled], most=2)
        require_room_for_adapter([base, *adapters[1:], *scaled])
        with pytest.raises(LimitExceeded, match="1 models are loaded, and this server allows 1: base"):
            require_room_for_model([base, *adapters], most=1)
        with pytest.raises(LimitExceeded, match=f"{MOST_ADAPTERS} adapters are loaded"):
            require_room_for_adapter([base, *adapters])
        assert replaced_by_scaled([base, *adapters, *scaled[1:]]) is None
        assert replaced_by_scaled([base, *adapters, *scaled]) is scaled[-1]
        for one in scaled:
            one.edits = (Skip(op="skip", layers=(0,)),)
        with pytest.raises(LimitExceeded, match="have active edits"):
            replaced_by_scaled(scaled)

    anyio.run(count)


@pytest.mark.slow
def test_runs_that_name_other_handles_are_replayed(tiny: Callable[..., Path], folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    with stdio(data=str(data), max_models=2) as client:
        client.call("load_model", model=str(tiny("llama")), adapter=str(folder))
        client.call("load_model", model=str(tiny("llama", seed=1)), adapter=str(folder))
        compared = {
            (model, base): client.call("compare_models", model=model, base=base, prompts=TEXT, parts=PREDICTIONS)
            for model, base in (
                ("tiny-llama", "tiny-llama+persona@0.5"),
                ("tiny-llama+persona", "tiny-llama+persona@0.5"),
                ("tiny-llama+persona", "tiny-llama"),
                ("tiny-llama", "tiny-llama-seed-1"),
                ("tiny-llama", "tiny-llama-seed-1+persona@2"),
            )
        }
        held = text(client.call("session"))
        for scale in range(3, 3 + MOST_SCALED + 2):
            client.call("tokenize", prompts=TEXT, model=f"tiny-llama+persona@{scale}")
        handles = [row[0] for row in client.call("session").structured_content["models"]["rows"]]
        again = client.call("tokenize", prompts=TEXT, model="tiny-llama+persona@0.5")
        client.call("unload_model", model="tiny-llama-seed-1")
        until(lambda: client.call("tokenize", prompts=TEXT, model="tiny-llama").is_error is False)
        client.call("compare_models", model="tiny-llama", prompts=TEXT, parts=PREDICTIONS)
        freed = text(client.call("session"))

    settings = Settings(data=data)
    for pair, answer in compared.items():
        assert not answer.is_error, text(answer)
        assert text(answer).startswith(f"{pair[0]} against {pair[1]}: "), text(answer)
        found = replay(answer.structured_content["run_id"], settings, 1e-5)
        assert found.equal, [field.example for field in found.fields if field.example]
        assert found.environment == []
    kls = {text(answer).partition("mean KL ")[2].partition(" ")[0] for answer in compared.values()}
    assert len(kls) == len(compared)
    last = compared["tiny-llama", "tiny-llama-seed-1+persona@2"]
    script = export(RunStore(settings.runs).read(last.structured_content["run_id"]), data)
    assert "others={" in script
    assert "The process of tiny-llama also holds tiny-llama-seed-1 (" in held
    assert len([name for name in handles if "@" in name]) == MOST_SCALED
    assert "tiny-llama+persona@3" not in handles
    assert not again.is_error
    assert "also holds" not in freed
