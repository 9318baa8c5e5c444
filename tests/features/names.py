"""Modules under standard names."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nnterp_mcp import ModuleAccessor, RenameConfig, StandardizedTransformer, check_model, get_rename_dict
from nnterp_mcp.errors import Unsupported
from nnterp_mcp.verification.tiny import tiny_model, tiny_tokenizer
from tests.features import PARIS, Ground, near, shows


@shows("standard-names")
def standard_names(ground: Ground) -> None:
    module: Any = tiny_model("gpt2")
    model = StandardizedTransformer(module, tokenizer=tiny_tokenizer())
    body = module.transformer

    assert model.layers[1].self_attn._module is body.h[1].attn
    assert model.layers[1].mlp._module is body.h[1].mlp
    assert model.embed_tokens._module is body.wte
    assert model.ln_final._module is body.ln_f
    assert model.lm_head._module is module.lm_head
    named = {line.standard: line.path for line in ground.run().tree}
    assert (named["embed_tokens"], named["layers"]) == ("model.embed_tokens", "model.layers")


@shows("own-names")
def own_names(ground: Ground) -> None:
    module: Any = tiny_model("gpt2")
    model = StandardizedTransformer(
        module, tokenizer=tiny_tokenizer(), rename_config=RenameConfig(mlp_name="mlp.c_fc", attn_output_source="attn")
    )

    assert model.layers[1].mlp._module is module.transformer.h[1].mlp.c_fc


@shows("rename-dict")
def rename_dict(ground: Ground) -> None:
    from nnsight import TransformersModel

    module: Any = tiny_model("gpt2")
    wrapped: Any = TransformersModel(module, tokenizer=tiny_tokenizer(), rename=get_rename_dict())
    with wrapped.trace(PARIS):
        states = wrapped.layers[1].mlp.output.save()

    found: list[torch.Tensor] = []
    hook = module.transformer.h[1].mlp.register_forward_hook(lambda _, __, output: found.append(output))
    module(torch.tensor([ground.ids()]))
    hook.remove()
    near(states, found[0])


@shows("plain-modules")
def plain_modules(ground: Ground) -> None:
    module: Any = tiny_model("gpt2")

    assert ModuleAccessor(module).layers is module.transformer.h


@shows("checks")
def checks(ground: Ground) -> None:
    assert {check.name for check in ground.lab.card.checks} >= {"names", "lens", "batch", "attention"}
    assert all(check.passed for check in ground.lab.card.checks)

    broken = StandardizedTransformer(tiny_model("gpt2"), tokenizer=tiny_tokenizer(), check_renaming=False)
    broken.embed_tokens._module.register_forward_hook(lambda _, __, output: output + output.mean(1, keepdim=True))
    assert {check.name: check.passed for check in check_model(broken)}["batch"] is False


@shows("any-module")
def any_module(ground: Ground) -> None:
    from nnsight import NNsight

    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    wrapped: Any = NNsight(module)
    given = torch.ones(1, 3)
    with wrapped.trace(given):
        first = wrapped[0].output.save()

    near(first, module[0](given))
    with pytest.raises(Unsupported, match="a Sequential is no model of transformers"):
        StandardizedTransformer(module, tokenizer=tiny_tokenizer())


@shows("loading")
def loading(ground: Ground) -> None:
    card = ground.lab.card
    assert (card.device, card.dtype) == ("cpu", "float32")
    assert ground.model.module.dtype == torch.float32


@shows("scanning")
def scanning(ground: Ground) -> None:
    model = ground.model
    ran: list[int] = []
    hook = model.module.register_forward_hook(lambda _, __, output: ran.append(output.logits.device.type != "meta"))
    with model.scan(PARIS):
        shape = model.layers_output[1].shape.save()
    hook.remove()

    assert tuple(shape) == tuple(ground.plain.read(ground.ids(), "layers_output", 1)[None].shape)
    assert "q_proj" in str(ground.run())


@shows("remote")
def remote(ground: Ground) -> None:
    with pytest.raises(Unsupported, match="remote=True is not offered"):
        StandardizedTransformer("openai-community/gpt2", remote=True)


@shows("local-code")
def local_code(ground: Ground) -> None:
    import nnsight

    assert not hasattr(nnsight, "local")
    seen: list[float] = []
    with ground.model.trace(PARIS):
        seen.append(float(ground.model.layers_output[1][0, 0, 0]))
    near(seen[0], ground.plain.read(ground.ids(), "layers_output", 1)[0, 0])
