"""The lens against plain transformers, plain hooks, and norm, head and softcap written out for each family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.experiments.logit_lens import LensReadings, read_lens
from nnterp_mcp.experiments.translated_lens.translation import LensTranslation
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.text.tokenization import encode_prompts
from tests.conftest import FAMILIES

PROMPTS = [
    "The capital of France is",
    "Spain",
    "The capital of Spain is Madrid, and that of France is",
    "Two and two make",
]
TARGETS = {"early": [5, 70, 99], "one": [200]}
SIZES = {  # layers, heads, key-value heads, parameters
    "gpt2": (4, 4, 4, 236_928),
    "llama": (4, 4, 2, 164_416),
    "gemma2": (4, 4, 2, 144_448),
    "gpt_neox": (4, 4, 4, 158_464),
    "smollm2-135m": (30, 9, 3, 134_515_008),
}


def layer_norm(hidden: Tensor, norm: Any) -> Tensor:
    centred = hidden - hidden.mean(-1, keepdim=True)
    return centred / (centred.pow(2).mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias


def rms(hidden: Tensor, eps: float) -> Tensor:
    return hidden / (hidden.pow(2).mean(-1, keepdim=True) + eps).sqrt()


def tail_gpt2(model: Any, hidden: Tensor) -> Tensor:
    return layer_norm(hidden, model.transformer.ln_f) @ model.transformer.wte.weight.T


def tail_llama(model: Any, hidden: Tensor) -> Tensor:
    return (rms(hidden, model.config.rms_norm_eps) * model.model.norm.weight) @ model.lm_head.weight.T


def tail_gemma2(model: Any, hidden: Tensor) -> Tensor:
    normed = rms(hidden, model.config.rms_norm_eps) * (1 + model.model.norm.weight)
    cap = model.config.final_logit_softcapping
    return torch.tanh(normed @ model.model.embed_tokens.weight.T / cap) * cap


def tail_gpt_neox(model: Any, hidden: Tensor) -> Tensor:
    head = next(child for name, child in model.named_children() if name in ("embed_out", "lm_head"))
    return layer_norm(hidden, model.gpt_neox.final_layer_norm) @ head.weight.T


TAILS: dict[str, tuple[Callable[[Any], Any], Callable[[Any, Tensor], Tensor]]] = {
    "gpt2": (lambda model: model.transformer.h, tail_gpt2),
    "llama": (lambda model: model.model.layers, tail_llama),
    "gemma2": (lambda model: model.model.layers, tail_gemma2),
    "gpt_neox": (lambda model: model.gpt_neox.layers, tail_gpt_neox),
    "smollm2-135m": (lambda model: model.model.layers, tail_llama),
}


@dataclass
class Subject:
    """A model twice: plain, with the logits of every layer found by hooks; and standardized, by our reader."""

    plain: Any
    model: StandardizedTransformer
    encoded: list[Any]
    expected: list[Tensor]
    """For each prompt, (layer, position, vocabulary)."""
    outputs: list[Tensor]
    """For each prompt, the model's own logits, (position, vocabulary)."""

    def read(self, batches: Mapping[str, Any] | None = None, **options: Any) -> LensReadings:
        everywhere = [range(len(prompt.ids)) for prompt in self.encoded]
        layers = range(self.model.num_layers)
        return read_lens(self.model, Workload(self.encoded, **batches or {}), everywhere, layers, **options)


@torch.no_grad()
def hooked_logits(model: Any, family: str, ids: list[int]) -> tuple[Tensor, Tensor]:
    blocks, tail = TAILS[family]
    states: list[Tensor] = []
    hooks = [
        block.register_forward_hook(
            lambda module, inputs, output: states.append(output[0] if isinstance(output, tuple) else output)
        )
        for block in blocks(model)
    ]
    output = model(torch.tensor([ids])).logits[0]
    for hook in hooks:
        hook.remove()
    return torch.stack([tail(model, state[0]) for state in states]), output


