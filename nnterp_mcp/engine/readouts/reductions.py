"""Reductions of large tensors in plain torch: the arithmetic of every reading, whichever machine it runs on.

A model that another machine serves is sent these functions by their source. So they call only torch and one another,
take and return plain data, and raise nothing of ours: the caller judges whether numbers are finite.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor


def log_probabilities(logits: Float[Tensor, "*rows vocabulary"]) -> Float[Tensor, "*rows vocabulary"]:
    """Log-probabilities, in float32; not finite where a logit is not."""
    logits = logits.float()
    # Not log_softmax: on a CPU it sums a large vocabulary one by one, and loses 1e-5 of a probability in float32.
    return logits - logits.logsumexp(-1, keepdim=True)


def expected(probs: Float[Tensor, "*#rows vocabulary"], values: Float[Tensor, "*#rows vocabulary"]) -> Tensor:
    """The mean of values under probabilities; where a probability is zero the value does not count."""
    mean = torch.linalg.vecdot(probs, values)
    # Only an infinite value has to be left out, and to look for one takes three times as long.
    return mean if mean.isfinite().all() else torch.where(probs > 0, probs * values, 0).sum(-1)


def divergence(
    one: Float[Tensor, "*#rows vocabulary"], other: Float[Tensor, "*#rows vocabulary"]
) -> Float[Tensor, "*#rows"]:
    """KL(one ‖ other) of two log-distributions, in nats."""
    return expected(one.exp(), one - other).clamp_min(0)


def summarize_distributions(
    log_probs: Float[Tensor, "row vocabulary"],
    top_k: int,
    ids: Int[Tensor, "row category token"],
    real: Bool[Tensor, "row category token"],
) -> dict[str, Tensor]:
    """The fields of a `Readout`.

    Args:
        log_probs: The distributions.
        top_k: Number of top tokens to return.
        ids: The tokens of each category, padded to one length.
        real: Which of them are no padding.
    """
    highest, tokens = take_top(log_probs, min(top_k, log_probs.shape[-1]))
    chosen = log_probs.gather(-1, ids.flatten(1)).reshape(ids.shape).masked_fill(~real, -torch.inf)
    return {
        "top_ids": tokens,
        "top_probs": highest.exp(),
        "entropy": expected(log_probs.exp(), log_probs).abs(),
        "target_probs": chosen.exp().sum(-1),
        "target_ranks": count_ranks(log_probs, chosen) * real.any(-1),
    }


def take_top(
    log_probs: Float[Tensor, "row vocabulary"], k: int, block: int = 256
) -> tuple[Float[Tensor, "row k"], Int[Tensor, "row k"]]:
    """The k largest values of each row with their places, the largest first, as `topk` gives them.

    The k largest of a row lie in the k blocks with the largest maxima (and in what is left beyond whole blocks), which
    are found at the speed of reading; `topk` of a whole row takes four times as long.
    """
    whole = log_probs.shape[-1] // block * block
    if whole < 2 * k * block:
        return torch.topk(log_probs, k, dim=-1)
    blocks = log_probs[:, :whole].unflatten(-1, (-1, block))
    best = blocks.amax(-1).topk(k, dim=-1).indices[..., None]
    within = blocks.gather(1, best.expand(-1, -1, block)).flatten(1)
    places = (best * block + torch.arange(block, device=best.device)).flatten(1)
    rest = torch.arange(whole, log_probs.shape[-1], device=best.device).expand(len(log_probs), -1)
    found = torch.cat([within, log_probs[:, whole:]], dim=-1).topk(k, dim=-1)
    return found.values, torch.cat([places, rest], dim=-1).gather(-1, found.indices)


def count_ranks(
    log_probs: Float[Tensor, "row vocabulary"], values: Float[Tensor, "row category token"]
) -> Int[Tensor, "row category"]:
    """The rank of each category's top token; 1 is the top."""
    if values.shape[-1] == 0:
        return values.new_zeros(values.shape[:-1], dtype=torch.long)
    best = values.amax(-1)
    above = [(log_probs > best[:, [category]]).sum(-1) for category in range(best.shape[-1])]
    return 1 + torch.stack(above, -1) if above else best.long()


