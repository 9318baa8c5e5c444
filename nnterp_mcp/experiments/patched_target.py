"""The target prompt of patchscopes: its branches, each with the state of a source in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from nnterp_mcp.engine.batching import LOGITS_AT_ONCE, attempt
from nnterp_mcp.engine.branch_pass import Input
from nnterp_mcp.engine.branches import BranchBatch, Branches
from nnterp_mcp.engine.forward import LogitReduction
from nnterp_mcp.engine.hook_points import Place
from nnterp_mcp.engine.observation import observe, reduce_logits
from nnterp_mcp.engine.packed_pass import PackedPass, PatchedText, Token, run_packed
from nnterp_mcp.engine.prefix_sharing import agree
from nnterp_mcp.engine.replacements import Replacement, replace_states
from nnterp_mcp.engine.workload import Workload, check_memory
from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.experiments.activations import read_states
from nnterp_mcp.model.loading.trials import recall
from nnterp_mcp.model.memory import says_nothing
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.structure.context_lengths import lengths_of
from nnterp_mcp.model.text.tokenization import EncodedPrompt

PACKED_COLUMNS = 512
"""Columns of a packed pass, at most: beyond, a pass takes time for each, and each masks all others."""

LayerPair = tuple[int, int]
"""The layer after which a state is read, and the layer after which it is put into the target prompt."""


@dataclass(frozen=True)
class Target:
    """A prompt and the token whose state is replaced.

    Attributes:
        work: The prompt alone, with the operations on it; progress is reported in patches.
        position: The token, counted from 0.
    """

    work: Workload
    position: int

    @property
    def base(self) -> Input:
        """The prompt as the input of branches."""
        (prompt,) = self.work.prompts
        return Input(prompt, plan=self.work.plan)

    @property
    def ids(self) -> list[int]:
        """The prompt's tokens."""
        return self.base.prompt.ids


@dataclass(frozen=True)
class SourceReadings:
    """The states of sources and, where one pass gave both, the logits of the target prompt that they are put into.

    Attributes:
        states: Residual streams after `layers`, or any vectors of that width.
        layers: The layer of each of a source's states.
        logits: After the unpatched target prompt, then by source and pair after the patched one; None where the target
            prompt did not run in the same pass.
    """

    states: Float[Tensor, "source layer hidden"]
    layers: Sequence[int]
    logits: Float[Tensor, "row vocabulary"] | None = None

    def some(self, sources: Sequence[int]) -> SourceReadings:
        """Some of the sources, by number."""
        chosen, logits = list(sources), self.logits
        if logits is not None:
            patched = logits[1:].unflatten(0, (len(self.states), -1))[chosen].flatten(0, 1)
            logits = torch.cat([logits[:1], patched])
        return replace(self, states=self.states[chosen], logits=logits)


@dataclass(frozen=True)
class SourceTokens:
    """The tokens whose states are put into a target prompt.

    Attributes:
        work: The prompts that they belong to.
        positions: Their positions in each prompt.
        layers: The layers after which their states are read, in ascending order.
    """

    work: Workload
    positions: Sequence[Sequence[int]]
    layers: Sequence[int]

    def read(self, model: StandardizedTransformer) -> SourceReadings:
        """Reads the states in the order of the prompts and their positions."""
        return SourceReadings(read_states(model, self.work, self.positions, self.layers), self.layers)

    def read_for(
        self, model: StandardizedTransformer, target: Target, pairs: Sequence[LayerPair], *, max_new_tokens: int = 0
    ) -> SourceReadings:
        """Reads the states, in one pass with the patched target prompt where the model reads short texts so.

        Args:
            target: The target prompt and the position at which the states will be put.
            pairs: Source layer and target layer of each patch.
            max_new_tokens: How many tokens will be generated after the target prompt.
        """
        if max_new_tokens or self.work.plan or target.work.plan or model.remote_calls:
            return self.read(model)
        texts = [*(prompt.ids for prompt in self.work.prompts), target.ids]
        tokens = [Token(text, at) for text, here in enumerate(self.positions) for at in here]
        rows = [PatchedText(token, *pair) for token in range(len(tokens)) for pair in pairs]
        packed = PackedPass(texts, target.position, tokens, self.layers, rows, model.anatomy.last.index)

        def run() -> SourceReadings:
            check_memory(model, 1, packed.columns, model.attention == "eager")
            logits = run_packed(model, packed)
            states = torch.stack([packed.states[layer].to(model.device) for layer in self.layers], dim=1)
            return SourceReadings(states, self.layers, logits)

        def is_exact() -> bool:
            """Compares with the sources alone, and with branches of the target prompt."""
            try:
                found = run()
            except Exception as error:  # whatever else the modelling code raises, it does not allow this
                if says_nothing(error):
                    raise
                return False
            assert found.logits is not None
            alone = self.read(model)
            parts = [(found.states, alone.states), (found.logits[:1], observe(model, target.base, ()).logits[None])]
            parts += [
                (found.logits[1:][batch.rows], batch.logits) for batch in run_patches(model, target, alone, pairs)
            ]
            return all(agree(model, *part) for part in parts)

        def read() -> SourceReadings | None:
            exact = recall(model.module, "packed passes", model.attention, max(map(len, texts)), is_exact)
            return run() if exact else None

        (found,) = (_pays(model, packed, target) and attempt(model, read)) or (None,)
        return found or self.read(model)


