"""Direct logit attribution against plain hooks and the weights themselves, written out for each family."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.errors import InvalidRequest, Unsupported
from nnterp_mcp.experiments.attribution.direct_logit import DirectLogits, LogitPart, attribute_directly, attribute_each
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.text.tokenization import encode_prompts
from nnterp_mcp.verification.tiny import tiny_model, tiny_tokenizer
from tests.engine.plain import FAMILIES
from tests.engine.test_executors import Subject, build

ANSWER, WRONG = [7, 9], [11]
TARGETS = [[ANSWER, WRONG]] * 3


@dataclass(frozen=True)
class Ends:
    """Where a family keeps its final norm, its head and the last map of its MLP."""

    norm: str
    head: str
    down: str | None
    after: tuple[str, str] | None = None
    """Norms after attention and MLP."""


ENDS = {
    "gpt2": Ends("transformer.ln_f", "lm_head", "mlp.c_proj"),
    "llama": Ends("model.norm", "lm_head", "mlp.down_proj"),
    "gemma2": Ends(
        "model.norm",
        "lm_head",
        "mlp.down_proj",
        ("post_attention_layernorm", "post_feedforward_layernorm"),
    ),
    "gpt_neox": Ends("gpt_neox.final_layer_norm", "lm_head", "mlp.dense_4h_to_h"),
    "falcon": Ends("transformer.ln_f", "lm_head", "mlp.dense_4h_to_h"),
    "opt": Ends("model.decoder.final_layer_norm", "lm_head", None),
    "smollm2-135m": Ends("model.norm", "lm_head", "mlp.down_proj"),
}


@pytest.fixture(scope="module")
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield build(request.param, lambda: request.getfixturevalue("smollm2_folder"))
    torch.set_num_threads(before)


every_family = pytest.mark.parametrize(
    "subject", [family for family in ENDS if family != "smollm2-135m"], indirect=True
)
one_family = pytest.mark.parametrize("subject", ["llama"], indirect=True)
real = pytest.mark.parametrize("subject", ["smollm2-135m"], indirect=True)


def frozen(norm: Any, states: Tensor) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """A norm at the scale of some states, as a linear map, and its bias; out of the papers' formulas."""
    states, weight = states.double(), norm.weight.detach().double()
    if isinstance(norm, torch.nn.LayerNorm):
        scale = (states.var(unbiased=False) + norm.eps).sqrt()
        return lambda part: (part - part.mean(-1, keepdim=True)) / scale * weight, norm.bias.detach().double()
    gemma = "Gemma" in type(norm).__name__
    epsilon = norm.eps if gemma else norm.variance_epsilon
    weight = 1 + weight if gemma else weight
    scale = (states.square().mean() + epsilon).sqrt()
    return lambda part: part / scale * weight, torch.zeros_like(weight)


def matrix(module: Any) -> Tensor:
    """A linear map's weights, inputs first."""
    weight = module.weight.detach().double()
    return weight if type(module).__name__ == "Conv1D" else weight.T