def measure(
    logits: Float[Tensor, "row vocabulary"],
    metric: str,
    targets: Sequence[Sequence[int]],
    reference: Float[Tensor, " vocabulary"] | None,
) -> Float[Tensor, " row"]:
    """One number for each distribution; see `metrics.make_metric` for what each of them means.

    Args:
        logits: The distributions.
        metric: `logit_difference`, `log_probability` or `kl`.
        targets: Token ids: of the answer, then of the wrong answer.
        reference: The log-probabilities of the clean run; needed by `kl` alone.
    """
    if metric == "kl":
        return divergence(reference, log_probabilities(logits))  # pyright: ignore[reportArgumentType]
    if metric == "log_probability":
        return log_probabilities(logits)[:, list(targets[0])].logsumexp(-1)
    right, wrong = (logits[:, list(tokens)].float().logsumexp(-1) for tokens in targets[:2])
    return right - wrong


def measure_rows(
    logits: Float[Tensor, "row vocabulary"], options: dict[str, Any], at: slice
) -> dict[str, Float[Tensor, " row"]]:
    """The `value` of each row under a `metric`, with `targets` and `reference`; `total` is finite where logits are."""
    value = measure(logits, options["metric"], options["targets"], options["reference"])
    return {"value": value, "total": logits.float().logsumexp(-1)}


def draw_tokens(
    logits: Float[Tensor, "row vocabulary"], top_p: float, top_k: int, draws: Float[Tensor, " row"]
) -> Int[Tensor, " row"]:
    """The token at which the summed probability, from the most likely one on, passes the number drawn."""
    count = logits.shape[-1] if top_k == 0 else min(top_k, logits.shape[-1])
    top = logits.topk(count, dim=-1)
    kept = top.values.softmax(-1)
    if top_p < 1:
        before = kept.cumsum(-1) - kept
        kept[:, 1:] = torch.where(before < top_p, kept, 0)[:, 1:]
    reached = kept.cumsum(-1)
    place = (reached <= draws[:, None] * reached[:, -1:]).sum(-1).clamp_max(count - 1)
    return top.indices.gather(-1, place[:, None])[:, 0]


def choose_tokens(
    logits: Float[Tensor, "row vocabulary"],
    temperature: float,
    top_p: float,
    top_k: int,
    draws: Float[Tensor, " row"] | None,
) -> tuple[Int[Tensor, " row"], Float[Tensor, " row"]]:
    """A token for each row, and its log-probability in nats before temperature and truncation.

    Args:
        logits: What the model says.
        temperature: What logits are divided by; 0 takes the top token, and so does what float32 holds no more.
        top_p: Draws among the top tokens that together have this probability.
        top_k: Draws among this many of the top tokens; 0 for all.
        draws: A random number from 0 to 1 for each row; not needed at temperature 0.
    """
    logits = logits.float()
    if temperature < torch.finfo(logits.dtype).tiny or draws is None:
        tokens = logits.argmax(-1)
    else:
        below_top = logits - logits.amax(-1, keepdim=True)  # divided as they are, logits may pass all bounds
        tokens = draw_tokens(below_top / temperature, top_p, top_k, draws.to(logits.device))
    return tokens, logits.gather(-1, tokens[:, None])[:, 0] - logits.logsumexp(-1)


