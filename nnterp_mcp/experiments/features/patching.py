"""Patching of features: activations of one run in another, next to matched random features and random directions."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nnterp_mcp.engine.observation import Observed
from nnterp_mcp.engine.planning.features import FeatureBasis
from nnterp_mcp.engine.readouts.metrics import make_metric
from nnterp_mcp.engine.replacements import Replacement
from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.errors import InvalidRequest, Unsupported
from nnterp_mcp.experiments.attribution.recorded_pass import gradients
from nnterp_mcp.experiments.features.activity import find_matched
from nnterp_mcp.experiments.features.attribution import PlacedDictionary, features_of, slopes_of
from nnterp_mcp.experiments.features.readings import sites_behind
from nnterp_mcp.experiments.patching.activation_patching import Patcher, Patching
from nnterp_mcp.experiments.patching.attribution_patching import detached, record_run, require_slopes
from nnterp_mcp.experiments.patching.controls import DRAWS

_FEWEST = 5
"""Features that were active alike, below which the nearest are drawn from."""

_WORK = Workload(())


@dataclass(frozen=True)
class FeatureRuns:
    """A set of features patched together, and its controls.

    Attributes:
        patched: The runs of the set, then of each random set, then of each random direction.
        draws: The random sets, of features that are about as often and as strongly active in these runs.
        directions: How many random directions there are, along which states move as far as they do for the set.
    """

    patched: Patching
    draws: list[list[int]]
    directions: int


@dataclass(frozen=True)
class FeaturePatcher:
    """Patches features of one dictionary, in any combinations.

    Attributes:
        patcher: The question: pairs, direction, metric, targets, and the positions of its grid's spans, of which a
            prompt's first token is left out.
        basis: The dictionary.
    """

    patcher: Patcher
    basis: FeatureBasis

    def __post_init__(self) -> None:
        if self.patcher.receivers is not None or self.patcher.ablation == "mean":
            raise Unsupported("features are patched along all paths, with other runs' activations or zeros.")

    @torch.inference_mode()
    def patch(
        self, runs: Sequence[Sequence[int]], work: Workload = _WORK, *, directions: int = 0, seed: int = 0
    ) -> Patching:
        """Runs each pair once for every set of features, all of whose activations are replaced together.

        Args:
            runs: The sets.
            work: The size of batches, and where progress is reported.
            directions: How many runs follow in which the states move along a random direction, at each token as far as
                they do for the first set.
            seed: The seed of these directions.
        """
        total = len(runs) + directions
        along = self._directions(directions, seed)
        found: list[tuple[float, float, Tensor]] = []
        for index in range(len(self.patcher.pairs)):
            both = self.patcher.run_pair(index, [*self.basis.reads, self.basis.writes])
            own, other = self.patcher.exchanged(index, both)
            change, state = self._change(own, other, index), own.states[self.basis.writes]
            moves = [self._move(own, change, sorted(set(run)), index) for run in runs]
            moves += [moves[0].norm(dim=-1, keepdim=True) * one for one in along]
            news = [
                new for row, move in enumerate(moves) if (new := self._replacement(row, state, move, index)) is not None
            ]
            found.append(self.patcher.replace(index, both, news, total, work))
        clean, corrupted, values = zip(*found, strict=True)
        ablates = self.patcher.ablation is not None
        return Patching(
            torch.tensor(clean),
            None if ablates else torch.tensor(corrupted),
            torch.stack(values),
            torch.zeros(total, dtype=torch.bool),
        )

    def compare(self, features: Sequence[int], work: Workload = _WORK, seed: int = 0) -> FeatureRuns:
        """Patches a set of features together, and its controls: matched random features, and random directions.

        Args:
            features: The features.
            work: The size of batches, and where progress is reported.
            seed: The seed of the draws.

        Raises:
            InvalidRequest: None of them is active in these runs.
        """
        counts, sums = self._activity()
        if not bool(counts[list(features)].any()):
            raise InvalidRequest(
                f"{self.basis.name} has none of these features active at the patched positions of either run.",
                "Find active ones with features on these prompts.",
            )
        draws = draw_matched_features(counts, sums, features, DRAWS, seed)
        patched = self.patch([features, *draws], work, directions=DRAWS, seed=seed)
        return FeatureRuns(patched, draws, DRAWS)

    def positions(self, index: int) -> tuple[list[int], list[int]]:
        """The positions that are patched, and those that activations come from; without the first token."""
        spans = self.patcher.corresponding(index)
        pairs = sorted({(at, source) for span in spans for at, source in span if at and source})
        return [at for at, _ in pairs], [source for _, source in pairs]

    def _encode(self, run: Observed, positions: Sequence[int]) -> Float[Tensor, "token latent"]:
        return self.basis.encode(self._reads(run, positions))

    def _reads(self, run: Observed, positions: Sequence[int]) -> list[Float[Tensor, "token width"]]:
        return [run.states[place][list(positions)].float().flatten(1) for place in self.basis.reads]

    def _change(self, own: Observed, other: Observed | None, index: int) -> Float[Tensor, "token latent"]:
        """The change of each feature's activation at each patched position."""
        into, from_ = self.positions(index)
        active = self._encode(own, into)
        return -active if other is None else self._encode(other, from_) - active

    def _move(
        self, own: Observed, change: Float[Tensor, "token latent"], features: Sequence[int], index: int
    ) -> Float[Tensor, "token width"]:
        chosen = torch.tensor(features, device=change.device)
        return self.basis.write(change[:, chosen], chosen, self._reads(own, self.positions(index)[0]))

    def _replacement(
        self, row: int, state: Tensor, move: Float[Tensor, "token width"], index: int
    ) -> Replacement | None:
        into, _ = self.positions(index)
        moved = [at for at, moves in enumerate(move.any(-1).tolist()) if moves]
        if not moved:
            return None
        positions = [into[at] for at in moved]
        own = state[positions]
        new = (own.float().flatten(1) + move[moved]).view_as(own).to(own)
        return Replacement(row, self.basis.writes, positions, new)

    def _directions(self, count: int, seed: int) -> list[Float[Tensor, " width"]]:
        generator = torch.Generator().manual_seed(seed)
        width = self.basis.width
        drawn = torch.randn(count, width, generator=generator).to(self.patcher.model.device)
        return list(torch.nn.functional.normalize(drawn, dim=-1))

    def _activity(self) -> tuple[Int[Tensor, " latent"], Float[Tensor, " latent"]]:
        """At how many patched positions of both runs each feature is active, and the sum of its activations there."""
        counts = torch.zeros(self.basis.latents, dtype=torch.long)
        sums = torch.zeros(self.basis.latents)
        for index in range(len(self.patcher.pairs)):
            both = self.patcher.run_pair(index, [*self.basis.reads, self.basis.writes])
            for run, positions in zip(self.patcher.exchanged(index, both), self.positions(index), strict=True):
                if run is not None:
                    active = self._encode(run, positions).cpu()
                    counts += (active > 0).sum(0)
                    sums += active.sum(0)
        return counts, sums