class Written:
    """Every part of one prompt, computed from what plain hooks saw."""

    def __init__(self, subject: Subject, ids: Sequence[int], targets: Sequence[Sequence[int]]) -> None:
        plain, self.ends = subject.plain, ENDS[subject.family]
        self.names, self.model, self.plain = FAMILIES[subject.family], plain.model, plain
        self.seen: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}
        self._run(ids)
        norm = self.model.get_submodule(self.ends.norm)
        head = self.model.get_submodule(self.ends.head)
        self.last = self.seen["norm", 0][0]
        normed, bias = frozen(norm, self.last)
        raw = self.seen["head", 0][1]
        weights = torch.zeros_like(self.logits)
        choice = torch.tensor(0.0, dtype=torch.float64)
        self.metric = torch.tensor(0.0, dtype=torch.float64)
        for sign, tokens in zip((1, -1), targets, strict=False):
            total = self.logits[tokens].logsumexp(0)
            share = (self.logits[tokens] - total).exp()
            weights[tokens] += sign * share
            choice += sign * (total - share @ self.logits[tokens])
            self.metric += sign * total
        direction = matrix(head) @ (weights * self.logits / raw)
        self.along = lambda part: normed(part) @ direction
        self.parts: dict[LogitPart, Tensor] = {LogitPart("token choice"): choice}
        if bool(bias.any()):
            self.parts[LogitPart("final norm bias")] = bias @ direction

    @torch.no_grad()
    def _run(self, ids: Sequence[int]) -> None:
        def keep(key: tuple[str, int]) -> Any:
            def hook(module: Any, args: Any, kwargs: Any, output: Any) -> None:
                states = args[0] if args else kwargs["hidden_states"]
                made = output if isinstance(output, Tensor) else output[0]
                self.seen[key] = (_last(states), _last(made))

            return hook

        modules = {
            ("norm", 0): self.model.get_submodule(self.ends.norm),
            ("head", 0): self.model.get_submodule(self.ends.head),
            ("embedding", 0): self.model.get_submodule(self.names.embedding),
        }
        for index, layer in enumerate(self.plain.layers):
            modules["layer", index] = layer
            modules["attention", index] = layer.get_submodule(self.names.attention_output)
            modules["projection", index] = layer.get_submodule(self.names.projection)
            if self.ends.down and self.names.mlp_output:
                modules["mlp", index] = layer.get_submodule(self.names.mlp_output)
                modules["down", index] = layer.get_submodule(self.ends.down)
        with ExitStack() as stack:
            for key, module in modules.items():
                stack.callback(module.register_forward_hook(keep(key), with_kwargs=True).remove)
            self.logits = self.model(torch.tensor([ids]), use_cache=False).logits[0, -1].double()

    def write(self, layer: int, part: Tensor, of: int) -> Tensor:
        """What a part of attention's (0) or the MLP's (1) output adds to the metric."""
        if self.ends.after is not None:
            norm = self.plain.layers[layer].get_submodule(self.ends.after[of])
            part = frozen(norm, self.seen[("attention", "mlp")[of], layer][1])[0](part)
        return self.along(part)

    def layer(self, layer: int) -> Tensor:
        before, after = self.seen["layer", layer]
        return self.along(after - before)

    def heads(self, layer: int) -> Tensor:
        states = self.seen["projection", layer][0].unflatten(-1, (self.plain.heads, -1))
        by_head = matrix(self.plain.layers[layer].get_submodule(self.names.projection)).unflatten(
            0, (self.plain.heads, -1)
        )
        return torch.stack([self.write(layer, z @ weight, 0) for z, weight in zip(states, by_head, strict=True)])

    def neurons(self, layer: int) -> Tensor:
        assert self.ends.down is not None
        states = self.seen["down", layer][0]
        return self.write(layer, states[:, None] * matrix(self.plain.layers[layer].get_submodule(self.ends.down)), 1)


def _last(states: Tensor) -> Tensor:
    return (states[0, -1] if states.ndim == 3 else states[-1]).double().clone()


def close(found: Tensor | Sequence[float], wanted: Tensor | Sequence[float], scale: float) -> None:
    assert torch.as_tensor(found).tolist() == pytest.approx(torch.as_tensor(wanted).tolist(), abs=1e-5 * scale)


def column(found: DirectLogits, row: int, kind: str, layer: int | None = None) -> Tensor:
    """The values of one kind of parts in one layer."""
    at = [at for at, part in enumerate(found.parts) if (part.kind, part.layer) == (kind, layer)]
    return found.values[row, at]


def check(subject: Subject, found: DirectLogits, written: Written, row: int, inside: Callable[[int], None]) -> None:
    """What every split has in common: ends, constants, sums; `inside` checks a layer."""
    scale = max(1.0, float(found.values[row].abs().max()))
    close(found.metric[row], written.metric, scale)
    close(found.values[row].sum(), written.metric, scale)
    for part, amount in written.parts.items():
        close(column(found, row, part.kind), [float(amount)], scale)
    entry = written.seen["layer", 0][0]
    if "positions" in {part.kind for part in found.parts}:
        embedding = written.seen["embedding", 0][1]
        close(column(found, row, "embeddings"), [float(written.along(embedding))], scale)
        close(column(found, row, "positions"), [float(written.along(entry - embedding))], scale)
    else:
        close(column(found, row, "embeddings"), [float(written.along(entry))], scale)
    for layer in range(subject.model.num_layers):
        inside(layer)
    assert found.error <= 1e-5 * scale
    assert found.rescaled == (subject.family == "gemma2")