@pytest.fixture(scope="module", params=[*FAMILIES, "smollm2-135m"])
def subject(request: pytest.FixtureRequest, tiny: Callable[..., Path]) -> Subject:
    family = request.param
    folder = tiny(family) if family in FAMILIES else request.getfixturevalue("smollm2_folder")
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = plain.config
    sizes = (
        config.num_hidden_layers,
        config.num_attention_heads,
        getattr(config, "num_key_value_heads", config.num_attention_heads),
        sum(parameter.numel() for parameter in plain.parameters()),
    )
    assert sizes == SIZES[family]
    ids = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    assert len({len(row) for row in ids}) == len(PROMPTS)
    expected, outputs = zip(*(hooked_logits(plain, family, row) for row in ids), strict=True)
    ours = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = StandardizedTransformer(ours, tokenizer=tokenizer, name=family)
    return Subject(plain, model, encode_prompts(tokenizer, PROMPTS, family), list(expected), list(outputs))


@pytest.fixture(scope="module")
def readings(subject: Subject) -> LensReadings:
    return subject.read(top_k=min(1000, subject.model.vocab_size), categories=[list(TARGETS.values())] * len(PROMPTS))


@pytest.fixture(scope="module")
def reference(subject: Subject) -> Tensor:
    """Log-probabilities in double precision, (reading, layer, vocabulary), readings as the reader orders them."""
    return torch.cat([logits.transpose(0, 1) for logits in subject.expected]).double().log_softmax(-1)


def test_readings_are_in_order(subject: Subject, readings: LensReadings) -> None:
    order = [(prompt.index, position) for prompt in subject.encoded for position in range(len(prompt.ids))]

    assert list(zip(readings.prompts, readings.positions, strict=True)) == order
    assert readings.layers == list(range(subject.model.num_layers))


def test_probabilities_are_those_of_plain_transformers(
    subject: Subject, readings: LensReadings, reference: Tensor
) -> None:
    probs = reference.exp()
    at_same_tokens = (probs.gather(-1, readings.readout.top_ids) - readings.readout.top_probs).abs().max()
    at_same_ranks = (probs.topk(readings.readout.top_probs.shape[-1]).values - readings.readout.top_probs).abs().max()
    print(f"largest difference, {subject.model.name}: {at_same_tokens:.2e}")

    assert at_same_tokens < 1e-5
    assert at_same_ranks < 1e-5
    assert reference[:, :, 0].std() > 0.1  # or the distributions would all be alike


def test_last_layer_is_the_models_output(subject: Subject, readings: LensReadings) -> None:
    probs = torch.cat(subject.outputs).double().softmax(-1)

    assert (probs.gather(-1, readings.readout.top_ids[:, -1]) - readings.readout.top_probs[:, -1]).abs().max() < 1e-5


def test_entropy_and_divergence(readings: LensReadings, reference: Tensor) -> None:
    entropy = -(reference.exp() * reference).sum(-1)
    last = reference[:, -1:]
    divergence = (last.exp() * (last - reference)).sum(-1)

    assert (readings.readout.entropy - entropy).abs().max() < 1e-4
    assert (readings.kl - divergence).abs().max() < 1e-3
    assert readings.kl[:, -1].max() < 1e-6
    assert divergence[:, 0].max() > 0.1


def test_targets(readings: LensReadings, reference: Tensor) -> None:
    for index, ids in enumerate(TARGETS.values()):
        probs = reference.exp()[..., ids].sum(-1)
        best = reference[..., ids].amax(-1, keepdim=True)
        # Where logits all but tie, either order is right.
        least, most = ((1 + (reference > best + slack).sum(-1)) for slack in (1e-4, -1e-4))
        ranks = readings.readout.target_ranks[..., index]

        assert (readings.readout.target_probs[..., index] - probs).abs().max() < 1e-5
        assert ((least <= ranks) & (ranks <= most)).all()
        assert ranks.max() > ranks.min()


def test_small_batches_read_the_same(subject: Subject, readings: LensReadings) -> None:
    done: list[int] = []
    lengths = sorted(len(prompt.ids) for prompt in subject.encoded)
    batches = {"batch_tokens": 2 * lengths[-2], "progress": lambda count, total, unit: done.append(count)}
    small = subject.read(batches, top_k=5, categories=[list(TARGETS.values())] * len(PROMPTS))

    assert len(done) > 1
    assert done[-1] == len(PROMPTS)
    assert small.prompts == readings.prompts
    assert (small.readout.top_probs - readings.readout.top_probs[..., :5]).abs().max() < 1e-5
    assert (small.readout.entropy - readings.readout.entropy).abs().max() < 1e-4


