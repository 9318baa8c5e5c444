"""Operations at the turns of chats, against plain transformers with plain hooks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from nnterp_mcp.engine.forward import forward
from nnterp_mcp.engine.planning.plan import plan
from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.experiments.target_prompts import encode_target
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.text.positions import resolve_positions
from nnterp_mcp.model.text.tokenization import encode_prompts, pad_batch
from nnterp_mcp.request.operations import parse_operation
from nnterp_mcp.verification.tiny import tiny_model, tiny_tokenizer
from tests.engine.plain import FAMILIES, Plain
from tests.model.text.templates import STYLES

CHATS = [
    [{"role": "user", "content": "Paris"}],
    [
        {"role": "system", "content": "Paris is"},
        {"role": "user", "content": "The capital of Spain"},
        {"role": "assistant", "content": "is Madrid"},
        {"role": "user", "content": "is Madrid"},
    ],
]


@pytest.fixture(scope="module")
def model() -> StandardizedTransformer:
    tokenizer: Any = tiny_tokenizer()
    tokenizer.chat_template = STYLES["chatml"].jinja
    return StandardizedTransformer(tiny_model("llama"), tokenizer=tokenizer, name="tiny")


def test_an_operation_acts_on_the_last_users_words_alone(model: StandardizedTransformer) -> None:
    prompts = encode_prompts(model.tokenizer, CHATS, "tiny")
    operation = {"op": "zero", "site": "mlps_output", "layers": 1, "positions": {"role": "user", "turn": -1}}
    edits = plan(model, [parse_operation(operation)], prompts)
    batch = pad_batch(prompts, model.pad_id, model.device)
    ends = [(row, len(prompt.ids) - 1) for row, prompt in enumerate(batch.prompts)]
    logits = forward(model, batch, edits, logits=ends).logits
    assert logits is not None
    plain = Plain(tiny_model("llama").eval(), FAMILIES["llama"])

    for row, prompt in enumerate(batch.prompts):
        words = CHATS[prompt.index][-1]["content"]
        start = prompt.text.rindex(words)
        touched = [at for at, (first, last) in enumerate(prompt.spans) if first < start + len(words) and last > start]

        def zero(states: Tensor, touched: list[int] = touched) -> None:
            states[touched] = 0

        expected = plain.probabilities(prompt.ids, {("mlps_output", 1): zero})
        torch.testing.assert_close(logits[row].double().softmax(-1), expected.double(), rtol=0, atol=1e-5)


def test_a_text_among_chats_is_named(model: StandardizedTransformer) -> None:
    prompts = encode_prompts(model.tokenizer, [*CHATS, "plain"], "tiny")
    operation = parse_operation({"op": "zero", "site": "mlps_output", "layers": 1, "positions": {"turn": 0}})

    with pytest.raises(InvalidRequest, match="prompt 2 is plain text and has no turns"):
        plan(model, [operation], prompts)


def test_a_target_prompt_keeps_its_turns() -> None:
    tokenizer: Any = tiny_tokenizer()
    tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
    encoded = encode_target(tokenizer, CHATS[0], "tiny")
    operation = parse_operation({"op": "zero", "site": "mlps_output", "layers": 1, "positions": {"turn": 0}})

    tokens = resolve_positions(operation.positions, encoded)  # pyright: ignore
    assert tokenizer.decode([encoded.ids[at] for at in tokens]) == "Paris"
