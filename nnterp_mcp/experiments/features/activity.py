"""Which features are active at which tokens, and how groups of prompts differ in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nnterp_mcp.cancellation import check_cancelled
from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.experiments.features.dictionary import Dictionary
from nnterp_mcp.experiments.features.readings import read_tokens
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.request.feature_sites import FeaturePlace

_CHUNK = 1 << 25
"""Features that are computed at once."""

_SHUFFLES = 20


@dataclass(frozen=True)
class Activity:
    """The active features of some tokens, on the CPU, in the order of the tokens.

    Attributes:
        tokens: The token of each entry, as a number among those that were read.
        features: Its feature.
        values: Its activation.
        prompts: For each token that was read, its prompt's index.
        positions: Its position.
        latents: The number of features.
        errors: For each token, the norm of what the reconstruction leaves out, over that of what it reconstructs.
        norms: For each token, the norm of the state that was encoded.
    """

    tokens: Int[Tensor, " entry"]
    features: Int[Tensor, " entry"]
    values: Float[Tensor, " entry"]
    prompts: Int[Tensor, " token"]
    positions: Int[Tensor, " token"]
    latents: int
    errors: Float[Tensor, " token"]
    norms: Float[Tensor, " token"]

    @property
    def l0(self) -> float:
        """Active features at a token, in the mean."""
        return len(self.values) / max(1, len(self.prompts))

    def means(self) -> Float[Tensor, "prompt latent"]:
        """The mean activation of each feature over the tokens of each prompt; zero for a prompt without any."""
        count = int(self.prompts.max()) + 1 if len(self.prompts) else 0
        sums = torch.zeros(count, self.latents)
        sums.index_put_((self.prompts[self.tokens], self.features), self.values, accumulate=True)
        return sums / self.prompts.bincount(minlength=count).clamp_min(1)[:, None]

    def shares(self) -> Float[Tensor, " latent"]:
        """The share of tokens at which each feature is active."""
        return self.features.bincount(minlength=self.latents) / max(1, len(self.prompts))

    def totals(self) -> tuple[Int[Tensor, " latent"], Float[Tensor, " latent"]]:
        """At how many tokens each feature is active, and the sum of its activations."""
        sums = torch.zeros(self.latents).index_add_(0, self.features, self.values)
        return self.features.bincount(minlength=self.latents), sums

    def matched(self, feature: int, count: int, seed: int = 0) -> list[int]:
        """Random features that are active about as often and as strongly as a feature: within a factor of two of both.

        Args:
            feature: The feature.
            count: How many, at most.
            seed: The seed with which they are drawn.
        """
        counts, sums = self.totals()
        found = torch.tensor(find_matched(counts, sums, feature), dtype=torch.long)
        order = torch.randperm(len(found), generator=torch.Generator().manual_seed(seed))
        return found[order[:count]].tolist()

    def rows(self, features: Sequence[int]) -> Float[Tensor, "feature token"]:
        """The activations of some features at every token."""
        made = torch.zeros(len(features), len(self.prompts))
        for row, feature in enumerate(features):
            here = self.features == feature
            made[row, self.tokens[here]] = self.values[here]
        return made

    def strongest_at_tokens(self, count: int) -> list[list[tuple[int, float]]]:
        """The features that are strongest at each token, with their activations, the strongest first."""
        order = torch.argsort(self.values, descending=True)
        tokens = self.tokens[order]
        order = order[torch.argsort(tokens, stable=True)]
        sizes = self.tokens.bincount(minlength=len(self.prompts)).tolist()
        return [
            list(zip(self.features[some].tolist(), self.values[some].tolist(), strict=True))
            for some in (here[:count] for here in order.split(sizes))
        ]

    def strongest(self, feature: int, count: int) -> list[tuple[int, float]]:
        """The tokens at which a feature is strongest, with its activation, the strongest first."""
        entries = (self.features == feature).nonzero()[:, 0]
        top = self.values[entries].topk(min(count, len(entries)))
        return list(zip(self.tokens[entries[top.indices]].tolist(), top.values.tolist(), strict=True))


def find_matched(
    counts: Int[Tensor, " latent"],
    sums: Float[Tensor, " latent"],
    feature: int,
    fewest: int = 0,
    without: Sequence[int] = (),
) -> list[int]:
    """Features that are active about as often and as strongly as one: within a factor of two of both.

    Args:
        counts: At how many tokens each feature is active.
        sums: The sum of its activations.
        feature: The feature.
        fewest: Where fewer are so close, the nearest ones in both on a logarithmic scale, this many.
        without: Features that are not taken.
    """
    apart = torch.zeros(len(counts))
    for measure in (counts.float(), sums / counts.clamp_min(1)):
        ratio = measure.clamp_min(1e-9) / measure[feature].clamp_min(1e-9)
        apart = torch.maximum(apart, ratio.log2().abs())
    apart[counts == 0] = torch.inf
    apart[[feature, *without]] = torch.inf
    found = (apart <= 1).nonzero()[:, 0]
    if len(found) < fewest:
        found = apart.argsort()[:fewest]
        found = found[apart[found].isfinite()]
    return found.tolist()


def read_activity(
    model: StandardizedTransformer,
    work: Workload,
    made: Dictionary,
    place: FeaturePlace,
    out: FeaturePlace | None,
    positions: Sequence[Sequence[int]],
) -> Activity:
    """Encodes the states of tokens, batch by batch, and keeps what is active.

    Args:
        model: The model.
        work: The prompts, with the operations on them.
        made: The dictionary.
        place: Where it reads.
        out: Where a transcoder writes; None for an autoencoder.
        positions: For each prompt, the positions to read in the unpadded prompt.
    """
    found: dict[int, tuple[Tensor, Tensor, Tensor, Tensor, Tensor]] = {}
    for read in read_tokens(model, work, list(dict.fromkeys([place, *([out] if out else [])])), positions):
        split = [part.split(list(read.counts)) for part in (read.states[place], read.states[out or place])]
        for number, states, target in zip(read.prompts, *split, strict=True):
            found[number] = _encode(made, states, target)
    ordered = [found[number] for number in range(len(work.prompts))]
    counts = torch.tensor([len(here) for here in positions])
    begins = counts.cumsum(0) - counts
    return Activity(
        tokens=torch.cat([at + begin for (at, *_), begin in zip(ordered, begins, strict=True)]),
        features=torch.cat([features for _, features, *_ in ordered]),
        values=torch.cat([values for _, _, values, *_ in ordered]),
        prompts=torch.arange(len(counts)).repeat_interleave(counts),
        positions=torch.tensor([at for here in positions for at in here]),
        latents=made.latents,
        errors=torch.cat([errors for *_, errors, _ in ordered]),
        norms=torch.cat([norms for *_, norms in ordered]),
    )


def _encode(
    made: Dictionary, states: Float[Tensor, "token input"], target: Float[Tensor, "token output"]
) -> tuple[Tensor, Tensor, Tensor, Float[Tensor, " token"], Float[Tensor, " token"]]:
    """The active features of one prompt as token, feature and activation; each token's relative error and its norm."""
    parts: list[tuple[Tensor, ...]] = []
    some, begin = max(1, _CHUNK // made.latents), 0
    for read, wanted in zip(states.split(some), target.split(some), strict=True):
        check_cancelled()
        features = made.encode(read)
        at, latent = features.nonzero(as_tuple=True)
        missing = (wanted - made.decode(features, read)).norm(dim=-1)
        size = wanted.norm(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)
        parts.append((at + begin, latent, features[at, latent], missing / size, read.norm(dim=-1)))
        begin += len(read)
    tokens, latents, values, errors, norms = (torch.cat(column).cpu() for column in zip(*parts, strict=True))
    return tokens, latents, values, errors, norms


@dataclass(frozen=True)
class Difference:
    """Differences between two groups of prompts in their mean feature activations.

    Attributes:
        means: The first group's mean activation less the second's.
        shuffled: The largest difference of any feature when prompts are assigned to the groups at random, in the mean
            of draws.
    """

    means: Float[Tensor, " latent"]
    shuffled: float


def compare_prompts(
    means: Float[Tensor, "prompt latent"], first: Sequence[int], second: Sequence[int], seed: int = 0
) -> Difference:
    """Compares two groups by the mean activations of their prompts, and with groups formed at random.

    Args:
        means: The mean activations of each prompt.
        first: The prompts of one group.
        second: Those of the other.
        seed: The seed of the random groups.
    """
    rows, size = means[[*first, *second]], len(first)
    generator = torch.Generator().manual_seed(seed)
    total = rows.sum(0)

    def apart(chosen: Tensor) -> Tensor:
        one = rows[chosen].sum(0)
        return one / size - (total - one) / len(second)

    draws = [apart(torch.randperm(len(rows), generator=generator)[:size]) for _ in range(_SHUFFLES)]
    shuffled = torch.stack([draw.abs().max() for draw in draws]).mean()
    return Difference(apart(torch.arange(size)), float(shuffled))