def _pays(model: StandardizedTransformer, packed: PackedPass, target: Target) -> bool:
    """True for a packed pass of few columns, whose texts are encoded alike and whose states go upwards."""
    kinds = {lengths_of(model.module).kind(len(text)) for text in packed.texts}
    few = (
        packed.columns <= min(PACKED_COLUMNS, target.work.batch_tokens)
        and len(packed.continuations) < LOGITS_AT_ONCE // model.vocab_size
    )
    return few and len(kinds) == 1 and all(one.source_layer <= one.layer for one in packed.continuations)


def patch_target(
    model: StandardizedTransformer,
    target: Target,
    states: Float[Tensor, "row hidden"],
    layers: Sequence[int],
    *,
    reduction: Callable[[Sequence[int]], LogitReduction] | None = None,
    max_new_tokens: int = 0,
) -> Branches:
    """Branches of a target prompt, each with one state replaced after one layer.

    The patch acts while the prompt is read; tokens that are generated see it through their attention.

    Args:
        target: The target prompt and the position at which states are replaced.
        states: The state of each row.
        layers: The layer of each row.
        reduction: Given the rows of a batch in their order, returns the reduction of its logits.
        max_new_tokens: How many tokens to generate.
    """
    rows = zip(range(len(layers)), layers, states.split(1), strict=True)
    edits = replace_states(
        Replacement(row, Place("layers_output", layer), [target.position], state) for row, layer, state in rows
    )
    return Branches(
        model,
        target.base,
        edits,
        reduction=reduction,
        max_new_tokens=max_new_tokens,
        work=target.work,
    )


def run_patches(
    model: StandardizedTransformer,
    target: Target,
    sources: SourceReadings,
    pairs: Sequence[LayerPair],
    *,
    reduction: Callable[[Sequence[int]], LogitReduction] | None = None,
    max_new_tokens: int = 0,
) -> Iterator[BranchBatch]:
    """Runs the target prompt with each source's state of each pair's layer in it, unless it ran with the sources.

    Args:
        target: The target prompt and the position at which states are replaced.
        sources: The sources.
        pairs: Source layer and target layer of each patch.
        reduction: Given the rows of a batch in their order, returns the reduction of its logits.
        max_new_tokens: How many tokens to generate.

    Yields:
        The rows of each batch, numbered by source, then by pair.
    """
    if sources.logits is not None:
        rows = list(range(len(sources.logits) - 1))
        numbers = {} if reduction is None else reduce_logits(reduction(rows), sources.logits, None)
        yield BranchBatch(rows, sources.logits[1:], [[] for _ in rows], [], {}, target.position, numbers)
        return
    columns = [sources.layers.index(layer) for layer, _ in pairs]
    states = sources.states[:, columns].flatten(0, 1)
    layers = [layer for _, layer in pairs] * len(sources.states)
    branches = patch_target(model, target, states, layers, reduction=reduction, max_new_tokens=max_new_tokens)
    yield from branches.run()


def resolve_target(ids: Sequence[int], position: int) -> Target:
    """A target from tokens and a position that counts from either end.

    Raises:
        InvalidRequest: The position does not exist.
    """
    if not -len(ids) <= position < len(ids):
        raise InvalidRequest(
            f"position {position} does not exist: the target prompt has positions 0 to {len(ids) - 1}."
        )
    return Target(Workload([EncodedPrompt(0, "", list(ids), [])]), position % len(ids))