@every_family
def test_what_heads_read_from_each_token_is_that_of_plain_hooks(subject: Subject) -> None:
    found = attribute_directly(subject.model, Workload(subject.prompts), TARGETS, "source_token")

    for row, prompt in enumerate(subject.prompts):
        written = Written(subject, prompt.ids, TARGETS[row])
        amounts = dict(zip(found.parts, found.values[row].tolist(), strict=True))
        scale = max(1.0, float(found.values.abs().max()))
        for layer in range(subject.model.num_layers):
            pattern = subject.plain.read(prompt.ids, "attention_probabilities", layer)[-1].double()
            values = subject.plain.read(prompt.ids, "values", layer).double()
            projection = matrix(subject.plain.layers[layer].get_submodule(FAMILIES[subject.family].projection))
            maps = projection.unflatten(0, (len(pattern), -1))
            for head in range(len(pattern)):
                read = [pattern[head, at] * values[at, head] @ maps[head] for at in range(len(prompt.ids))]
                own = [amounts[LogitPart("head", layer, head, at)] for at in range(len(prompt.ids))]
                close(own, [float(written.write(layer, part, 0)) for part in read], scale)


@one_family
def test_several_attributions_of_one_pass_are_those_of_each_alone(subject: Subject) -> None:
    work = Workload(subject.prompts)
    answer, wrong = ([[category]] * 3 for category in (ANSWER, WRONG))
    together = attribute_each(subject.model, work, [TARGETS, answer, wrong], "head")

    for found, targets in zip(together, (TARGETS, answer, wrong), strict=True):
        alone = attribute_directly(subject.model, work, targets, "head")
        assert alone.parts == found.parts
        close(found.values.flatten(), alone.values.flatten(), 1.0)


@every_family
def test_layers_and_sublayers_are_those_of_plain_hooks(subject: Subject) -> None:
    layers = attribute_directly(subject.model, Workload(subject.prompts), TARGETS, "layer")
    parts = attribute_directly(subject.model, Workload(subject.prompts), TARGETS, "sublayer")

    assert ("positions" in {part.kind for part in layers.parts}) == (subject.family in ("gpt2", "opt"))
    for row, prompt in enumerate(subject.prompts):
        written = Written(subject, prompt.ids, TARGETS[row])
        scale = max(1.0, float(parts.values.abs().max()))

        def whole(layer: int, row: int = row, written: Written = written, scale: float = scale) -> None:
            close(column(layers, row, "layer", layer), [float(written.layer(layer))], scale)

        def split(layer: int, row: int = row, written: Written = written, scale: float = scale) -> None:
            attention = written.write(layer, written.seen["attention", layer][1], 0)
            close(column(parts, row, "attention", layer), [float(attention)], scale)
            beside = column(parts, row, "rest" if subject.family == "opt" else "mlp", layer)
            close(beside, [float(written.layer(layer) - attention)], scale)

        check(subject, layers, written, row, whole)
        check(subject, parts, written, row, split)


@every_family
def test_heads_are_their_slices_of_the_output_projection(subject: Subject) -> None:
    found = attribute_directly(subject.model, Workload(subject.prompts), TARGETS, "head")

    for row, prompt in enumerate(subject.prompts):
        written = Written(subject, prompt.ids, TARGETS[row])
        scale = max(1.0, float(found.values.abs().max()))

        def heads(layer: int, row: int = row, written: Written = written, scale: float = scale) -> None:
            close(column(found, row, "head", layer), written.heads(layer), scale)
            projection: Any = subject.plain.layers[layer].get_submodule(written.names.projection)
            if projection.bias is not None:
                bias = written.write(layer, projection.bias.detach().double(), 0)
                close(column(found, row, "attention bias", layer), [float(bias)], scale)

        check(subject, found, written, row, heads)


