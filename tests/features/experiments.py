"""What nnterp adds to nnsight: accessors to read and assign, attention, lenses, patchscopes, prompts with targets."""

from __future__ import annotations

from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import torch
from torch import Tensor

from nnterp_mcp import (
    Prompt,
    TargetPrompt,
    collect_token_activations_batched,
    get_token_activations,
    logit_lens,
    patchscope_lens,
    repeat_prompt,
    run_prompts,
    steer,
)
from nnterp_mcp.nnterp.display import plot_topk_tokens, prompts_to_df
from tests.features import PARIS, Ground, far, near, shows

MADRID = "Madrid is"
SPAIN = "The capital of Spain is"


@shows("states")
def states(ground: Ground) -> None:
    model = ground.model
    with model.trace(PARIS):
        embedded = model.token_embeddings.save()
        before = model.layers_input[1].save()
        model.attentions_input[1].save()
        attention = model.attentions_output[1].save()
        model.mlps_input[1].save()
        mlp = model.mlps_output[1].save()
        after = model.layers_output[1].save()

    read = {"layers_input": before, "attentions_output": attention, "mlps_output": mlp, "layers_output": after}
    near(embedded[0], ground.plain.read(ground.ids(), "token_embeddings", -1))
    for site, found in read.items():
        near(found[0], ground.plain.read(ground.ids(), site, 1))
    ground.run()
    for at, layer in enumerate([1, 3]):
        near(ground.lab.arrays["states"][0, at], ground.plain.read(ground.ids(), "mlps_output", layer)[-1])


@shows("assigned-states")
def assigned_states(ground: Ground) -> None:
    model = ground.model
    with model.trace(PARIS):
        model.layers_output[3] = model.layers_output[1]
        logits = model.logits.save()

    earlier = ground.plain.read(ground.ids(), "layers_output", 1)

    def put(states: Tensor) -> None:
        states[:] = earlier

    near(logits[0], ground.logits({("layers_output", 3): put}))
    ground.says(ground.run(), {("layers_output", 3): put})


def project(ground: Ground, states: Tensor) -> Tensor:
    """The plain model's own norm and head."""
    plain: Any = ground.plain.model
    with torch.no_grad():
        return plain.lm_head(plain.model.norm(states))


def lens_of(ground: Ground, prompt: str, layer: int) -> Tensor:
    return project(ground, ground.plain.read(ground.ids(prompt), "layers_output", layer)[-1]).softmax(-1)


@shows("projection")
def projection(ground: Ground) -> None:
    model = ground.model
    with model.trace(PARIS):
        logits = model.project_on_vocab(model.layers_output[1]).save()

    near(logits[0], project(ground, ground.plain.read(ground.ids(), "layers_output", 1)))
    (layer,) = ground.run().readings[0].layers
    near([p for _, p in layer.top], lens_of(ground, PARIS, 1).topk(3).values)


@shows("skipped-layers")
def skipped_layers(ground: Ground) -> None:
    model = ground.model
    with model.trace(PARIS):
        model.skip_layer(1)
        model.skip_layer(2)
        one_by_one = model.logits.save()
    with model.trace(PARIS):
        model.skip_layers(1, 2)
        at_once = model.logits.save()

    passed = ground.plain.read(ground.ids(), "layers_output", 0)

    def pass_on(states: Tensor) -> None:
        states[:] = passed

    expected = ground.logits({("layers_output", 2): pass_on})
    near(one_by_one[0], expected)
    near(at_once[0], expected)
    ground.says(ground.run(), {("layers_output", 2): pass_on})


@shows("late-start")
def late_start(ground: Ground) -> None:
    model = ground.model
    given = ground.plain.read(ground.ids(), "layers_output", 1)[None]
    with model.trace(PARIS):
        model.skip_layers(0, 1, skip_with=given)
        logits = model.logits.save()

    near(logits[0], ground.logits())


@shows("steering")
def steering(ground: Ground) -> None:
    model = ground.model
    rows: Any = ground.plain.model.get_input_embeddings().weight
    paris, madrid = (rows[model.tokenizer.convert_tokens_to_ids(name)] for name in ("ĠParis", "ĠMadrid"))
    vector = (paris - madrid).detach()
    with model.trace(PARIS):
        model.steer(layers=[1], steering_vector=vector, factor=2)
        logits = model.logits.save()
    with model.trace(PARIS):
        steer(model, layers=[1], steering_vector=vector, factor=2)
        again = model.logits.save()

    def add(states: Tensor) -> None:
        states += 2 * vector

    expected = ground.logits({("layers_output", 1): add})
    near(logits[0], expected)
    near(again[0], expected)
    steered = ground.run().runs[-1]
    near([p for _, p in steered.top], expected[-1].softmax(-1).topk(3).values)


@shows("attention")
def attention(ground: Ground) -> None:
    model = ground.model
    model.set_attention("eager")
    with model.trace(PARIS):
        pattern = model.attention_probabilities[1].save()
    model.set_attention("sdpa")

    expected = ground.plain.read(ground.ids(), "attention_probabilities", 1)
    near(pattern[0], expected.transpose(0, 1))
    (query,) = ground.run().queries
    head = query.heads[0]
    near(head.first, expected[-1, 2, 0])
    for _, key, p in head.keys:
        near(p, expected[-1, 2, key])


def cut(pattern: Tensor) -> None:
    """(query, head, key): nothing is read from the first token, but by itself."""
    pattern[1:, :, 0] = 0
    pattern /= pattern.sum(-1, keepdim=True)


