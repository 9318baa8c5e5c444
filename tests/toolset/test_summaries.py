"""The wording of each summary, from results that are made up, so that no number depends on a machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from syrupy.assertion import SnapshotAssertion

from nnterp_mcp.contract import Result
from nnterp_mcp.server.replies import answered
from nnterp_mcp.toolset import specs
from tests.serving import text


def layer(index: int, top: list[tuple[str, float]], targets: list[tuple[float, int]] | None = None) -> dict[str, Any]:
    return {"layer": index, "top": top, "entropy": 5.4321 / (index + 1), "kl": 10.0 - index, "targets": targets or []}


def reading(layers: list[dict[str, Any]], leads_from: int | None, **place: Any) -> dict[str, Any]:
    where = {"prompt": 0, "text": "The capital of France is", "position": 4, "token": " is"}
    return where | place | {"layers": layers, "leads_from": leads_from}


def lens(readings: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    whole = {"model": "tiny", "last_layer": 9, "categories": {}, "shared": {}, "interventions": []}
    return whole | {"readings": readings} | more


RISING = [
    layer(i, [(" Paris" if i > 6 else " the", 0.05 + i / 12), ("\n", 0.04)], [(10.0 ** (i - 9), 10 - i)])
    for i in range(10)
]
SHORT = {"categories": {"capital": ["Paris", " Paris"]}}
FITTED: dict[str, Any] = {"lens": "own.pt", "fitted": {"name": "own.pt", "method": "jacobian", "prompts": 124}}


def fit(**more: Any) -> dict[str, Any]:
    layers = [
        {"layer": at, "kl": 5 - at / 2, "plain_kl": 15.0 - at, "agreement": at / 10, "plain_agreement": at / 20}
        for at in range(10)
    ]
    return {"model": "tiny", "card": FITTED["fitted"] | {"name": "own"}, "checked": 38, "layers": layers} | more


CARD: dict[str, Any] = {
    "handle": "tiny",
    "architecture": "LlamaForCausalLM",
    "num_layers": 4,
    "num_heads": 4,
    "hidden_size": 64,
    "vocab_size": 320,
    "context": 256,
    "parameters": 164_416,
    "dtype": "float32",
    "device": "cpu",
    "attention": "sdpa",
    "memory": 657_664,
    "seconds": 3.456,
    "source": "/models/tiny",
    "revision": None,
    "verified": True,
    "checks": [
        {"name": "lens", "passed": True, "detail": "last layer's lens differs from the logits by at most 0"},
        {"name": "attention", "passed": False, "detail": "no layer forms attention probabilities"},
    ],
}
MODEL: dict[str, Any] = {
    "handle": "tiny",
    "source": "/models/tiny",
    "state": "ready",
    "device": "cpu",
    "dtype": "float32",
    "age": 250.0,
    "host_memory": 1_234_567_890,
    "device_memory": None,
}
RUN: dict[str, Any] = {
    "id": "logit_lens-k3f7qa",
    "tool": "logit_lens",
    "model": "tiny",
    "state": "done",
    "age": 70.0,
}
CLAIM: dict[str, Any] = {
    "model": "tiny",
    "component": "L1H2, mlps_output L3@city",
    "parts": ["L1H2", "mlps_output L3@city"],
    "predicts": "drives",
    "metric": "logit_difference",
    "categories": {"answer": [" Paris"], "wrong": [" Rome"]},
    "corruption": "corrupted prompts",
    "outcome": "not supported",
    "reasons": ["sufficiency: no larger than in random components (0.02, 12 of 39 as large, p = 0.33).",
                "necessity: 0.61, none of 39 as large, p = 0.025."],
    "left_out": 2,
    "gap": {"mean": 4.2, "low": 3.1, "high": 5.2},
    "kind": "component of layers up to 1 away",
    "unmeasured": ["mean ablation: the clean prompts are not equally long"],
    "criteria": [
        {"criterion": name, "effect": {"mean": mean, "low": mean - 0.1, "high": mean + 0.1}, "null_95": 0.1, "p": p,
         "holds": holds, "decides": True}
        for name, mean, p, holds in (("necessity", 0.61, 0.025, True), ("sufficiency", 0.02, 0.33, False))
    ],
    "doses": [{"strength": at / 4, "effect": {"mean": 0.15 * at}} for at in range(1, 5)],
    "prompts": [{"prompt": at, "text": "a", "clean": 2.0, "corrupted": -2.0, "necessity": 0.6, "sufficiency": 0.0}
                for at in range(6)],
    "control": 0,
    "nulls": [{"component": "L1H3", "effects": {"necessity": 0.0, "sufficiency": 0.1}}],
    "runs": 720,
}  # fmt: skip
RESULTS: dict[str, tuple[str, dict[str, Any]]] = {
    "lens": ("logit_lens", lens([reading(RISING, 7)], **SHORT)),
    "lens that leads throughout": ("logit_lens", lens([reading(RISING[7:], 7)], **SHORT)),
    "lens without the last layer": ("logit_lens", lens([reading(RISING[:5], 0)], **SHORT)),
    "lens of several readings": (
        "logit_lens",
        lens([reading(RISING, 7), reading(RISING, 9, prompt=1, position=2, token="\tof")], **SHORT),
    ),
    "lens with categories that share a token": (
        "logit_lens",
        lens([reading(RISING, 7)], **SHORT, shared={"capital and city": [" Paris"]}),
    ),
    "lens that was fitted": (
        "logit_lens",
        lens([reading([layer | {"plain": (" a", 0.5)} for layer in RISING], 7, plain_leads_from=9)], **SHORT, **FITTED),
    ),
    "fitted lens of several readings": (
        "logit_lens",
        lens([reading(RISING, 7, plain_leads_from=8), reading(RISING, 9, prompt=1, plain_leads_from=9)], **FITTED),
    ),
    "claim": ("verify_claim", CLAIM),
    "claim without prompts": (
        "verify_claim",
        CLAIM
        | {"outcome": "inconclusive", "reasons": ["No prompt is left that did not serve to find the claim."]}
        | {"criteria": [], "doses": [], "prompts": [], "nulls": [], "gap": None, "component": "", "parts": []},
    ),
    "fit": ("fit_lens", fit()),
    "fit that is merged, resumed and replaces": ("fit_lens", fit(merged=100, resumed=10, replaced=True)),
    "fit that was stopped": ("fit_lens", fit(layers=[], checked=0)),
    "model": ("load_model", CARD),
    "model that was checked before": ("load_model", CARD | {"checked_before": True}),
    "model that was there": ("load_model", CARD | {"already_loaded": True, "context": None, "revision": "abc123"}),
    "model of an unknown architecture": ("load_model", CARD | {"architecture": "NewForCausalLM", "verified": False}),
    "session": (
        "session",
        {
            "models": [MODEL],
            "runs": [
                {**RUN, "id": "run_prompts-abc234", "state": "running", "progress": "12 of 90 prompts"},
                RUN,
            ],
            "gone": {"old": "it was unloaded"},
            "vectors": [],
            "free_memory": 12_345_678_901,
        },
    ),
    "empty session": ("session", {"models": [], "runs": [], "gone": {}, "vectors": [], "free_memory": 12_345_678_901}),
    "tokens": (
        "tokenize",
        {"model": "tiny", "prompts": [{"text": "a b", "ids": [1, 65, 66], "tokens": ["<bos>", "a", " b"]}]},
    ),
    "tokens of several prompts": (
        "tokenize",
        {
            "model": "tiny",
            "prompts": [
                {"text": "a\n", "ids": [65, 10], "tokens": ["a", "\n"]},
                {"text": "x" * 99, "ids": list(range(99)), "tokens": ["x"] * 99},
            ],
        },
    ),
    "unloaded": ("unload_model", {"handle": "tiny", "memory": 1_234_567_890, "remaining": ["other"]}),
    "unloaded the last": ("unload_model", {"handle": "tiny", "memory": None, "remaining": []}),
}


@pytest.mark.parametrize("kind", RESULTS)
def test_summary(kind: str, snapshot: SnapshotAssertion) -> None:
    tool, data = RESULTS[kind]
    spec = specs()[tool]
    reply = answered(spec.digest(spec.result.model_validate(data)))

    assert text(reply) == snapshot(name="text")
    assert reply.structured_content == snapshot(name="structured")


def big_lens(prompts: int = 1, positions: int = 1, top_k: int = 3, categories: int = 0, **more: Any) -> dict[str, Any]:
    """A lens of a model of 32 layers, at its largest."""
    name, token, layers = more.get("name", "category"), more.get("token", " Barcelona"), more.get("layers", 32)
    read = [layer(i, [(token, 0.123456)] * top_k, [(0.0123456, 12345)] * categories) for i in range(layers)]
    names = [f"{name} {n}" for n in range(categories)]
    return lens(
        [reading(read, 20, prompt=p, position=at, token=token) for p in range(prompts) for at in range(positions)],
        last_layer=layers - 1,
        categories={each: ["a"] for each in names},
        shared={f"{a} and {b}": [token] for a in names for b in names if a < b},
    )


@pytest.mark.parametrize(
    ("result", "ceiling"),
    [
        ({}, 1000),
        ({"categories": 2}, 1000),
        ({"prompts": 20, "categories": 2}, 1000),
        ({"prompts": 100, "positions": 20}, 1000),
        ({"layers": 126}, 1000),
        ({"top_k": 20, "categories": 2}, 1500),
        ({"categories": 40, "name": "a name of a category that goes on and on"}, 1500),
        ({"categories": 3, "name": "n" * 3000}, 1500),
        ({"token": "x" * 500}, 1500),
        ({"token": " " * 500, "prompts": 50}, 1500),
    ],
    ids=str,
)
def test_a_lens_is_small_however_large_its_result(
    result: dict[str, Any], ceiling: int, count_tokens: Callable[[object], int]
) -> None:
    spec = specs()["logit_lens"]
    whole: Result = spec.result.model_validate(big_lens(**result))
    reply = answered(spec.digest(whole))

    assert count_tokens(text(reply)) <= ceiling
    assert count_tokens(reply.structured_content) <= ceiling
    assert reply.structured_content is not None
    assert reply.structured_content["truncated"] or "not shown" not in text(reply)
