"""What a card computes: in float32 what a CPU computes, in bfloat16 the same to its precision, by graphs as without."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import pytest
import torch

from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.settings import Settings
from tests.recorded import EXAMPLES

if TYPE_CHECKING:
    from nnterp_mcp.laboratory import Laboratory
    from nnterp_mcp.model.standardized import StandardizedTransformer

FAMILIES = ("llama", "gpt2", "gemma2", "gpt_neox", "mistral", "qwen2_moe", "bloom", "falcon")
PROMPTS = ["The capital of France is", "Paris and Rome", "of Spain is Madrid, and Rome is the capital of"]
OPERATIONS: list[dict[str, Any]] = [
    {"op": "add", "layers": 1, "vector": {"positive": " Paris", "negative": " Rome"}, "factor": 4},
    {"op": "scale", "site": "heads_output", "layers": 0, "heads": [1], "factor": -1, "steps": "2:9"},
    {"op": "project_out", "layers": 2, "vector": {"positive": " a", "negative": " b"}},
    {"op": "scale", "site": "mlps_output", "layers": 1, "neurons": [3, 5], "factor": 0.5, "prompts": [0, 2]},
]


def on_card(family: str, dtype: torch.dtype = torch.float32) -> StandardizedTransformer:
    from nnterp_mcp.model.standardized import StandardizedTransformer
    from nnterp_mcp.verification.tiny import tiny_model, tiny_tokenizer

    return StandardizedTransformer(tiny_model(family).to("cuda", dtype), tokenizer=tiny_tokenizer(), name=family)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_with_operations_are_those_of_the_cpu(family: str) -> None:
    from nnterp_mcp.engine.forward import forward
    from nnterp_mcp.engine.planning.plan import plan
    from nnterp_mcp.model.standardized import StandardizedTransformer
    from nnterp_mcp.model.text.tokenization import encode_prompts, pad_batch
    from nnterp_mcp.request.operations import parse_operation
    from nnterp_mcp.verification.tiny import tiny_model, tiny_tokenizer

    def run(model: StandardizedTransformer, operations: list[dict[str, Any]]) -> torch.Tensor:
        prompts = encode_prompts(model.tokenizer, PROMPTS, family)
        batch = pad_batch(prompts, model.pad_id, model.device)
        edits = plan(model, [parse_operation(operation) for operation in operations], prompts)
        ends = [(row, len(prompt.ids) - 1) for row, prompt in enumerate(batch.prompts)]
        logits = forward(model, batch, edits, logits=ends).logits
        assert logits is not None
        return logits.cpu()

    card = on_card(family)
    cpu = StandardizedTransformer(tiny_model(family), tokenizer=tiny_tokenizer(), name=family)
    knockout = [{"op": "knockout", "layers": 1, "key_positions": 0, "query_positions": "1:"}]
    for operations in ([], OPERATIONS, knockout):
        assert torch.allclose(run(card, operations), run(cpu, operations), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("operations", [[], OPERATIONS], ids=["plain", "edited"])
def test_captured_steps_say_what_others_say(family: str, operations: list[dict[str, Any]]) -> None:
    from nnterp_mcp.engine import decode_steps
    from nnterp_mcp.engine.executors.capture import LaunchGraph, reasons_against
    from nnterp_mcp.engine.generation import generate
    from nnterp_mcp.engine.planning.plan import plan
    from nnterp_mcp.model.text.tokenization import encode_prompts
    from nnterp_mcp.request.operations import parse_operation

    model = on_card(family)
    prompts = encode_prompts(model.tokenizer, PROMPTS, family)
    edits = plan(model, [parse_operation(operation) for operation in operations], prompts)
    with patch.object(decode_steps, "captures_steps", return_value=False):
        expected = generate(model, Workload(prompts, edits), max_new_tokens=24)
    usual = LaunchGraph.replay
    with patch.object(LaunchGraph, "replay", autospec=True, side_effect=usual) as replayed:
        found = generate(model, Workload(prompts, edits), max_new_tokens=24)
    if family in ("bloom", "falcon", "qwen2_moe"):  # position biases or routing from the host, masks of their own
        assert replayed.call_count == 0
    else:
        assert "decode steps" not in reasons_against(model)
        assert replayed.call_count > 10
    for one, other in zip(found, expected, strict=True):
        assert one.ids == other.ids
        assert one.log_probs == pytest.approx(other.log_probs, abs=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_replayed_lenses_say_what_the_pass_itself_says(family: str, dtype: torch.dtype) -> None:
    from nnterp_mcp.engine.executors import short_passes
    from nnterp_mcp.engine.executors.capture import LaunchGraph, reasons_against
    from nnterp_mcp.experiments.logit_lens import LensReadings, read_lens
    from nnterp_mcp.model.text.tokenization import encode_prompts

    model = on_card(family, dtype)

    def read(prompts: list[str]) -> LensReadings:
        encoded = encode_prompts(model.tokenizer, prompts, family)
        ends = [[len(prompt.ids) - 1] for prompt in encoded]
        return read_lens(model, Workload(encoded), ends, range(model.num_layers))

    texts = [[prompt] for prompt in PROMPTS] + [PROMPTS]
    with patch.object(short_passes, "captures", return_value=False):
        expected = [read(one) for one in texts]
    usual = LaunchGraph.replay
    with patch.object(LaunchGraph, "replay", autospec=True, side_effect=usual) as replayed:
        found = [[read(one) for one in texts] for _ in range(3)][-1]
    refused = reasons_against(model).get("short passes")
    if family in ("llama", "gpt2", "mistral", "gemma2"):
        assert refused is None
        assert replayed.call_count > 4
    allowed = 1e-4 if dtype == torch.float32 else 0.2
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one.readout.entropy, other.readout.entropy, atol=allowed)
        assert torch.allclose(one.kl, other.kl, atol=allowed)


@pytest.fixture(scope="module")
def labs(tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Laboratory]:
    from nnterp_mcp import Laboratory

    def make(device: str) -> Laboratory:
        settings = Settings(data=tmp_path_factory.mktemp(device))
        return Laboratory(str(tiny("llama")), dtype="float32", device=device, settings=settings)

    return {device: make(device) for device in ("cpu", "cuda")}


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_tool_says_on_a_card_what_it_says_on_a_cpu(name: str, labs: dict[str, Laboratory]) -> None:
    tool, arguments = EXAMPLES[name]
    cpu, card = (dict(_leaves(lab.call(tool, **arguments).model_dump(mode="json"))) for lab in labs.values())

    assert cpu.keys() == card.keys()
    for path, expected in cpu.items():
        found = card[path]
        if any(name in path for name in ("device", "memory", "made", "seconds")):
            continue
        if isinstance(expected, float) and isinstance(found, float):
            expected = pytest.approx(expected, rel=2e-3, abs=2e-4)
        assert found == expected, path


def test_bfloat16_is_right_to_its_precision() -> None:
    exact, rounded = (on_card("llama", dtype) for dtype in (torch.float32, torch.bfloat16))
    ids = torch.tensor([[5, 17, 30, 44, 61, 7]], device="cuda")
    with torch.inference_mode():
        plain = rounded.module(input_ids=ids, use_cache=False).logits.float()
        wanted = exact.module(input_ids=ids, use_cache=False).logits
    with torch.no_grad():
        with rounded.trace(input_ids=ids):
            state = rounded.layers_output[-1].save()
        lens = rounded.project_on_vocab(state).float()

    assert torch.equal(lens, plain)
    assert float((lens - wanted).abs().max()) <= 0.1 * float(wanted.abs().max())


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, f"{path}/{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{path}/{index}")
    else:
        yield path, value