@dataclass(frozen=True)
class FeatureEstimates:
    """First-order estimates of the effects of patches of single features on the metric; on the CPU.

    Attributes:
        clean: The metric of each clean run.
        corrupted: That of each corrupted run.
        effects: By how much the patch of each feature would move the metric of the run that is patched.
    """

    clean: Float[Tensor, " pair"]
    corrupted: Float[Tensor, " pair"]
    effects: Float[Tensor, "pair latent"]


def estimate_feature_effects(
    patching: FeaturePatcher, placed: PlacedDictionary, work: Workload = _WORK
) -> FeatureEstimates:
    """Estimates the patch of every feature: (the other run's activation − the run's own) · the metric's slope along it.

    Args:
        patching: The question.
        placed: The dictionary of its basis, with where it belongs.
        work: Where progress is reported, in pairs.

    Raises:
        InvalidRequest: The metric has no slope at the run that is patched.
        Unsupported: The question is not one for slopes, such as an ablation.

    Source: Marks et al., "Sparse Feature Circuits" (2024).
    """
    patcher = patching.patcher
    require_slopes(patcher)
    found: list[tuple[float, float, Tensor]] = []
    for index in range(len(patcher.pairs)):
        found.append(_estimate_pair(patching, placed, index))
        work.progress(index + 1, None, "pairs estimated")
    clean, corrupted, effects = zip(*found, strict=True)
    return FeatureEstimates(torch.tensor(clean), torch.tensor(corrupted), torch.stack(effects).cpu())


def _estimate_pair(
    patching: FeaturePatcher, placed: PlacedDictionary, index: int
) -> tuple[float, float, Float[Tensor, " latent"]]:
    """The metric of both runs, and the estimate of each feature."""
    patcher = patching.patcher
    model, pair = patcher.model, patcher.pairs[index]
    assert pair.corrupted is not None
    noising = patcher.direction == "noising"
    own, other = (pair.clean, pair.corrupted) if noising else (pair.corrupted, pair.clean)
    places = [*sites_behind(placed.place), *sites_behind(placed.written)]
    with gradients(model.module):
        seen = detached(record_run(model, other, places))
        watched = record_run(model, own, places)
        clean, corrupted = (watched, seen) if noising else (seen, watched)
        measure = make_metric(
            patcher.metric, patcher.targets[pair.index] if patcher.targets else (), clean.logits[0].detach()
        )
        good, bad = measure(clean.logits), measure(corrupted.logits)
        (gradient,) = torch.autograd.grad(good if noising else bad, [watched.states[sites_behind(placed.written)[-1]]])
    slopes = slopes_of(model, placed, watched, gradient, 0.0)
    features = features_of(model, placed, seen)
    into, from_ = patching.positions(index)
    change = features[from_] - slopes.features[into]
    return float(good.detach()), float(bad.detach()), (change * slopes.slopes[into]).sum(0)


def draw_matched_features(
    counts: Int[Tensor, " latent"],
    sums: Float[Tensor, " latent"],
    features: Sequence[int],
    draws: int,
    seed: int = 0,
    fewest: int = _FEWEST,
) -> list[list[int]]:
    """Random sets of features that are about as often and as strongly active as those of a set, one for each.

    Args:
        counts: At how many tokens each feature is active.
        sums: The sum of its activations.
        features: The set; its features are not drawn.
        draws: How many sets, at most.
        seed: The seed of the draws.
        fewest: Features that were active alike, below which as many of the nearest are drawn from.

    Returns:
        Different sets; fewer, or none, where there are too few features.
    """
    dice = random.Random(seed)
    pools = [find_matched(counts, sums, feature, fewest, features) for feature in features]
    found: dict[frozenset[int], list[int]] = {}
    for _ in range(draws * DRAWS):
        drawn: list[int] = []
        for pool in pools:
            left = [one for one in pool if one not in drawn]
            drawn += [dice.choice(left)] if left else []
        if len(drawn) == len(features):
            found.setdefault(frozenset(drawn), drawn)
        if len(found) == draws:
            break
    return list(found.values())
