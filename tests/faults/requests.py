"""Requests that no good client sends, and clients that call at once."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from tests.faults.scene import PROMPT, SHARED, Fault, Scene, another_client, attempt
from tests.faults.wire import Wire, call_body


def status_of(scene: Scene, body: bytes, **headers: str) -> str:
    """The status line of a bare POST."""
    wire = Wire(scene.http.address)
    try:
        wire.send("POST", "/mcp", body, headers)
        return wire.until(b"\r\n").decode().strip()
    finally:
        wire.close()


def malformed(scene: Scene) -> str:
    bodies = [b"{", b"\xff\xfe", b"[]", b"null", b'{"jsonrpc": "2.0", "id": 1}', b'{"jsonrpc": "1.0", "method": 5}']
    answers = {status_of(scene, body) for body in [*bodies, b"[" * 40_000]}  # more of them are too much to read
    return ", ".join(sorted(answers))


def giant(scene: Scene) -> str:
    """Refused for what its headers say; nobody waits for 4 MB."""
    return status_of(scene, b"", **{"Content-Length": "4000001"})


def giant_argument(scene: Scene) -> str:
    """An argument of 500 kB."""
    return attempt(scene.client, "logit_lens", prompts="a " * 250_000)


def fast(tool: str, **arguments: Any) -> Callable[[Scene], str]:
    """A call that is refused before it costs anything."""

    def inject(scene: Scene) -> str:
        begun = time.monotonic()
        said = attempt(scene.client, tool, **arguments)
        assert time.monotonic() - begun < 2
        return said

    return inject


def too_many_values(scene: Scene) -> str:
    """A body of 100,000 lists in 400 kB."""
    return status_of(scene, call_body("logit_lens", {"prompts": "a", "layers": [[0]] * 100_000}))


def without_session(scene: Scene) -> str:
    return status_of(scene, call_body("session", {}))


def wrong_types(scene: Scene) -> str:
    return attempt(scene.client, "logit_lens", prompts={"a": [1, None]}, layers=1.5, top_k="many")


def unknown_argument(scene: Scene) -> str:
    return attempt(scene.client, "logit_lens", prompts="a", temperature=1)


def unknown_tool(scene: Scene) -> str:
    return attempt(scene.client, "logit_lense", prompts="a")


def unknown_handle(scene: Scene) -> str:
    return attempt(scene.client, "logit_lens", prompts="a", model="gpt-9")


def unknown_run(scene: Scene) -> str:
    return attempt(scene.client, "read_run", run_id="logit_lens-222222")


def path_as_run(scene: Scene) -> str:
    return attempt(scene.client, "read_run", run_id="../../etc/passwd")


def raised_in_a_pass(scene: Scene) -> str:
    """A direction as wide as the residual stream, added to heads, which are narrower: told in the middle of a pass."""
    vector = {"positive": " a", "negative": " b"}
    operation = {"op": "add", "layers": [1], "site": "heads_output", "vector": vector, "factor": 1.0}
    zeroed = {"op": "zero", "layers": [0], "site": "mlps_output"}
    return attempt(scene.client, "logit_lens", prompts=PROMPT, interventions=[zeroed, operation])


def overflow(tool: str, **arguments: Any) -> Callable[[Scene], str]:
    """Numbers that grow beyond float32 in the middle of the model: no reading of them may look like one."""

    def inject(scene: Scene) -> str:
        operation = {"op": "scale", "layers": [1], "site": "layers_output", "factor": 1e38}
        prompts = "source_prompts" if tool == "patchscope" else "prompts"
        return attempt(scene.client, tool, **{prompts: PROMPT}, interventions=[operation] * 2, **arguments)

    return inject


def two_at_once(scene: Scene) -> str:
    """Two clients with eight different prompts each; every answer must be the one that the prompt gets alone."""
    prompts = [f"number {number} of sixteen" for number in range(16)]
    alone = [_answer(scene.client.call("logit_lens", prompts=prompt).structured_content) for prompt in prompts]
    with another_client(scene) as one, another_client(scene, "sse") as other:
        # Two of each wait at most, which is what the queue takes.
        answers: list[Any] = []
        for first in range(0, len(prompts), 2):
            calls = [
                one.begin("logit_lens", prompts=prompts[first]),
                other.begin("logit_lens", prompts=prompts[first + 1]),
            ]
            answers += [_answer(call.result(60).structured_content) for call in calls]
    right = sum(answer == known for answer, known in zip(answers, alone, strict=True))
    return f"{right} of {len(prompts)} right, {len({str(answer) for answer in alone})} different"


def _answer(content: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in content.items() if name != "run_id"}


_INFINITE = "the model's (logits|attention probabilities) are not finite"
_READERS: dict[str, dict[str, Any]] = {
    "logit_lens": {},
    "run_prompts": {"targets": {"a": "a"}},
    "attention_probs": {},
    "generate": {"max_new_tokens": 3, "temperature": 1.0},
    "steer": {"vector": {"positive": " a"}, "layers": [1], "factors": [1, 2]},
    "patchscope": {},
}

FAULTS = [
    Fault("malformed JSON-RPC over HTTP", malformed, r"HTTP/1.1 400 Bad Request$"),
    Fault("a request body over the limit", giant, r"HTTP/1.1 413 "),
    Fault("an argument of 500 kB", giant_argument, r"(limit_exceeded|invalid_request): "),
    Fault("a body of 100,000 lists", too_many_values, r"HTTP/1.1 413 "),
    Fault(
        "40,000 unknown arguments",
        fast("logit_lens", prompts="a", **{f"k{number}": 0 for number in range(40_000)}),
        r"limit_exceeded: an object of 40001 names",
    ),
    Fault(
        "900 unknown arguments",
        fast("logit_lens", prompts="a", **{f"k{number}": 0 for number in range(900)}),
        r"invalid_request: logit_lens has no argument 'k0'",
    ),
    Fault(
        "40,000 target categories",
        fast("logit_lens", prompts="a", targets={f"k{number}": "a" for number in range(40_000)}),
        r"limit_exceeded: an object of 40000 names",
    ),
    Fault(
        "positions of 40,000 names",
        fast("logit_lens", prompts="a", positions={f"k{number}": 0 for number in range(40_000)}),
        r"limit_exceeded: an object of 40000 names",
    ),
    Fault("a call without a session", without_session, r"HTTP/1.1 400 "),
    Fault("arguments of wrong types", wrong_types, r"invalid_request: prompts"),
    Fault("an unknown argument", unknown_argument, r"invalid_request: logit_lens has no argument 'temperature'"),
    Fault("an unknown tool", unknown_tool, r"protocol error: Unknown tool: logit_lense"),
    Fault("an unknown handle", unknown_handle, r"no_model: no loaded model has the handle 'gpt-9'"),
    Fault("an unknown run", unknown_run, r"invalid_request: there is no run 'logit_lens-222222'"),
    Fault("a path as a run's id", path_as_run, r"invalid_request: a run id looks like"),
    Fault("an intervention that raises in mid-pass", raised_in_a_pass, r"invalid_request: .* numbers, and a state at"),
    *(
        Fault(f"an intervention that overflows ({tool})", overflow(tool, **arguments), rf"invalid_request: {_INFINITE}")
        for tool, arguments in _READERS.items()
    ),
    Fault("two clients at once, each its own answer", two_at_once, r"16 of 16 right, 16 different"),
]
assert all(fault.settings is SHARED for fault in FAULTS)
