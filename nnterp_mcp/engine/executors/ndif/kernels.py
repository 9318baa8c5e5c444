"""Functions that run next to a served model, inside a trace.

nnsight sends these functions by their source, with what they are handed. So they know only torch, the interpreter, the
reductions that local passes use as well, and plain data; the model is what nnsight's wrapper is on the server's side.

The words of that data, made in `ndif.wire_format`:

- A *spot* is where in a module a state is: `path`, `side` (`input` or `output`), `item` (which element of it holds the
  state; None for the whole), `heads` (into how many heads the state is to be split; 0 for none).
- A *step* is what the interpreter does at a hook point, with its `spot`.
- A *pass* is one forward pass: `inputs`, `steps`, and `read` with `options`, which reduces what the steps captured.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from nnterp_mcp.engine.interpreter import Data, visit
from nnterp_mcp.engine.readouts.reductions import (
    choose_tokens,
    in_chunks,
    log_probabilities,
    take_rows,
)


def read_spot(model: Any, spot: Data) -> Tensor:
    """The state at a spot."""
    envoy = model.get(spot["path"])
    if spot["side"] == "output":
        whole = envoy.output
        state = whole if spot["item"] is None else whole[spot["item"]]
    else:
        args, kwargs = envoy.inputs
        state = kwargs[spot["item"]] if isinstance(spot["item"], str) else args[spot["item"]]
    return state.unflatten(-1, (spot["heads"], -1)) if spot["heads"] else state


def write_spot(model: Any, spot: Data, state: Tensor) -> None:
    """Lets the model go on with another state at a spot."""
    envoy, item = model.get(spot["path"]), spot["item"]
    state = state.flatten(-2) if spot["heads"] else state
    if spot["side"] == "output" and item is None:
        envoy.output = state
        return
    if spot["side"] == "output":
        whole = envoy.output
        parts = [*whole[:item], state, *whole[item + 1 :]]
        envoy.output = parts if isinstance(whole, list) else tuple(parts)
        return
    args, kwargs = envoy.inputs
    if isinstance(item, str):
        envoy.inputs = args, {**kwargs, item: state}
    else:
        envoy.inputs = (*args[:item], state, *args[item + 1 :]), kwargs


def walk(model: Any, steps: list[Data], carried: Data) -> Data:
    """Visits the hook points in the order in which the model runs, and returns what is captured there."""
    captured: Data = {}
    for step in steps:
        came = read_spot(model, step["spot"])
        states = visit(came, step, carried, captured)
        if states is not came:
            write_spot(model, step["spot"], states)
    return captured


def project(model: Any, states: Tensor, head: list[str]) -> Tensor:
    """The logits for states after the last layer: final norm and head, called beside the pass."""
    for path in head:
        states = model.get(path)(states)
    return states


def end_logits(model: Any, kept: Data, options: Data) -> Tensor:
    """The logits that a pass gives where they are asked for: from what was kept there, or the model's own."""
    if options["head"]:
        return project(model, kept["end"], options["head"])
    return take_rows(model.output.logits, options)


def read_pass(model: Any, captured: Data, options: Data, carried: Data) -> Data:
    """The captures of a pass and its reduced logits; states that need the model's own tail are left to the next one."""
    if options["of_captures"]:
        return read_captures(model, captured, options, carried)
    numbers: Data = {}
    if options["ends"]:
        logits = end_logits(model, captured, options)
        if "reference" in options["carries"]:
            carried["reference"] = log_probabilities(logits[:1])[0]
        if options["reduce"] is not None:
            asked = options["options"] | ({"reference": carried["reference"]} if options["compares"] else {})
            numbers = in_chunks(logits, None, options["reduce"], asked, options["width"])
    values = {name: captured[name] for name in options["captures"]}
    if "source" in options["carries"]:
        carried.update({f"source {name}": states for name, states in values.items()})
        values = {}
    return {"values": on_cpu(values), "numbers": on_cpu(numbers)}


def read_captures(model: Any, captured: Data, options: Data, carried: Data) -> Data:
    """Reduces the logits of captured states, each projected as if it were the last layer's output."""
    values = [captured[name] for name in options["captures"]]
    states = torch.stack([value.to(values[-1].device) for value in values], dim=1)
    if not options["head"]:
        carried["states"] = states.flatten(0, 1)[:, None]
        return {}
    project_rows = lambda rows: project(model, rows, options["head"])  # noqa: E731 - sent with this function
    numbers = in_chunks(states, project_rows, options["reduce"], options["options"], options["width"])
    return {"values": {}, "numbers": on_cpu(numbers)}


def read_replayed(model: Any, captured: Data, options: Data, carried: Data) -> Data:
    """The same of a pass in which captured states went through the model's own tail, a row each."""
    logits = model.output.logits[:, -1].unflatten(0, (-1, len(options["captures"])))
    numbers = in_chunks(logits, None, options["reduce"], options["options"], options["width"])
    return {"values": {}, "numbers": on_cpu(numbers)}