def test_each_prompt_alone_reads_the_same(subject: Subject, readings: LensReadings) -> None:
    for prompt in subject.encoded:
        rows = [index for index, of in enumerate(readings.prompts) if of == prompt.index]
        alone = read_lens(subject.model, Workload([prompt]), [range(len(prompt.ids))], readings.layers, top_k=5)

        assert (alone.readout.top_probs - readings.readout.top_probs[rows][..., :5]).abs().max() < 1e-5


def test_some_layers_and_positions(subject: Subject, readings: LensReadings) -> None:
    positions = [[len(prompt.ids) - 1] for prompt in subject.encoded]
    some = read_lens(subject.model, Workload(subject.encoded), positions, [0, 2], top_k=2)
    rows = [readings.prompts.index(prompt.index) + len(prompt.ids) - 1 for prompt in subject.encoded]

    assert some.positions == [at for (at,) in positions]
    assert some.readout.top_ids.shape == (len(PROMPTS), 2, 2)
    assert (some.readout.top_probs - readings.readout.top_probs[rows][:, [0, 2], :2]).abs().max() < 1e-5
    assert (some.kl - readings.kl[rows][:, [0, 2]]).abs().max() < 1e-3
    assert some.readout.target_probs.shape[-1] == 0


def test_what_a_batch_raises_ends_the_reading(subject: Subject) -> None:
    class Enough(Exception):
        pass

    def stop(done: int, total: int | None, unit: str) -> None:
        raise Enough

    with pytest.raises(Enough):
        subject.read({"progress": stop})
    assert subject.read(top_k=1).readout.top_ids.shape[-1] == 1


def test_the_inverse_lens_is_of_the_negated_logits(subject: Subject) -> None:
    # Negated logits lie further apart, so that float32 says less of their probabilities: 1.2e-5 at the most.
    inverse = subject.read(top_k=10, inverse=True)
    expected = torch.cat([-logits.transpose(0, 1) for logits in subject.expected]).double().softmax(-1)

    assert (expected.gather(-1, inverse.readout.top_ids) - inverse.readout.top_probs).abs().max() < 2e-5
    assert (expected.topk(10).values - inverse.readout.top_probs).abs().max() < 2e-5


def test_an_identity_translates_to_the_plain_lens_to_the_last_bit(subject: Subject) -> None:
    identity = torch.eye(subject.model.hidden_size)
    lens = LensTranslation("jacobian", dict.fromkeys(range(subject.model.num_layers - 1), identity), {})

    found = subject.read(translation=lens)

    assert found.plain is not None
    assert torch.equal(found.readout.top_probs, found.plain.readout.top_probs)
    assert torch.equal(found.kl, found.plain.kl)
    assert torch.equal(found.plain.kl, subject.read().kl)


def test_a_translated_state_is_read_through_norm_and_head(subject: Subject) -> None:
    width, last = subject.model.hidden_size, subject.model.num_layers - 1
    source = torch.Generator().manual_seed(0)
    matrices = {1: torch.randn(width, width, generator=source) / width**0.5}
    lens = LensTranslation("tuned", matrices, {1: torch.randn(width, generator=source)})
    ids = subject.encoded[2].ids
    states: list[Tensor] = []
    blocks, tail = TAILS[subject.model.name]
    hook = blocks(subject.plain)[1].register_forward_hook(
        lambda module, inputs, output: states.append(output[0] if isinstance(output, tuple) else output)
    )
    with torch.no_grad():
        subject.plain(torch.tensor([ids]))
        hook.remove()
        wanted = tail(subject.plain, states[0][0, -1:] @ matrices[1].T + lens.biases[1]).double().softmax(-1)[0]

    work = Workload([subject.encoded[2]])
    found = read_lens(subject.model, work, [[len(ids) - 1]], [1, last], top_k=20, translation=lens).readout

    assert (wanted[found.top_ids[0, 0]] - found.top_probs[0, 0]).abs().max() < 1e-5
    with pytest.raises(InvalidRequest, match="has no layer 0"):
        read_lens(subject.model, work, [[0]], [0], translation=lens)
