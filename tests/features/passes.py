"""Values of one forward pass: read, computed with, changed, passed by."""

from __future__ import annotations

from typing import Any

import nnsight
import pytest
import torch
from nnsight.intervention.interleaver import OutOfOrderError
from torch import Tensor, nn

from nnterp_mcp.errors import InvalidRequest
from tests.features import PARIS, Ground, clear, far, near, shows

MADRID = "Madrid is"


def hooked(ground: Ground, path: str) -> tuple[Tensor, Tensor]:
    """What a module of the plain model reads and returns."""
    found: list[Any] = []
    module: nn.Module = ground.plain.model.get_submodule(path)
    hook = module.register_forward_hook(lambda _, args, output: found.extend((args[0], output)))
    ground.logits()
    hook.remove()
    return found[0], found[1]


@shows("tracing")
def tracing(ground: Ground) -> None:
    model = ground.model
    with model.trace(PARIS):
        logits = model.logits.save()

    near(logits[0], ground.logits())
    ground.says(ground.run())


@shows("answers")
def answers(ground: Ground) -> None:
    model = ground.model
    with model.trace([PARIS, MADRID]):
        probs = model.next_token_probs.save()

    near(probs[1], ground.logits(prompt=MADRID)[-1].softmax(-1))
    ground.says(ground.run())


@shows("inputs-and-outputs")
def inputs_and_outputs(ground: Ground) -> None:
    model = ground.model
    with model.trace(PARIS):
        arguments = model.layers[1].mlp.down_proj.inputs.save()
        given = model.layers[1].mlp.down_proj.input.save()
        made = model.layers[1].mlp.down_proj.output.save()

    took, gave = hooked(ground, "model.layers.1.mlp.down_proj")
    near(given, took)
    near(made, gave)
    near(arguments[0][0], took)
    assert "heads_output" in str(ground.run())


@shows("saving")
def saving(ground: Ground) -> None:
    model = ground.model
    with model.trace(PARIS):
        kept = nnsight.save(model.layers_output[1])
        also = model.layers_output[2].save()

    near(kept[0], ground.plain.read(ground.ids(), "layers_output", 1))
    near(also[0], ground.plain.read(ground.ids(), "layers_output", 2))
    ground.run()
    near(ground.lab.arrays["states"][0, 0], kept[0, -1])


@shows("computing")
def computing(ground: Ground) -> None:
    model = ground.model
    with model.trace(PARIS):
        longest = model.layers_output[1].norm(dim=-1).argmax(-1).save()

    states = ground.plain.read(ground.ids(), "layers_output", 1)
    assert int(longest) == int(states.norm(dim=-1).argmax())
    plain: Any = ground.plain.model
    log_probs = plain.lm_head(plain.model.norm(states[-1])).double().log_softmax(-1)
    (layer,) = ground.run().readings[0].layers
    near(layer.entropy, -(log_probs.exp() * log_probs).sum())


@shows("order")
def order(ground: Ground) -> None:
    model = ground.model
    with pytest.raises(OutOfOrderError, match="already ran past"), model.trace(PARIS):
        (model.layers_output[2] + model.layers_output[1]).save()

    def double(states: Tensor) -> None:
        states *= 2

    ground.says(ground.run(), {("mlps_output", 2): clear, ("attentions_output", 1): double})


@shows("in-place")
def in_place(ground: Ground) -> None:
    model = ground.model
    with model.trace(PARIS):
        model.layers_output[1][:, 2, :8] = 0
        logits = model.logits.save()

    def edit(states: Tensor) -> None:
        states[2, :8] = 0

    near(logits[0], ground.logits({("layers_output", 1): edit}))
    far(logits[0], ground.logits())
    ground.says(ground.run(), {("layers_output", 1): edit})


@shows("replacing")
def replacing(ground: Ground) -> None:
    model = ground.model
    reads = [ground.plain.read(ground.ids(prompt), "mlps_output", 1)[-1] for prompt in ("Madrid is", "Paris is")]
    mean = torch.stack(reads).mean(0)
    with model.trace(PARIS):
        model.mlps_output[1] = mean.expand(1, 6, -1)
        logits = model.logits.save()

    def edit(states: Tensor) -> None:
        states[:] = mean

    near(logits[0], ground.logits({("mlps_output", 1): edit}))
    ground.says(ground.run(), {("mlps_output", 1): edit})


@shows("errors")
def errors(ground: Ground) -> None:
    model = ground.model
    with pytest.raises(IndexError, match="out of bounds"), model.trace(PARIS):
        model.layers_output[1][:, :, 9999] = 0
    with pytest.raises(InvalidRequest, match="layer 99 does not exist: tiny-llama has layers 0 to 3"):
        ground.run()

    with model.trace(PARIS):
        logits = model.logits.save()
    near(logits[0], ground.logits())


@shows("batching")
def batching(ground: Ground) -> None:
    model = ground.model
    with model.trace() as tracer:
        with tracer.invoke(PARIS):
            first = model.logits[:, -1].save()
        with tracer.invoke(MADRID):
            second = model.logits[:, -1].save()

    near(first[0], ground.logits()[-1])
    near(second[0], ground.logits(prompt=MADRID)[-1])
    found = ground.run()
    ground.says(found)
    ground.says(found, prompt=MADRID, at=1)