@every_family
def test_neurons_are_their_columns_of_the_last_map(subject: Subject) -> None:
    found = attribute_directly(subject.model, Workload(subject.prompts), TARGETS, "neuron", layers=[1, -1])
    neurons = {part.layer for part in found.parts if part.kind == "neuron"}
    assert neurons == (set() if subject.family == "opt" else {1, 3})

    for row, prompt in enumerate(subject.prompts):
        written = Written(subject, prompt.ids, TARGETS[row])
        scale = max(1.0, float(found.values.abs().max()))

        def inside(layer: int, row: int = row, written: Written = written, scale: float = scale) -> None:
            if layer not in (1, 3):
                close(column(found, row, "layer", layer), [float(written.layer(layer))], scale)
            elif layer in neurons:
                close(column(found, row, "neuron", layer), written.neurons(layer), scale)

        check(subject, found, written, row, inside)


@one_family
def test_one_category_is_its_logit_and_one_token_no_choice(subject: Subject) -> None:
    found = attribute_directly(subject.model, Workload(subject.prompts), [[[11]]] * 3)

    assert "token choice" not in {part.kind for part in found.parts}
    wanted = [float(subject.plain.logits(prompt.ids, {})[-1, 11]) for prompt in subject.prompts]
    assert found.values.sum(1).tolist() == pytest.approx(wanted, abs=1e-5)


@one_family
def test_what_an_intervention_adds_is_the_rest_of_its_layer(subject: Subject) -> None:
    vector = torch.randn(subject.model.hidden_size, generator=torch.Generator().manual_seed(0))
    operation = {"op": "add", "site": "layers_output", "layers": [2], "vector": vector.tolist()}
    found = attribute_directly(subject.model, Workload(subject.prompts, subject.plan(operation)), TARGETS, "head")
    norm = subject.plain.model.get_submodule("model.norm")
    seen: list[Tensor] = []

    def steer(states: Tensor) -> None:
        states += vector

    hook = norm.register_forward_pre_hook(lambda module, args: seen.append(args[0][0, -1].double()))
    logits = subject.plain.logits(subject.prompts[0].ids, {("layers_output", 2): steer})[-1].double()
    hook.remove()
    answer = logits[ANSWER].softmax(0)
    rows = subject.plain.model.lm_head.weight.detach().double()
    direction = answer @ rows[ANSWER] - rows[WRONG[0]]
    wanted = frozen(norm, seen[0])[0](vector.double()) @ direction

    assert float(column(found, 0, "rest", 2)) == pytest.approx(float(wanted), abs=1e-5)
    assert float(column(found, 0, "rest", 1)) == pytest.approx(0, abs=1e-5)
    assert float(found.values[0].sum()) == pytest.approx(
        float(logits[ANSWER].logsumexp(0) - logits[WRONG].logsumexp(0)), abs=1e-5
    )


@pytest.mark.parametrize(("family", "factor"), [("granite", "residual_multiplier"), ("cohere", None)])
def test_multipliers_of_the_residual_stream_and_of_logits_count(family: str, factor: str | None) -> None:
    plain: Any = tiny_model(family)
    model = StandardizedTransformer(tiny_model(family), tokenizer=tiny_tokenizer(), name=family)
    (prompt,) = encode_prompts(model.tokenizer, ["The capital of France is"], family)
    found = attribute_directly(model, Workload([prompt]), [[[7], [11]]])
    seen: dict[str, Tensor] = {}
    hook = plain.model.layers[2].self_attn.register_forward_hook(
        lambda module, args, output: seen.update(attention=output[0][0, -1])
    )
    last = plain.model.norm.register_forward_pre_hook(lambda module, args: seen.update(last=args[0][0, -1]))
    logits = plain(torch.tensor([prompt.ids])).logits[0, -1].detach()
    hook.remove()
    last.remove()

    assert float(found.values.sum()) == pytest.approx(float(logits[7] - logits[11]), abs=1e-5)
    assert found.rescaled
    multiplier = 1.0 if factor is None else float(getattr(plain.config, factor))
    scale = float(plain.config.logit_scale) if family == "cohere" else 1 / float(plain.config.logits_scaling)
    state = seen["last"].detach()
    centred = seen["attention"].detach() - (seen["attention"].mean().detach() if family == "cohere" else 0)
    spread = state.var(unbiased=False) if family == "cohere" else state.square().mean()
    rows = plain.lm_head.weight.detach()
    wanted = scale * multiplier * (centred / spread.sqrt() * plain.model.norm.weight.detach()) @ (rows[7] - rows[11])
    assert float(column(found, 0, "attention", 2)) == pytest.approx(float(wanted), abs=1e-4)


