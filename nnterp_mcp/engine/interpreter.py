"""Applies resolved edits to states: one interpreter for hooks, traces, captured steps and served models.

A model that another machine serves is sent these functions by their source. So they know only torch and plain data.

A *resolved edit* is a dictionary, made by an edit of `engine.edits` for one batch:

- Of states: `rows` and `columns` of the entries that change, None for all of them; `heads` and `neurons` of these, None
  for all; `heads_first`, whether the states are (row, head, position, width) and not (row, position, …); and what the
  states become: `op` is `add`, `scale`, `project_out`, `swap` or `replace`, with its `value`; `project_out` also with
  the states whose component along the value they get (`component_of`, None for zero); or `take`, with the `name` of
  states of an earlier hook point and the `index` of those that are taken.
- Of attention probabilities: `op` is `set_pattern`, with masks of `queries` and `heads` and the `pattern` (row, query,
  key); or `knock_out`, with the `cuts` (masks of `queries`, `keys` and `heads`, and `renormalise`), the keys that each
  query can read (`readable`), and the `others`, edits that are made before.
- Of features, on this machine alone: `op` is `rewrite`, with a `rewrite` of the states given those that it `reads`
  (names of earlier hook points, with the `index` of the entries).
- For autograd, on this machine alone: `leaf`, where its graph begins, with a `value` in place of the states or None;
  and `view`, after which the states are a tensor of their own, whose gradient can be asked for.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Data = dict[Any, Any]
"""Plain data: tensors, numbers, texts, and lists and dictionaries of them."""


def apply(value: Tensor, edit: Data, seen: Data) -> Tensor:
    """Returns the states with an edit made; the tensor that came stays as it is.

    Args:
        value: The states, in the model's own layout.
        edit: The resolved edit.
        seen: States of earlier hook points by name, (row, position, …).
    """
    op = edit["op"]
    if op == "knock_out":
        return knock_out(value, edit, seen)
    if op == "set_pattern":
        chosen = edit["queries"].to(value.device)[:, None, :, None] & edit["heads"].to(value.device)[:, None, None]
        return torch.where(chosen, edit["pattern"].to(value)[:, None], value)
    if op == "leaf":
        return (value if edit["value"] is None else edit["value"].to(value)).detach().clone().requires_grad_()
    if op == "view":
        return value.view_as(value)
    return change_states(value, edit, seen)


def change_states(value: Tensor, edit: Data, seen: Data) -> Tensor:
    """Makes an edit of states at some rows and columns, of some heads, in some components."""
    states = value.transpose(1, 2) if edit["heads_first"] else value
    index = None if edit["rows"] is None else (edit["rows"].to(value.device), edit["columns"].to(value.device))
    picked = states.flatten(0, 1) if index is None else states[index]
    heads = None if edit["heads"] is None else edit["heads"].to(value.device)
    part = picked if heads is None else picked[:, heads]
    changed = become(part, edit, seen).to(part)
    if edit["neurons"] is not None:
        neurons = edit["neurons"].to(value.device)
        changed = part.index_copy(-1, neurons, changed[..., neurons])
    if heads is not None:
        changed = picked.index_copy(1, heads, changed)
    if index is None:
        changed = changed.unflatten(0, states.shape[:2])
    else:
        whole = states.clone()
        whole[index] = changed
        changed = whole
    return changed.transpose(1, 2) if edit["heads_first"] else changed


def become(part: Float[Tensor, "entry *head width"], edit: Data, seen: Data) -> Float[Tensor, "entry *head width"]:
    """Returns the states that replace those that an edit reaches."""
    op = edit["op"]
    if op == "take":
        states, index = seen[edit["name"]].to(part.device), edit["index"]
        taken = states.flatten(0, 1) if index is None else states[tuple(at.to(part.device) for at in index)]
        return taken if edit["heads"] is None else taken[:, edit["heads"].to(part.device)]
    if op == "rewrite":
        reads = [seen[name].to(part.device) for name in edit["reads"]]
        taken = [read.flatten(0, 1) if edit["index"] is None else read[edit["index"]] for read in reads]
        return edit["rewrite"](part, taken)
    value = edit["value"]
    if op == "scale":
        return part * value if value else torch.zeros_like(part)
    if op == "add":
        return part + value.to(part)
    if op == "project_out":
        exact = part.float()
        change = exact if edit["component_of"] is None else exact - edit["component_of"].to(exact)
        if value.ndim == 2:
            return part - (change @ value.to(exact).T @ value.to(exact)).to(part)
        direction = torch.nn.functional.normalize(value.to(exact), dim=0)
        return part - ((change @ direction)[..., None] * direction).to(part)
    if op == "swap":
        exact = part.float()
        read, written = value.to(exact)
        return part + ((exact @ read)[..., None] * written).to(part)
    return value.to(part).expand_as(part)


def knock_out(
    value: Float[Tensor, "row head query key"], edit: Data, seen: Data
) -> Float[Tensor, "row head query key"]:
    """Cuts what queries read from keys, after the other edits of the same attention probabilities.

    A knockout masks scores, whatever else is done to the probabilities: in whichever order they are listed, what is cut
    stays cut, and rows sum to what a mask leaves. What takes no renormalising comes after what does.
    """
    edited = value
    for other in edit["others"]:
        edited = apply(edited, other, seen)
    masked, removed = torch.zeros(2, *value.shape, dtype=torch.bool, device=value.device)
    for cut in edit["cuts"]:
        queries, keys, heads = (cut[name].to(value.device) for name in ("queries", "keys", "heads"))
        mask = queries[:, None, :, None] & keys[:, None, None, :] & heads[:, None, None]
        (masked if cut["renormalise"] else removed).logical_or_(mask)
    readable = edit["readable"].to(value.device)[:, None]
    touched = (masked & (readable | (edited != 0))).any(-1, keepdim=True)
    return torch.where(touched, mask_scores(value, edited, masked), edited).masked_fill(removed, 0)


def mask_scores(
    own: Float[Tensor, "*rows key"], edited: Float[Tensor, "*rows key"], masked: Bool[Tensor, "*rows key"]
) -> Float[Tensor, "*rows key"]:
    """The edited rows as masking their scores would leave them; a row with nothing left is zero.

    Where the model's own row sums to less than one, a sink holds the rest and takes its share of the removed mass.
    """
    rounding = max(1e-5, 2 * torch.finfo(own.dtype).eps)
    total = own.float().sum(-1, keepdim=True)
    sink = torch.where(total < 1 - rounding, 1 - total, 0)
    left = own.float().masked_fill(masked, 0).sum(-1, keepdim=True)
    kept = edited.float().masked_fill(masked, 0)
    whole, tiny = kept.sum(-1, keepdim=True), torch.finfo(torch.float32).tiny
    share = 1 - sink / torch.where(sink + left > 0, sink + left, 1)
    return (kept * (share / torch.where(whole.abs() > tiny, whole, torch.inf))).to(edited)


def branch_off(value: Tensor, step: Data, seen: Data, captured: Data) -> Tensor:
    """Lets rows join a batch as copies of its first row, captures and freezes, and makes the edits of the rows.

    Args:
        value: The states of the rows that are there, in the model's own layout.
        step: `join`, how many rows join; `read`, the name under which the states of all rows are captured before their
            edits, or None; `columns`, how many of the last columns are captured; `freeze`, whether every row gets the
            states of the first one; and the edits of rows that are there (`present`, with `edits` of these alone) and
            of those that join (`joining`).
        captured: Takes the states that are read.
    """
    joining = value[:1].expand(step["join"], *value.shape[1:])
    if step["read"] is not None:
        states = torch.cat([value, joining])
        states = states.transpose(1, 2) if step["heads_first"] else states
        captured[step["read"]] = states[:, -step["columns"] :].clone()
    if step["freeze"]:
        value = value[:1].repeat(len(value), *[1] * (value.ndim - 1))
    if step["present"] is not None:
        at = step["present"].to(value.device)
        rows = value[at]
        for edit in step["edits"]:
            rows = apply(rows, edit, seen)
        value = value.index_copy(0, at, rows)
    for edit in step["joining"]:
        joining = apply(joining, edit, seen)
    return torch.cat([value, joining]) if step["join"] else value


def visit(value: Tensor, step: Data, seen: Data, captured: Data) -> Tensor:
    """Makes the edits of a hook point, then its captures, and returns the states with which the model continues.

    Args:
        value: The states, in the model's own layout.
        step: `edits`, resolved; `branch`, what `branch_off` is told, or None; `captures`, each a name, a reduction of
            the states (row, position, …) or None for the tensor itself, and its options; `needed`, the name under which
            later edits take the states, or None; `heads_first`, as in an edit.
        seen: States of earlier hook points by name; those of this one are added where they are needed.
        captured: Takes what the reductions return, by name.
    """
    for edit in step["edits"]:
        value = apply(value, edit, seen)
    if step["branch"] is not None:
        value = branch_off(value, step["branch"], seen, captured)
    states = value.transpose(1, 2) if step["heads_first"] else value
    if step["needed"] is not None:
        seen[step["needed"]] = states
    for name, reduction, options in step["captures"]:
        captured[name] = value if reduction is None else reduction(states, options)
    return value
