"""One run of an input without branches: its states, logits, keys and values."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nnterp_mcp.engine.branch_pass import BranchPass, Input
from nnterp_mcp.engine.executors.execution import execute, last_column
from nnterp_mcp.engine.executors.remote import executed_remotely
from nnterp_mcp.engine.forward import LogitReduction, attention_for
from nnterp_mcp.engine.hook_points import Place
from nnterp_mcp.engine.interpreter import Data
from nnterp_mcp.engine.kv_cache import SharedCache, cache_inputs
from nnterp_mcp.engine.prefix_sharing import known_sharing
from nnterp_mcp.engine.readouts.reductions import log_probabilities
from nnterp_mcp.errors import Unsupported
from nnterp_mcp.model.standardized import StandardizedTransformer


@dataclass(frozen=True)
class Observed:
    """One run of an input without branches.

    Attributes:
        given: The input.
        places: The hook points that were asked for.
        states: The states at each of them; none of a served model that keeps them for the branches that take them.
        logits: The logits after the last token; empty where the model is served.
        cache: The keys and values of all its tokens; None where they were not asked for, or rows cannot share them.
        numbers: What the logits were reduced to, where that was asked for.
    """

    given: Input
    places: Sequence[Place]
    states: dict[Place, Float[Tensor, "position *head width"]]
    logits: Float[Tensor, " vocabulary"]
    cache: SharedCache | None = None
    numbers: Data = field(default_factory=dict)

    def __len__(self) -> int:
        """Its size in bytes."""
        cached = [] if self.cache is None else [states for layer in self.cache for states in layer[:2]]
        return sum(part.nbytes for part in (*self.states.values(), self.logits, *cached) if part is not None)


@dataclass(frozen=True)
class Reference:
    """A run with which others are compared.

    Attributes:
        given: Its input.
        log_probs: The log-probabilities after the last token; None where it is the run itself that is compared, and of
            a served model, which runs the input again.
    """

    given: Input
    log_probs: Float[Tensor, " vocabulary"] | None


def reference_of(run: Observed) -> Reference:
    """A run with which others are compared."""
    return Reference(run.given, log_probabilities(run.logits) if run.logits.numel() else None)


@executed_remotely
@torch.inference_mode()
def observe(
    model: StandardizedTransformer,
    given: Input,
    places: Sequence[Place],
    *,
    reduction: LogitReduction | None = None,
    reference: Reference | None = None,
    caching: bool = False,
    for_branches: bool = False,
) -> Observed:
    """Runs an input once and returns its states at some hook points, and its logits.

    Args:
        given: The input.
        places: The hook points.
        reduction: What to reduce the logits to, besides.
        reference: The run with which it compares.
        caching: Return keys and values too, for branches of this input, once branches of the model were seen to share
            them.
        for_branches: Only branches take the states: a served model runs the input in the same request as those.
    """
    shares = caching and any(sharing.prefix for sharing in known_sharing(model.module))
    cache = SharedCache(config=model.module.config) if shares else None
    visitor = BranchPass(given, reads=places)
    with attention_for(model, given.plan):
        logits = run_branch_pass(model, ids_of(model, given), visitor, cache, logits=True)
    assert logits is not None
    numbers = {} if reduction is None else reduce_logits(reduction, logits, reference)
    states = {place: value[0] for place, value in visitor.states.items()}
    return Observed(given, places, states, logits[0], cache, numbers)


def reduce_logits(asked: LogitReduction, logits: Float[Tensor, "row vocabulary"], reference: Reference | None) -> Data:
    """Reduces logits, with the reference run that the reduction compares with."""
    options = asked.options
    if reference is not None:
        itself = reference.log_probs is None
        options = options | {"reference": log_probabilities(logits[0]) if itself else reference.log_probs}
    return asked.reduce(logits, options, slice(None))


def read_prefix(model: StandardizedTransformer, given: Input, length: int) -> SharedCache:
    """Keys and values of the first tokens of an input.

    Raises:
        Unsupported: A layer carries something else from token to token, which rows cannot share.
    """
    cache = SharedCache(config=model.module.config)
    if any(cache.is_linear):
        raise Unsupported(f"layers of {model.name} carry a state from token to token, not keys and values")
    if length:
        last = Place("layers_output", model.anatomy.last.index)
        visitor = BranchPass(given, length=length, ends=last)
        run_branch_pass(model, ids_of(model, given)[:, :length], visitor, cache, logits=False)
    return cache


def ids_of(model: StandardizedTransformer, given: Input) -> Int[Tensor, "1 token"]:
    """The tokens of an input, where the model computes."""
    return torch.tensor([given.prompt.ids], device=model.device)


def run_branch_pass(
    model: StandardizedTransformer, ids: Tensor, visitor: BranchPass, cache: SharedCache | None, *, logits: bool
) -> Float[Tensor, "row vocabulary"] | None:
    """Runs a pass, for the logits after the last token or only as far as the last hook point."""
    inputs: dict[str, Any] = {"input_ids": ids, **cache_inputs(model.module, cache)}
    if "logits_to_keep" in inspect.signature(model.module.forward).parameters:
        inputs["logits_to_keep"] = 1
    return execute(model, inputs, visitor, last_column if logits else None)
