"""The two traces that are sent: forward passes that may build on one another, and a text token by token.

What a block saves under a name of its own is sent back, so logits never have one. nnsight knows what was saved by its
address alone, so all of it is kept until the session ends: what came to lie there later would be sent as well. A
session is sent without comments and blank lines, and finds the traces inside it by their lines: there are none in it,
nor a statement of several lines.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import nnsight
import torch
from jaxtyping import Int
from torch import Tensor
from transformers import DynamicCache

from nnterp_mcp.engine.executors.ndif.client import Connection
from nnterp_mcp.engine.executors.ndif.kernels import choose, step_inputs, walk, with_prefix
from nnterp_mcp.engine.interpreter import Data


def run_passes(connection: Connection, passes: Sequence[Data]) -> list[Data]:
    """Runs passes in one session, in one request; what one carries, those after it may use.

    Returns:
        What each pass reads.
    """
    model: Any = connection.model
    with model.session(backend=connection.backend()):
        carried: Data = {}
        found: list[Data] = nnsight.save([])
        for one in passes:
            with model.trace(**with_prefix(one, carried, model.config)) as tracer:
                kept = walk(model, one["steps"], carried)
                reading = nnsight.save(one["read"](model, kept, one["options"], carried))
                if one["stops"]:
                    tracer.stop()
            found.append(reading)
            del reading
    return found


def write_tokens(
    connection: Connection,
    ids: Int[Tensor, "row column"],
    mask: Int[Tensor, "row column"],
    steps: Sequence[list[Data]],
    options: Data,
) -> list[Data]:
    """Writes a token for each list of steps, in one request, until every row has ended.

    Args:
        connection: The model.
        ids: The tokens so far.
        mask: Which of them are no padding.
        steps: The steps of each pass; the first is over all tokens, and so are the others without a cache.
        options: `head`, `columns` and `rows` of each pass; `temperature`, `top_p`, `top_k`, and `draws` (step, row);
            `ends`, the tokens that end a text; `ended`, the rows that have; `cached`, whether to keep keys and values,
            and `cache_name`, what the model calls them; `positions`, whether it is told where its tokens are.

    Returns:
        `tokens` and `log_probs` of each row, for each step.
    """
    model: Any = connection.model
    number, ended = 0, options["ended"]
    with model.session(backend=connection.backend()):
        cache = DynamicCache(config=model.config) if options["cached"] else None
        said: list[Data] = nnsight.save([])
        for number, listed in enumerate(steps):
            given = step_inputs(ids, mask, cache, number, options)
            with model.trace(**given) as tracer:
                chosen = nnsight.save(choose(model, walk(model, listed, {}), options, number))
                if options["head"]:
                    tracer.stop()
            said.append(chosen)
            ended = ended | torch.isin(chosen["tokens"], options["ends"])
            if bool(ended.all()):
                break
            ids = torch.cat([ids, chosen["tokens"][:, None].to(ids)], dim=1)
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
    return said
