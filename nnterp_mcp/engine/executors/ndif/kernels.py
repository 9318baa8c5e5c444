"""What runs beside a served model, inside a trace.

nnsight sends these functions by their source, with what they are handed. So they know only torch, the reductions that
local readings use as well, and plain data; the model is what nnsight's wrapper is on the server's side.

The words of that data, made in `remote.steps`:

- A *spot* is where in a module a state is: `path`, `side` (`input` or `output`), `item` (which element of it holds the
  state; None for the whole), `heads` (into how many heads the state is to be split; 0 for none).
- An *edit* says `rows` and `columns` of a state, what becomes of it (`op`: `add`, `scale`, `project`, `put` with
  `value`; `take` with the `name` of a state seen earlier, and `index`, where its entries are), and `heads` and
  `neurons`, None for all.
- A *step* is a spot with the edits that are made there and the *keeps*: name, function, options.
- A *pass* is one forward pass: `inputs`, `steps`, and `read` with `options`, which reduces what the steps kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nnterp_mcp.engine.readouts.reductions import (
    average_over,
    choose_tokens,
    divergence,
    log_probabilities,
    measure,
    summarize_distributions,
    summarize_patterns,
)

Data = dict[str, Any]


def fetch(model: Any, spot: Data) -> Tensor:
    """The state at a spot."""
    envoy = model.get(spot["path"])
    if spot["side"] == "output":
        whole = envoy.output
        state = whole if spot["item"] is None else whole[spot["item"]]
    else:
        args, kwargs = envoy.inputs
        state = kwargs[spot["item"]] if isinstance(spot["item"], str) else args[spot["item"]]
    return state.unflatten(-1, (spot["heads"], -1)) if spot["heads"] else state


def assign(model: Any, spot: Data, state: Tensor) -> None:
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
    """Makes the edits of each step, in the order in which the model runs, and returns what the steps keep."""
    kept: Data = {}
    for step in steps:
        state = fetch(model, step["spot"])
        if step["edits"]:
            state = state.clone()
            for edit in step["edits"]:
                change(state, edit, carried | kept)
            assign(model, step["spot"], state)
        for name, function, options in step["keeps"]:
            kept[name] = function(state, options)
    return kept


def change(state: Tensor, edit: Data, seen: Data) -> None:
    """Makes an edit, in place."""
    rows, columns = edit["rows"].to(state.device), edit["columns"].to(state.device)
    picked = state[rows, columns]
    part = picked if edit["heads"] is None else picked[:, edit["heads"]]
    new = become(part, edit, seen).to(part)
    if edit["neurons"] is not None:
        kept = part.clone()
        kept[..., edit["neurons"]] = new[..., edit["neurons"]]
        new = kept
    if edit["heads"] is None:
        picked = new
    else:
        picked[:, edit["heads"]] = new
    state[rows, columns] = picked


def become(part: Tensor, edit: Data, seen: Data) -> Tensor:
    """The new states."""
    value, op = edit["value"], edit["op"]
    if op == "scale":
        return part * value if value else torch.zeros_like(part)
    if op == "take":
        taken = seen[edit["name"]][edit["index"]]
        return taken if edit["heads"] is None else taken[:, edit["heads"]]
    value = value.to(part.device)
    if op == "add":
        return part + value.to(part)
    if op == "project":
        direction = torch.nn.functional.normalize(value.float(), dim=0)
        return part - ((part.float() @ direction)[..., None] * direction).to(part)
    return value.expand_as(part)


def pick(state: Tensor, options: Data) -> Tensor:
    """The states at some rows and columns."""
    return state[options["rows"].to(state.device), options["columns"].to(state.device)]


def pick_all(state: Tensor, options: Data) -> Tensor:
    """All of a state, as it is now."""
    return state.clone()


def pick_lengths(state: Tensor, options: Data) -> Tensor:
    """How long the states at some rows and columns are."""
    return pick(state, options).float().norm(dim=-1)


def pick_averages(state: Tensor, options: Data) -> Tensor:
    """The weighted mean of each row's states, and of their lengths."""
    return average_over(state, options["weights"])


def pick_patterns(state: Tensor, options: Data) -> Data:
    """What attention probabilities (row, head, query, key) are reduced to, and some rows of them whole."""
    asked, groups = options["asked"], options["heads"]
    parts = [summarize_patterns(state[:, heads].float(), asked, options["top_k"]) for heads in groups]
    numbers = join([{name: value.cpu() for name, value in part.items()} for part in parts], dim=1)
    if options["whole"]:
        numbers["whole"] = torch.cat([state[:, heads].float().cpu() for heads in groups], dim=1)
    return numbers


def project(model: Any, states: Tensor, head: list[str]) -> Tensor:
    """The logits for states after the last layer: final norm and head, called beside the pass."""
    for path in head:
        states = model.get(path)(states)
    return states


def end_logits(model: Any, kept: Data, options: Data) -> Tensor:
    """The logits that a pass gives where they are asked for: from what was kept there, or the model's own."""
    if options["head"]:
        return project(model, kept["end"], options["head"])
    return pick(model.output.logits, options)


def read_states(model: Any, kept: Data, options: Data, carried: Data) -> Data:
    """The states themselves, layer by layer: (entry, layer, width)."""
    return {"states": torch.stack([kept[name].cpu() for name in options["names"]], dim=1)}