def test_a_mixer_beside_attention_is_the_rest() -> None:
    model = StandardizedTransformer(tiny_model("jamba"), tokenizer=tiny_tokenizer(), name="jamba")
    (prompt,) = encode_prompts(model.tokenizer, ["The capital of France is"], "jamba")
    found = attribute_directly(model, Workload([prompt]), [[[7], [11]]], "head")

    mixing = {part.layer for part in found.parts if part.kind == "rest"}
    attending = {part.layer for part in found.parts if part.kind == "head"}
    assert mixing | attending == set(range(model.num_layers))
    assert not mixing & attending
    assert found.error <= 1e-5


@one_family
def test_what_cannot_be_asked_is_refused(subject: Subject) -> None:
    with pytest.raises(InvalidRequest, match="one or two target categories, and 3 came"):
        attribute_directly(subject.model, Workload(subject.prompts), [[[1], [2], [3]]] * 3)
    with pytest.raises(InvalidRequest, match="layer 9 does not exist"):
        attribute_directly(subject.model, Workload(subject.prompts), TARGETS, "head", layers=[9])


def test_models_whose_parts_do_not_add_up_are_refused() -> None:
    model = StandardizedTransformer(tiny_model("gemma4_text"), tokenizer=tiny_tokenizer(), name="scaled")
    (prompt,) = encode_prompts(model.tokenizer, ["The capital of France is"], "scaled")
    with pytest.raises(Unsupported, match="what attention and MLP add cannot be told apart in layer 0 of scaled"):
        attribute_directly(model, Workload([prompt]), [[[7], [11]]])
    assert attribute_directly(model, Workload([prompt]), [[[7], [11]]], "layer").error <= 1e-5


@real
@pytest.mark.slow
@pytest.mark.smollm2
def test_the_real_model_is_taken_apart_as_by_plain_hooks(subject: Subject) -> None:
    found = attribute_directly(subject.model, Workload(subject.prompts[:1]), TARGETS[:1], "head")
    written = Written(subject, subject.prompts[0].ids, TARGETS[0])
    scale = max(1.0, float(found.values.abs().max()))

    for layer in range(subject.model.num_layers):
        close(column(found, 0, "head", layer), written.heads(layer), scale)
    close(found.values[0].sum(), written.metric, scale)


@pytest.mark.parametrize("subject", ["gemma2"], indirect=True)
@pytest.mark.parametrize("split", ["sublayer", "head", "neuron"])
@pytest.mark.parametrize("site", ["attentions", "mlps"])
def test_a_sublayer_that_writes_nothing_before_a_norm_adds_nothing(subject: Subject, split: Any, site: str) -> None:
    plan = subject.plan({"op": "zero", "site": f"{site}_raw_output", "layers": 1})
    found = attribute_directly(subject.model, Workload(subject.prompts, plan), TARGETS, split)
    assert bool(found.values.isfinite().all())
    kinds = {"attentions": ("attention",), "mlps": ("mlp", "mlp bias")}[site]
    own = [at for at, part in enumerate(found.parts) if part.layer == 1 and part.kind in kinds]
    assert not found.values[:, own].any()
    assert found.error < 1e-4


@one_family
@pytest.mark.parametrize("site", ["attentions_output", "mlps_output"])
def test_sublayers_add_what_they_add_as_edited(subject: Subject, site: str) -> None:
    plan = subject.plan({"op": "zero", "site": site, "layers": 1})
    found = attribute_directly(subject.model, Workload(subject.prompts, plan), TARGETS, "sublayer")
    kind = "attention" if site == "attentions_output" else "mlp"
    assert not found.values[:, found.parts.index(LogitPart(kind, 1))].any()
    assert found.values[:, found.parts.index(LogitPart("rest", 1))].abs().max() < 1e-4
