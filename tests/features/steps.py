"""More than one pass: generation step by step, edits that stay, values from one experiment to the next."""

from __future__ import annotations

from typing import Any

import nnsight
import torch
from torch import Tensor

from tests.engine.plain import Edits
from tests.features import PARIS, Ground, clear, far, near, shows
from tests.serving import text


def greedy(ground: Ground, count: int, edits_at: dict[int, Edits] | None = None) -> list[int]:
    """What plain transformers goes on to say, the whole text read again for each token.

    Args:
        edits_at: Edits by the step, which act on that step's newest token alone.
    """
    ids = ground.ids()
    begin, acting = len(ids), {} if edits_at is None else edits_at
    for _ in range(count):
        edits: Edits = {
            key: at_position(edit, begin + step - 1)
            for step, of_step in acting.items()
            for key, edit in of_step.items()
        }
        ids.append(int(ground.plain.logits(ids, edits)[-1].argmax()))
    return ids[begin:]


def at_position(edit: Any, position: int) -> Any:
    """An edit of one position, where the text is long enough to have it."""

    def change(states: Tensor) -> None:
        if position < len(states):
            edit(states[position : position + 1])

    return change


@shows("generating")
def generating(ground: Ground) -> None:
    with ground.model.generate(PARIS, max_new_tokens=5) as tracer:
        made = tracer.result.save()

    expected = greedy(ground, 5)
    assert made[0].tolist() == [*ground.ids(), *expected]
    assert ground.run().texts[0].baseline.tokens == ground.names(expected)


def negate(states: Tensor) -> None:
    states *= -3


@shows("steps")
def steps(ground: Ground) -> None:
    model = ground.model
    with model.generate(PARIS, max_new_tokens=5) as tracer:
        tokens = nnsight.save(torch.zeros(5))
        for step in tracer.iter[:5]:
            if step == 2:
                model.mlps_output[0] = -3 * model.mlps_output[0]
            tokens[step] = model.logits[0, -1].argmax()
    with model.generate(max_new_tokens=5) as tracer:
        with tracer.invoke(PARIS):
            for _ in tracer.iter[2]:
                model.mlps_output[0] = -3 * model.mlps_output[0]
        with tracer.invoke():
            again = tracer.result.save()

    expected = greedy(ground, 5, {2: {("mlps_output", 0): negate}})
    assert tokens.tolist() == expected
    assert again[0, 6:].tolist() == expected
    assert expected != greedy(ground, 5)
    found = ground.run().texts[0]
    assert found.edited.tokens == ground.names(expected)


@shows("new-tokens")
def new_tokens(ground: Ground) -> None:
    model = ground.model
    with model.generate(PARIS, max_new_tokens=3) as tracer:
        states = nnsight.save(torch.zeros(3, 64))
        for step in tracer.iter[:3]:
            states[step] = model.layers_output[1][0, -1]

    read = ground.plain.read([*ground.ids(), *greedy(ground, 2)], "layers_output", 1)
    near(states, read[-3:])
    prompt = ground.calls[0].arguments["prompts"]
    ground.run()
    near(ground.lab.arrays["states"][:, 0], ground.plain.read(ground.ids(prompt), "layers_output", 1)[6:])


@shows("editing")
def editing(ground: Ground) -> None:
    model = ground.model
    edits: Edits = {("mlps_output", 1): clear}
    with model.edit() as (_, edited):
        edited.mlps_output[1] = torch.zeros_like(edited.mlps_output[1])
    with edited.trace(PARIS):
        changed = edited.logits.save()
    with model.trace(PARIS):
        unchanged = model.logits.save()
    near(changed[0], ground.logits(edits))
    near(unchanged[0], ground.logits())

    with model.edit(inplace=True):
        model.mlps_output[1] = torch.zeros_like(model.mlps_output[1])
    with model.trace(PARIS):
        in_place = model.logits.save()
    model.clear_edits()
    with model.trace(PARIS):
        cleared = model.logits.save()
    near(in_place[0], changed[0])
    near(cleared[0], unchanged[0])
    edit_model(ground, edits)


def edit_model(ground: Ground, edits: Edits) -> None:
    """The page's calls on a server: what is in force for every call, until it is cleared."""
    given, cleared = (call.arguments for call in ground.calls)
    for arguments, of_plain in ((given, edits), (cleared, {})):
        answer = ground.connect().call("edit_model", **arguments)
        assert not answer.is_error, text(answer)
        answered(ground, ground.connect().call("logit_lens", prompts=PARIS, layers=-1), ground.logits(of_plain))


def answered(ground: Ground, answer: Any, logits: Tensor) -> None:
    """Asserts that a server's lens at the last layer says what plain transformers says."""
    top = logits[-1].softmax(-1).topk(1)
    token, p = answer.structured_content["table"]["rows"][0][1][0]
    assert token == ground.names(top.indices)[0]
    assert abs(p - float(top.values)) < 1e-3


@shows("sessions")
def sessions(ground: Ground) -> None:
    model = ground.model
    with model.session():
        with model.trace(PARIS):
            state = model.layers_output[1][:, -1].save()
        with model.trace("Madrid is"):
            model.layers_output[1][:, -1] = state
            logits = model.logits[:, -1].save()

    taken = ground.plain.read(ground.ids(), "layers_output", 1)[-1]

    def put(states: Tensor) -> None:
        states[-1] = taken

    edits: Edits = {("layers_output", 1): put}
    near(logits[0], ground.logits(edits, "Madrid is")[-1])
    far(logits[0], ground.logits(prompt="Madrid is")[-1])
    from_a_run(ground, edits)


def from_a_run(ground: Ground, edits: Edits) -> None:
    """The page's patch on a server, from a run that collected the states."""
    client = ground.connect()
    kept: Any = client.call("collect_activations", prompts=PARIS, layers=1).structured_content
    patch = {"op": "patch", "layers": 1, "positions": "last", "from": {"run": kept["run_id"]}}
    answer = client.call("logit_lens", prompts="Madrid is", layers=-1, interventions=[patch])
    answered(ground, answer, ground.logits(edits, "Madrid is"))