def rows_at_once(width: int, device: torch.device) -> int:
    """The number of rows to reduce together: as many as fit a CPU's cache along with their intermediate results.

    An accelerator takes more, for each step costs a launch.
    """
    return max(1, (1 << (18 if device.type == "cpu" else 26)) // width)


def summarize_lens(
    logits: Float[Tensor, "entry layer vocabulary"], options: dict[str, Any], at: slice
) -> dict[str, Tensor]:
    """The lens at each entry and layer: the fields of a `Readout`, and `kl`, KL(last layer ‖ layer) in nats.

    Args:
        logits: What norm and head make of each layer, the last layer of the model behind those that are asked for.
        options: `count`, how many are asked for; `inverse`, to read the negated logits; `top_k`; and for each entry the
            tokens of each category (`ids`), and which of them are no padding (`real`).
        at: Which of the entries these are.

    Returns:
        Each of them (entry, layer, …), and `total`, which is finite where all logits are.
    """
    logits = -logits if options["inverse"] else logits
    count, size = options["count"], rows_at_once(logits.shape[-1], logits.device)
    ids, real = (options[name][at].to(logits.device) for name in ("ids", "real"))
    readings, parts = max(1, size // logits.shape[1]), []
    for entries in torch.arange(len(logits)).split(readings):
        last = logits[entries, -1:].float()
        last_total = last.logsumexp(-1, keepdim=True)
        for some in logits[entries, :count].split(min(size, count), dim=1):
            total = some.float().logsumexp(-1, keepdim=True)
            log_probs = some.float() - total
            by_row = entries.repeat_interleave(some.shape[1]).to(logits.device)
            part = summarize_distributions(log_probs.flatten(0, 1), options["top_k"], ids[by_row], real[by_row])
            kl = divergence(last - last_total, log_probs)
            parts.append({**part, "kl": kl.flatten(), "total": (total + 0 * last_total).flatten()})
    return {name: value.unflatten(0, (-1, count)) for name, value in join(parts).items()}


def compare_rows(
    logits: Float[Tensor, "row vocabulary"], options: dict[str, Any], at: slice
) -> dict[str, Shaped[Tensor, "entry ..."]]:
    """The next-token distributions of a batch: the fields of a `Readout`, and `kl`, KL(row ‖ its baseline) in nats.

    Args:
        logits: The distributions.
        options: By entry `rows`, `baselines` (None for no divergence), and `ids` and `real` of its categories; `top_k`.
        at: All of the rows.

    Returns:
        Each of them by entry, and `total`, which is finite where all logits are.
    """
    baselines, parts = options["baselines"], []
    ids, real, rows = (options[name].to(logits.device) for name in ("ids", "real", "rows"))
    compared, which = (rows[:0] if baselines is None else baselines.to(rows)).unique(return_inverse=True)
    references = log_probabilities(logits[compared])
    for some in torch.arange(len(rows), device=logits.device).split(rows_at_once(logits.shape[-1], logits.device)):
        own = logits[rows[some]].float()
        total = own.logsumexp(-1, keepdim=True)
        part = summarize_distributions(own - total, options["top_k"], ids[some], real[some])
        kl = {} if baselines is None else {"kl": divergence(own - total, references[which[some]])}
        parts.append({**part, **kl, "total": total[:, 0]})
    return join(parts)


def sample_logits(
    logits: Float[Tensor, "row vocabulary"], options: dict[str, Any], at: slice
) -> dict[str, Float[Tensor, "row token"]]:
    """The logits of some tokens, evenly spaced over the vocabulary."""
    return {"logits": logits[:, :: max(1, logits.shape[-1] // options["count"])].float()}


def gather_log_probs(
    logits: Float[Tensor, "entry vocabulary"], options: dict[str, Any], at: slice
) -> dict[str, Float[Tensor, " entry"]]:
    """The log-probability of one of the `tokens` at each entry."""
    right = options["tokens"][at].to(logits.device)
    total = torch.stack([row.float().logsumexp(-1) for row in logits])
    return {"log_probs": logits.gather(-1, right[:, None])[:, 0].float() - total}


def take_heads(
    states: Float[Tensor, "row query head key"], options: dict[str, Any]
) -> Float[Tensor, "row chosen query key"]:
    """The attention probabilities of some `heads`."""
    pattern, heads = states.transpose(1, 2), options["heads"]
    return (pattern if heads == [*range(pattern.shape[1])] else pattern[:, heads]).float()


def join(parts: Sequence[dict[str, Tensor]], dim: int = 0) -> dict[str, Tensor]:
    """Parts concatenated on the device of the first, name by name; of single numbers the largest."""
    found = {name: [part[name].to(value.device) for part in parts] for name, value in parts[0].items()}
    return {name: torch.cat(some, dim) if some[0].ndim else torch.stack(some).amax() for name, some in found.items()}


def split_rows(found: dict[str, Tensor], counts: Sequence[int]) -> list[dict[str, Tensor]]:
    """Numbers taken apart into so many rows each, name by name."""
    columns = {name: values.split(list(counts)) for name, values in found.items()}
    return [{name: values[row] for name, values in columns.items()} for row in range(len(counts))]


def take_all(states: Tensor, options: dict[str, Any]) -> Tensor:
    """All states, as they are now: some models add to them in place."""
    return states.clone()


def take_rows(states: Float[Tensor, "row position ..."], options: dict[str, Any]) -> Float[Tensor, "entry ..."]:
    """The states at some `rows` and `columns`."""
    return states[options["rows"].to(states.device), options["columns"].to(states.device)]


def translate_rows(states: Float[Tensor, "row position hidden"], options: dict[str, Any]) -> Float[Tensor, "entry out"]:
    """The states at some `rows` and `columns`, in float32, times a `matrix`, plus a `bias` where it is not None."""
    taken, matrix, bias = take_rows(states, options).float(), options["matrix"], options["bias"]
    moved = taken @ matrix.to(taken.device).T
    return moved if bias is None else moved + bias.to(moved.device)


def average_rows(
    states: Float[Tensor, "row position *head width"], options: dict[str, Any]
) -> Float[Tensor, "mean *head width"]:
    """Means over some states each, in float32.

    Args:
        options: `rows` and `columns` of the states, the mean of each (`owners`), and the size of each mean (`counts`).
    """
    taken, counts = take_rows(states, options).float(), options["counts"].to(states.device)
    if len(taken) == len(counts):
        return taken
    owners = options["owners"].to(states.device)
    total = taken.new_zeros((len(counts), *taken.shape[1:])).index_add_(0, owners, taken)
    return total / counts.reshape(-1, *[1] * (taken.ndim - 1))


def take_norms(states: Float[Tensor, "row position *head width"], options: dict[str, Any]) -> Float[Tensor, " entry"]:
    """The norms of the states at some `rows` and `columns`, heads concatenated."""
    return take_rows(states, options).float().flatten(1).norm(dim=-1)


def take_tokens(logits: Float[Tensor, "entry vocabulary"], options: dict[str, Any], at: slice) -> dict[str, Tensor]:
    """The logits of some `tokens`."""
    return {"logits": logits[..., options["tokens"]]}


def take_strongest(values: Float[Tensor, "*rows item"], k: int) -> Any:
    """The k largest values and their places, the largest first, filled up with zeros."""
    found = values.topk(min(k, values.shape[-1]), dim=-1)
    missing = (0, k - found.values.shape[-1])
    return torch.nn.functional.pad(found.values, missing), torch.nn.functional.pad(found.indices, missing)


def in_chunks(
    entries: Float[Tensor, "entry ..."],
    project: Callable[[Tensor], Tensor] | None,
    reduce: Callable[[Tensor, dict[str, Any], slice], dict[str, Tensor]],
    options: dict[str, Any],
    width: int | None = None,
) -> dict[str, Tensor]:
    """Reduces logits a part at a time, into memory that is set aside for all parts.

    Args:
        entries: States, or logits.
        project: Makes logits of states; None where these are logits.
        reduce: Given logits, `options` and the slice of entries that these are, returns values of each entry by name.
        width: The number of logits of an entry, where entries are not to be taken all at once.
    """
    size, found = max(1, len(entries)), {}
    if width is not None:
        # Below four entries the head is read from memory once for each; 128 MB of logits are enough in any case.
        size = max(1, (1 << 23) // width, min(4, (1 << 25) // width), rows_at_once(width, entries.device))
    for begin in range(0, len(entries), size):
        at = slice(begin, min(begin + size, len(entries)))
        part = reduce(entries[at] if project is None else project(entries[at]), options, at)
        for name, value in part.items():
            if name not in found:
                found[name] = value.new_empty(len(entries), *value.shape[1:])
            found[name][at] = value
    return found