@shows("whole-batch")
def whole_batch(ground: Ground) -> None:
    model = ground.model
    with model.trace() as tracer:
        with tracer.invoke(PARIS):
            pass
        with tracer.invoke(MADRID):
            pass
        with tracer.invoke():
            model.mlps_output[1] = torch.zeros_like(model.mlps_output[1])
            logits = model.logits[:, -1].save()

    edits: Any = {("mlps_output", 1): clear}
    near(logits[0], ground.logits(edits)[-1])
    near(logits[1], ground.logits(edits, MADRID)[-1])
    found = ground.run()
    ground.says(found)
    ground.says(found, edits, MADRID, at=1)


@shows("across-prompts")
def across_prompts(ground: Ground) -> None:
    model = ground.model
    with model.trace() as tracer:
        barrier = tracer.barrier(2)
        with tracer.invoke(PARIS):
            state = model.layers_output[1][:, -1]
            barrier()
        with tracer.invoke(MADRID):
            barrier()
            model.layers_output[1][:, -1] = state
            logits = model.logits[:, -1].save()

    taken = ground.plain.read(ground.ids(), "layers_output", 1)[-1]

    def edit(states: Tensor) -> None:
        states[-1] = taken

    edits: Any = {("layers_output", 1): edit}
    near(logits[0], ground.logits(edits, MADRID)[-1])
    far(logits[0], ground.logits(prompt=MADRID)[-1])
    found = ground.run()
    ground.says(found)
    ground.says(found, edits, MADRID, at=1)


@shows("gradients")
def gradients(ground: Ground) -> None:
    model = ground.model
    with model.trace(PARIS):
        states = model.layers_output[1]
        states.requires_grad_(True)
        loss = model.logits[0, -1, 7]
        with loss.backward():
            gradient = states.grad.save()

    ids, plain = ground.ids(), ground.plain
    near(gradient[0], plain.slopes(ids, [("layers_output", 1)], lambda logits: logits[7], {})["layers_output", 1][1])

    found = ground.run()
    answer = [model.tokenizer.convert_tokens_to_ids(name) for name in ("Pa", "ĠParis")]
    key = ("token_embeddings", -1)
    embeddings, slope = plain.slopes(ids, [key], lambda logits: logits.log_softmax(-1)[answer].logsumexp(0), {})[key]
    near([part.value.mean for part in found.parts], (embeddings * slope).sum(-1))


@shows("edited-gradients")
def edited_gradients(ground: Ground) -> None:
    model = ground.model
    with model.trace(PARIS):
        early = model.layers_output[0]
        early.requires_grad_(True)
        late = model.layers_output[1]
        loss = model.logits[0, -1, 7]
        with loss.backward():
            late.grad = 2 * late.grad
            gradient = early.grad.save()

    key = ("layers_output", 0)
    near(gradient[0], 2 * ground.plain.slopes(ground.ids(), [key], lambda logits: logits[7], {})[key][1])


@shows("source")
def source(ground: Ground) -> None:
    model = ground.model
    with model.trace(PARIS):
        made = model.layers[1].self_attn.source.self_q_proj_0.output.save()

    near(made, hooked(ground, "model.layers.1.self_attn.q_proj")[1])
    ground.run(0)
    near(ground.lab.arrays["states"][0, 0], ground.plain.read(ground.ids(), "queries", 1)[-1])
    assert "self.q_proj(hidden_states)" in ground.lab.show(ground.run(1))


@shows("caching")
def caching(ground: Ground) -> None:
    model = ground.model
    with model.trace(PARIS) as tracer:
        cache = tracer.cache(modules=[layer.self_attn.o_proj for layer in model.layers], include_inputs=True)

    for layer in range(4):
        took, gave = hooked(ground, f"model.layers.{layer}.self_attn.o_proj")
        view = cache[f"model.model.layers.{layer}.self_attn.o_proj"]
        near(view.output, gave)
        near(view.inputs[0][0], took)
    ground.run()
    for layer in range(4):
        states = ground.plain.read(ground.ids(), "attentions_output", layer)
        near(ground.lab.arrays["states"][:, layer], states)


@shows("results")
def results(ground: Ground) -> None:
    with ground.model.trace(PARIS) as tracer:
        result = tracer.result.save()

    near(result.logits[0], ground.logits())


@shows("skipped-modules")
def skipped_modules(ground: Ground) -> None:
    model = ground.model
    ran: list[int] = []
    hook = model.layers[1].mlp.down_proj._module.register_forward_hook(lambda *_: ran.append(1))
    with model.trace(PARIS):
        model.layers[1].mlp.skip(torch.zeros(1, 6, 64))
        logits = model.logits.save()
    hook.remove()

    edits: Any = {("mlps_output", 1): clear}
    assert not ran
    near(logits[0], ground.logits(edits))
    ground.says(ground.run(), edits)


@shows("early-stop")
def early_stop(ground: Ground) -> None:
    model = ground.model
    ran: list[int] = []
    hooks = [
        layer.block.module.register_forward_pre_hook(lambda *_, at=layer.index: ran.append(at))
        for layer in model.anatomy.layers
    ]
    with model.trace(PARIS) as tracer:
        states = model.layers_output[1].save()
        tracer.stop()
    by_library = list(ran)
    ran.clear()
    ground.run()
    for hook in hooks:
        hook.remove()

    assert by_library == [0, 1]
    assert set(ran) == {0, 1}
    near(states[0], ground.plain.read(ground.ids(), "layers_output", 1))
    near(ground.lab.arrays["states"][0, 0], states[0, -1])