def read_lens(model: Any, kept: Data, options: Data, carried: Data) -> Data:
    """What each layer would say: the fields of a `Readout`, and KL(last layer || layer)."""
    last = kept[options["names"][-1]]
    states = torch.stack([kept[name].to(last.device) for name in options["names"]], dim=1)
    if not options["head"]:
        carried["states"] = states.flatten(0, 1)[:, None]
        return {}
    size = options["readings_at_once"]
    parts = [
        reduce_lens(project(model, some, options["head"]), options, first)
        for first, some in zip(range(0, len(states), size), states.split(size), strict=True)
    ]
    return join(parts)


def read_replayed_lens(model: Any, kept: Data, options: Data, carried: Data) -> Data:
    """The same of a pass in which the states went through the model's own tail, a row each."""
    logits = model.output.logits[:, -1].unflatten(0, (-1, len(options["names"])))
    return reduce_lens(logits, options, 0)


def reduce_lens(logits: Tensor, options: Data, first: int) -> Data:
    """Logits (reading, layer, vocabulary), of which the last layer is what the others are compared with."""
    count, readings = options["count"], slice(first, first + len(logits))
    log_probs = log_probabilities(-logits if options["inverse"] else logits)
    ids, real = (options[name][readings].to(logits.device).repeat_interleave(count, dim=0) for name in ("ids", "real"))
    found = summarize_distributions(log_probs[:, :count].flatten(0, 1), options["top_k"], ids, real)
    shaped = {name: value.unflatten(0, (-1, count)).cpu() for name, value in found.items()}
    return shaped | {"kl": divergence(log_probs[:, -1:], log_probs[:, :count]).cpu()}


def read_next(model: Any, kept: Data, options: Data, carried: Data) -> Data:
    """What comes after each row: the fields of a `Readout`; lengths that were kept; the KL to a row's baseline.

    Where `baselines` names the rows, these are the baselines of rows to come; where `against` does, of those.
    """
    log_probs = log_probabilities(end_logits(model, kept, options))
    ids, real = options["ids"].to(log_probs.device), options["real"].to(log_probs.device)
    found = summarize_distributions(log_probs, options["top_k"], ids, real)
    if options["lengths"]:
        found["lengths"] = torch.stack([kept[name].to(log_probs.device) for name in options["lengths"]], dim=1)
    for row, name in enumerate(options["baselines"]):
        carried[f"baseline {name}"] = log_probs[row]
    if options["against"]:
        found["kl"] = divergence(log_probs, torch.stack([carried[f"baseline {name}"] for name in options["against"]]))
    return {name: value.cpu() for name, value in found.items()}


def read_metric(model: Any, kept: Data, options: Data, carried: Data) -> Data:
    """One number for each row."""
    logits = end_logits(model, kept, options)
    return {"value": measure(logits, options["metric"], options["targets"], carried["reference"]).cpu()}


def read_patterns(model: Any, kept: Data, options: Data, carried: Data) -> Data:
    """What attention is reduced to, the layers one after another; and how well random tokens are copied."""
    found = join([kept[name] for name in options["names"]], dim=1)
    if options["following"] is not None:
        logits = end_logits(model, kept, options)
        log_probs = log_probabilities(logits).gather(-1, options["following"].to(logits.device)[:, None])[:, 0]
        found["copied"] = log_probs.cpu()
    return found


def join(parts: list[Data], dim: int = 0) -> Data:
    """Parts put together, name by name; of single numbers the largest."""
    return {
        name: torch.cat([part[name] for part in parts], dim)
        if parts[0][name].ndim
        else torch.stack([part[name] for part in parts]).amax()
        for name in parts[0]
    }


def read_patched_run(model: Any, kept: Data, options: Data, carried: Data) -> Data:
    """One of the two runs that are compared: its metric, and what was kept, for the passes to come.

    The first is the clean one, with which `kl` compares. After the second, `differs` tells which of the states that
    correspond are not equal: (pair of positions, head), a single head where there are none.
    """
    logits = end_logits(model, kept, options)
    if options["clean"]:
        carried["reference"] = log_probabilities(logits)[0]
    carried.update({name: value for name, value in kept.items() if name != "end"})
    found: Data = {"value": measure(logits, options["metric"], options["targets"], carried["reference"]).cpu()}
    for own, other in options["compared"]:
        one, two = carried[own][options["into"]], carried[other][options["from"]]
        unequal = (one != two).any(-1)
        found[f"differs {own}"] = (unequal if unequal.ndim == 2 else unequal[:, None]).cpu()
    return found


def read_likeliest(model: Any, kept: Data, options: Data, carried: Data) -> Data:
    """The likeliest token of each row."""
    return {"tokens": model.output.logits[:, -1].argmax(-1).cpu()}


def read_rows(model: Any, kept: Data, options: Data, carried: Data) -> Data:
    """Some rows of a module's weight."""
    return {"rows": model.get(options["path"]).weight[options["ids"]].float().cpu()}


def step_inputs(ids: Tensor, mask: Tensor, cache: Any, number: int, options: Data) -> Data:
    """What the forward pass of a step is given: all tokens, or with a cache after the first step the newest alone."""
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
    logits = pick(model.output.logits, options).float()
    short = logits[-options["short"] :]
    found: Data = {"dtype": str(model.output.logits.dtype).rsplit(".", 1)[-1], "largest": logits.abs().max().cpu()}
    if options["head"]:
        found["lens"] = (project(model, kept[options["name"]], options["head"]).float() - logits).abs().max().cpu()
    carried.update({"states": kept[options["name"]][:, None], "logits": logits})
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
