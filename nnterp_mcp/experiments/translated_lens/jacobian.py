"""Fits a Jacobian lens: by how much, and which way, a layer's state moves the states after the last layer."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nnterp_mcp.cancellation import check_cancelled
from nnterp_mcp.engine.forward import Capture, Plan, forward
from nnterp_mcp.engine.workload import Workload, ignore_progress
from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.experiments.attribution.recorded_pass import Track, gradients, require_room
from nnterp_mcp.experiments.translated_lens.translation import LensTranslation, Provenance, stream_after
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.text.tokenization import Batch, EncodedPrompt

SKIPPED = 16
"""The first tokens of a prompt, which are left out: their states are far from those of all others."""


@dataclass(frozen=True)
class JacobianSums:
    """Jacobians added up over prompts; those of other prompts can be added.

    Attributes:
        layers: The layers, in ascending order.
        total: The sum of the prompts' Jacobians at each layer, in float64.
        prompts: The number of prompts.
        hashes: The hashes of those of them that are known.
    """

    layers: list[int]
    total: Float[Tensor, "layer output hidden"]
    prompts: int
    hashes: tuple[str, ...] = ()

    def __add__(self, other: JacobianSums) -> JacobianSums:
        """The sums over the prompts of both.

        Raises:
            InvalidRequest: The layers or the widths differ.
        """
        if (self.layers, self.total.shape) != (other.layers, other.total.shape):
            raise InvalidRequest("fits can be merged if they have the same layers and the same width.")
        hashes = self.hashes + other.hashes
        return JacobianSums(self.layers, self.total + other.total, self.prompts + other.prompts, hashes)

    @classmethod
    def of(cls, lens: LensTranslation) -> JacobianSums:
        """The sums behind a lens that says on how many prompts it was fitted, to the precision of float32.

        Raises:
            InvalidRequest: It does not say.
        """
        prompts = lens.provenance.prompts
        if not prompts:
            raise InvalidRequest("the lens does not say on how many prompts it was fitted, so it cannot be merged.")
        means = torch.stack([lens.matrices[layer] for layer in lens.layers])
        return cls(lens.layers, means.double() * prompts, prompts, lens.provenance.hashes)

    def lens(self, provenance: Provenance = Provenance()) -> LensTranslation:  # noqa: B008 - frozen
        """The lens: the mean of the prompts' Jacobians."""
        means = (self.total / self.prompts).float()
        found = dict(zip(self.layers, means, strict=True))
        about = replace(provenance, prompts=self.prompts, hashes=self.hashes)
        return LensTranslation("jacobian", found, {}, about)


def hash_prompt(prompt: EncodedPrompt) -> str:
    """A hash of a prompt's tokens, by which a fit recognizes it."""
    return hashlib.sha256(repr(list(prompt.ids)).encode()).hexdigest()[:16]


def fit_jacobian(
    model: StandardizedTransformer,
    work: Workload,
    layers: Sequence[int],
    *,
    skip: int = SKIPPED,
    keep: Callable[[JacobianSums], None] | None = None,
) -> JacobianSums:
    """Averages the Jacobians of the final residual stream with respect to the stream after each layer.

    For a prompt of T tokens, J_l is the mean over its positions t of the sum over positions t' ≥ t of
    d h_last[t'] / d h_l[t], with t and t' from `skip` to T - 2. Each row of it is one backward pass; as many
    of them as the workload's budget of tokens allows are one, through copies of the prompt in one batch, which runs
    forward once. At the last layer it is the identity, exactly. It is a linear map for a model that is none: a mean
    over contexts, which misleads where what a state does depends on them.

    Args:
        model: The model.
        work: The prompts; no operations.
        layers: The layers, in ascending order.
        skip: How many of a prompt's first tokens to leave out.
        keep: Called after each prompt with the sums over the prompts so far, so that they survive if the fit is ended.

    Returns:
        The sums over the prompts, in the order of the layers.

    Raises:
        InvalidRequest: A prompt has no position between the first `skip` and its last.
        Unsupported: No gradient passes through the model.
        OutOfMemory: The activations of one copy of a prompt do not fit.

    Source: Anthropic, "The Jacobian lens" (2026), and github.com/anthropics/jacobian-lens.
    """
    model.require("gradients")
    for prompt in work.prompts:
        if len(prompt.ids) < skip + 2:
            raise InvalidRequest(
                f"prompt {prompt.index} has {len(prompt.ids)} tokens and needs {skip + 2}: a fit leaves out the first "
                f"{skip} and the last."
            )
    width, done = model.hidden_size, 0

    def report(rows: int) -> None:
        nonlocal done
        done += rows
        work.progress(done, len(work.prompts) * width, "Jacobian rows")

    sums = JacobianSums([*layers], torch.zeros(len(layers), width, width, dtype=torch.float64), 0)
    for prompt in work.prompts:
        own = _jacobian(model, work, prompt, layers, skip, report)
        sums += JacobianSums(sums.layers, own, 1, (hash_prompt(prompt),))
        if keep is not None:
            keep(sums)
    return sums


def _jacobian(
    model: StandardizedTransformer,
    work: Workload,
    prompt: EncodedPrompt,
    layers: Sequence[int],
    skip: int,
    report: Callable[[int], None],
) -> Float[Tensor, "layer output hidden"]:
    """The Jacobians of one prompt: each copy of it takes every so many-th output dimension, all on one forward pass."""
    width = model.hidden_size
    copies = max(1, min(width, work.batch_tokens // len(prompt.ids)))
    found = torch.empty(len(layers), width, width, dtype=torch.float64)

    def run(batch: Batch, numbers: Sequence[int]) -> Sequence[int]:
        states = _record(model, batch, layers)
        for first in range(0, width, copies):
            check_cancelled()
            outputs = torch.tensor([first + number for number in numbers if first + number < width])
            if len(outputs):
                found[:, outputs] = _slopes(states, len(layers), slice(skip, len(prompt.ids) - 1), outputs)
                report(len(outputs))
        return numbers

    replace(work, prompts=[prompt] * copies, progress=ignore_progress).run(model, run)
    return found


def _record(model: StandardizedTransformer, batch: Batch, layers: Sequence[int]) -> list[Tensor]:
    """The stream after each layer, and after the last one; autograd's graph begins at the first."""
    read = [stream_after(layer) for layer in sorted({*layers, model.num_layers - 1})]
    require_room(model, batch, model.num_layers - layers[0])
    with gradients(model.module):
        edits = {place: [Track(place, leaf=place == read[0])] for place in read}
        return forward(model, batch, Plan(edits), [Capture(place, None) for place in read], gradients=True).values


def _slopes(
    states: Sequence[Tensor], layers: int, positions: slice, outputs: Int[Tensor, " row"]
) -> Float[Tensor, "layer row hidden"]:
    """The mean slope over positions of one output dimension for each copy of a prompt.

    Args:
        states: The streams of a recorded pass, which can be gone back through again.
        layers: Of how many of them, from the first on.
        positions: The positions that count.
        outputs: The output dimensions of the first copies.
    """
    moved = states[-1][torch.arange(len(outputs)), positions, outputs]
    slopes = torch.autograd.grad(moved.sum(), states[:layers], retain_graph=True)
    return torch.stack([slope[: len(outputs), positions].double().mean(1).cpu() for slope in slopes])