def with_prefix(one: Data, carried: Data, config: Any) -> Data:
    """The arguments of the model's forward pass, with a cache of keys and values to fill or to continue from.

    Args:
        one: The pass. Its `cache`, if there is one, has the `name` of the model's argument, and the `length` of the
            prefix that it goes on from; None where it fills one.
        carried: Holds the prefix.
        config: The model's configuration.
    """
    asked = one["cache"]
    if asked is None:
        return one["inputs"]
    cache = DynamicCache(config=config)
    if asked["length"] is None:
        carried["prefix"], carried["tokens"] = cache, one["inputs"]["input_ids"].shape[1]
    else:
        for number, layer in enumerate(carried["prefix"].layers):
            if layer.keys.shape[2] < carried["tokens"]:
                raise ValueError("a window has left the beginning of the prefix")
            cache.update(layer.keys[:, :, : asked["length"]], layer.values[:, :, : asked["length"]], number)
        for layer in cache.layers:
            share_rows(layer)
    return {**one["inputs"], "use_cache": True, asked["name"]: cache}


def share_rows(layer: Any) -> None:
    """Lets the one row of a layer's keys and values stand for as many rows as go on from it."""
    update = layer.update

    def widen(keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> Any:
        layer.keys = layer.keys.expand(keys.shape[0], *layer.keys.shape[1:])
        layer.values = layer.values.expand(keys.shape[0], *layer.values.shape[1:])
        return update(keys, values, *args, **kwargs)

    layer.update = widen


def on_cpu(value: Any) -> Any:
    """The same with its tensors on the CPU."""
    if isinstance(value, dict):
        return {name: on_cpu(item) for name, item in value.items()}
    if isinstance(value, list):
        return [on_cpu(item) for item in value]
    return value.cpu() if isinstance(value, Tensor) else value


def read_top(model: Any, kept: Data, options: Data, carried: Data) -> Data:
    """The top token of each row."""
    return {"tokens": model.output.logits[:, -1].argmax(-1).cpu()}


def call_module(model: Any, captured: Data, options: Data, carried: Data) -> Data:
    """The output of a module for given states, computed where the last layer's output is."""
    return {"states": project(model, options["states"].to(captured[0].device), [options["path"]]).cpu()}


def read_head(model: Any, captured: Data, options: Data, carried: Data) -> Data:
    """The rows and the biases of some tokens in a head, from its outputs for unit vectors."""
    like, tokens = captured[0][:1, 0], options["tokens"]
    bias = project(model, torch.zeros_like(like), [options["path"]])[:, tokens].float()
    columns, width = [], like.shape[-1]
    for begin in range(0, width, 256):
        at = torch.arange(begin, min(begin + 256, width))
        unit = torch.zeros(len(at), width).to(like)
        unit[at - begin, at] = 1
        columns.append(project(model, unit, [options["path"]])[:, tokens].float() - bias)
    return {"rows": torch.cat(columns).T.cpu(), "bias": bias[0].cpu()}


def read_rows(model: Any, kept: Data, options: Data, carried: Data) -> Data:
    """Some rows of a module's weight."""
    return {"rows": model.get(options["path"]).weight[options["ids"]].float().cpu()}


def step_inputs(ids: Tensor, mask: Tensor, cache: Any, number: int, options: Data) -> Data:
    """The arguments of a step's forward pass: all tokens, or with a cache only the newest after the first step."""
    first = 0 if cache is None or number == 0 else ids.shape[1] - 1
    given: Data = {"input_ids": ids[:, first:], "attention_mask": mask, "use_cache": cache is not None}
    if options["positions"]:
        given["position_ids"] = (mask.cumsum(-1) - 1).clamp_min(0)[:, first:]
    if cache is not None:
        given[options["cache_name"]] = cache
    return given


def choose(model: Any, kept: Data, options: Data, number: int) -> Data:
    """The tokens that a step chooses, and their log-probabilities."""
    logits = end_logits(model, kept, options["ends_of_passes"][number])
    draws = None if options["draws"] is None else options["draws"][number]
    tokens, log_probs = choose_tokens(logits, options["temperature"], options["top_p"], options["top_k"], draws)
    return {"tokens": tokens.cpu(), "log_probs": log_probs.cpu()}


def compare_lens(model: Any, kept: Data, options: Data, carried: Data) -> Data:
    """How far norm and head are from the model's own logits, and a padded prompt from the one before, alone.

    Rows and columns are the tokens of the prompts; those of the short prompt, which came alone before, are last, and
    the long one begins with them.
    """
    logits = take_rows(model.output.logits, options).float()
    short = logits[-options["short"] :]
    found: Data = {"dtype": str(model.output.logits.dtype).rsplit(".", 1)[-1], "largest": logits.abs().max().cpu()}
    if options["head"]:
        found["lens"] = (project(model, kept[0], options["head"]).float() - logits).abs().max().cpu()
    carried.update({"states": kept[0][:, None], "logits": logits})
    if options["compared"]:
        alone = carried["alone"].to(short.device)
        found["padded"] = (short - alone).abs().max().cpu()
        found["later"] = (logits[: options["short"]] - alone).abs().max().cpu()
    carried["alone"] = short
    return found


def compare_replayed(model: Any, kept: Data, options: Data, carried: Data) -> Data:
    """How far the states of the pass before, sent through the model's own tail, are from its logits."""
    logits = model.output.logits[:, -1].float()
    return {"lens": (logits - carried["logits"].to(logits.device)).abs().max().cpu()}