@shows("edited-attention")
def edited_attention(ground: Ground) -> None:
    model = ground.model
    model.set_attention("eager")
    with model.trace(PARIS):
        pattern = model.attention_probabilities[1].clone()
        pattern[:, :, 1:, 0] = 0
        model.attention_probabilities[1] = pattern / pattern.sum(-1, keepdim=True)
        logits = model.logits.save()
    model.set_attention("sdpa")

    edits: Any = {("attention_probabilities", 1): cut}
    near(logits[0], ground.logits(edits))
    far(logits[0], ground.logits())
    ground.says(ground.run(), edits)


@shows("attention-source")
def attention_source(ground: Ground) -> None:
    with redirect_stdout(StringIO()) as printed:
        ground.model.attention_probabilities.print_source()

    read = next(line for line in printed.getvalue().splitlines() if line.startswith("-->"))
    assert "torch.matmul(attn_weights, value_states)" in read
    assert read.split(maxsplit=2)[2] in ground.lab.show(ground.run())


@shows("token-activations")
def token_activations(ground: Ground) -> None:
    prompts = [PARIS, MADRID]
    expected = torch.stack(
        [
            torch.stack([ground.plain.read(ground.ids(prompt), "layers_output", layer)[-1] for prompt in prompts])
            for layer in (1, 3)
        ]
    )
    near(get_token_activations(ground.model, prompts, idx=-1)[[1, 3]], expected)
    near(collect_token_activations_batched(ground.model, prompts, batch_size=16, layers=[1, 3]), expected)
    ground.run()
    near(ground.lab.arrays["states"], expected.transpose(0, 1))


TARGETS: dict[str, Any] = {"target": "Paris", "traps": ["London", "Madrid"]}


def tracked(ground: Ground, category: str, probs: Tensor) -> float:
    """The sum over the first tokens of a category's strings, with and without a leading space."""
    given = TARGETS[category]
    strings = [given] if isinstance(given, str) else given
    texts = [start + string for string in strings for start in ("", " ")]
    tokenizer = ground.model.tokenizer
    splits = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    first = {next(token for token in split if tokenizer.decode(token).strip()) for split in splits}
    return float(probs[list(first)].sum())


@shows("targets")
def targets(ground: Ground) -> None:
    prompts = [Prompt.from_strings(text, TARGETS, ground.model.tokenizer) for text in (PARIS, SPAIN)]
    results = run_prompts(ground.model, prompts)
    rows = ground.run().rows

    for at, text in enumerate((PARIS, SPAIN)):
        probs = ground.logits(prompt=text)[-1].softmax(-1)
        expected = [tracked(ground, category, probs) for category in TARGETS]
        near([float(results[category][at]) for category in TARGETS], expected)
        near(rows[at].probabilities[0], expected)


@shows("logit-lens")
def lens(ground: Ground) -> None:
    probs = logit_lens(ground.model, [PARIS, MADRID])
    readings = ground.run().readings

    for at, prompt in enumerate((PARIS, MADRID)):
        for layer in range(4):
            expected = lens_of(ground, prompt, layer)
            near(probs[at, layer], expected)
            near([p for _, p in readings[at].layers[layer].top], expected.topk(3).values)


@shows("targets-by-layer")
def targets_by_layer(ground: Ground) -> None:
    prompts = [Prompt.from_strings(text, {"target": "Paris"}, ground.model.tokenizer) for text in (PARIS, SPAIN)]
    results = run_prompts(ground.model, prompts, get_probs_func=logit_lens)
    rows = ground.run().rows

    for at, text in enumerate((PARIS, SPAIN)):
        expected = [tracked(ground, "target", lens_of(ground, text, layer)) for layer in range(4)]
        near(results["target"][at], expected)
        near([layer[0] for layer in rows[at].probabilities], expected)


def patched(ground: Ground, prompt: str, position: int) -> Tensor:
    """What the model says when the last state of `PARIS` after layer 2 is put into another prompt."""
    taken = ground.plain.read(ground.ids(), "layers_output", 2)[-1]

    def put(states: Tensor) -> None:
        states[position] = taken

    return ground.logits({("layers_output", 2): put}, prompt)[-1].softmax(-1)


@shows("patchscope")
def patchscope(ground: Ground) -> None:
    target = TargetPrompt("Paris is Paris, and that", -2)
    probs = patchscope_lens(ground.model, source_prompts=[PARIS], target_patch_prompts=target)

    expected = patched(ground, target.prompt, -2)
    near(probs[0, 2], expected)
    (patch,) = ground.run().sources[0].patches
    near([p for _, p in patch.top], expected.topk(3).values)


@shows("repeat-prompt")
def repeating(ground: Ground) -> None:
    target = repeat_prompt(words=["car", "cross"], rel=":", sep="\n\n", placeholder="*")
    assert target.prompt == ground.calls[0].arguments["target_prompt"]

    (patch,) = ground.run().sources[0].patches
    near([p for _, p in patch.top], patched(ground, target.prompt, -1).topk(3).values)


@shows("figures")
def figures(ground: Ground) -> None:
    model = ground.model
    prompts = [Prompt.from_strings(PARIS, {"target": "Paris"}, model.tokenizer)]
    figure: Any = plot_topk_tokens(logit_lens(model, PARIS)[0], model.tokenizer, k=3)
    frame: Any = prompts_to_df(prompts, model.tokenizer)

    best = lens_of(ground, PARIS, 3).topk(3).values
    near(figure.data[0].z[3], best)
    assert list(frame["prompt"]) == [PARIS]
    assert frame["target_tokens"][0] == ["Pa", "ĠParis"]
    assert [row.text for row in ground.run().rows] == [PARIS]
