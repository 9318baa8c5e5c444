"""Clean prompts and what they are compared with: other prompts, replaced words, noise on embeddings, other prompts of
the same set.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nnterp_mcp.engine.branch_pass import Input
from nnterp_mcp.engine.forward import Plan
from nnterp_mcp.engine.hook_points import Place
from nnterp_mcp.engine.observation import observe
from nnterp_mcp.engine.sampling import dice_of
from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.text.positions import resolve_positions
from nnterp_mcp.model.text.tokenization import EncodedPrompt
from nnterp_mcp.request.positions import PositionSpec
from nnterp_mcp.request.prompts import Prompt


@dataclass(frozen=True, eq=False)
class Pair:
    """A clean input and a corrupted one.

    Attributes:
        clean: The prompt to which the answer belongs.
        corrupted: The one to which it does not; None where states are ablated, not taken from another run.
    """

    clean: Input
    corrupted: Input | None

    @property
    def index(self) -> int:
        """The place of the clean prompt in the request; several draws of noise share it."""
        return self.clean.prompt.index


def pair_prompts(clean: Sequence[EncodedPrompt], corrupted: Sequence[EncodedPrompt]) -> list[Pair]:
    """Pairs of prompts.

    Raises:
        InvalidRequest: There are not as many corrupted prompts as clean ones.
    """
    if len(clean) != len(corrupted):
        raise InvalidRequest(
            f"{len(clean)} clean prompts and {len(corrupted)} corrupted ones came.", "Give one for each."
        )
    return [Pair(Input(one), Input(other)) for one, other in zip(clean, corrupted, strict=True)]


def replace_text(prompt: Prompt, old: str, new: str) -> Prompt:
    """A prompt with every occurrence of a piece of its text replaced.

    Raises:
        InvalidRequest: The text is not in the prompt.
    """
    texts = [prompt] if isinstance(prompt, str) else [message.content for message in prompt]
    if not any(old in text for text in texts):
        raise InvalidRequest(f"the prompt {texts[-1]!r} has no {old!r} to replace.", "Mind case and spaces.")
    if isinstance(prompt, str):
        return prompt.replace(old, new)
    return [message.model_copy(update={"content": message.content.replace(old, new)}) for message in prompt]


def add_noise(
    model: StandardizedTransformer,
    prompts: Sequence[EncodedPrompt],
    positions: Sequence[PositionSpec],
    scale: float = 3.0,
    samples: int = 10,
    seed: int = 0,
) -> list[Pair]:
    """Corrupts prompts by Gaussian noise on the embeddings of some tokens, as causal tracing does.

    Noise takes a token's meaning without putting another in its place, but it is a state that the model never sees:
    what it breaks need not be what the token says.

    Args:
        positions: The tokens of each prompt: its subject.
        scale: Standard deviation of a prompt's noise, in those of the embeddings of its own tokens.
        samples: Pairs to make of each prompt, with noise of their own.
        seed: Where the random numbers begin; a prompt's own are the same whatever the others are.

    Raises:
        InvalidRequest: A position does not exist in a prompt.

    Source: Meng et al., "Locating and Editing Factual Associations in GPT" (2022), section 2.1.
    """
    chosen = [resolve_positions(positions, prompt) for prompt in prompts]
    place = Place("token_embeddings")
    states = [observe(model, Input(prompt), [place]).states[place] for prompt in prompts]
    deviations = [scale * float(embeddings.float().std()) for embeddings in states]
    dice = [dice_of(seed, prompt.ids) for prompt in prompts]
    return [
        Pair(Input(prompt), Input(prompt, _noise(embeddings, at, deviation, own)))
        for prompt, at, embeddings, deviation, own in zip(prompts, chosen, states, deviations, dice, strict=True)
        for _ in range(samples)
    ]


def _noise(like: Tensor, positions: Sequence[int], deviation: float, generator: torch.Generator) -> Tensor:
    noise = torch.zeros(like.shape)
    noise[positions] = deviation * torch.randn(len(positions), like.shape[-1], generator=generator)
    return noise


def resample(prompts: Sequence[EncodedPrompt], seed: int = 0) -> list[Pair]:
    """Pairs each prompt with another of the set that has as many tokens, drawn at random: resample ablation.

    Raises:
        InvalidRequest: A prompt has no other of its length.

    Source: Chan et al., "Causal Scrubbing" (2022).
    """
    dice = random.Random(seed)
    by_length: dict[int, list[EncodedPrompt]] = {}
    for prompt in prompts:
        by_length.setdefault(len(prompt.ids), []).append(prompt)
    partners: dict[int, EncodedPrompt] = {}
    for length, group in by_length.items():
        if len(group) < 2:
            raise InvalidRequest(
                f"prompt {group[0].index} alone has {length} tokens: resampling takes states from another clean prompt "
                "of equal length.",
                "Give several prompts of equal length, or corrupted prompts.",
            )
        order = dice.sample(group, len(group))
        partners |= {one.index: other for one, other in zip(order, [*order[1:], order[0]], strict=True)}
    return [Pair(Input(prompt), Input(partners[prompt.index])) for prompt in prompts]


def ablate(prompts: Sequence[EncodedPrompt]) -> list[Pair]:
    """Clean prompts alone, into whose runs zeros or means are put."""
    return [Pair(Input(prompt), None) for prompt in prompts]


def put_in_force(pairs: Sequence[Pair], plan: Callable[[Sequence[EncodedPrompt]], Plan]) -> list[Pair]:
    """The same pairs, with interventions active in both runs of each.

    They are planned for the clean prompts and for the corrupted ones: a piece of text that an operation names as its
    position has to be in both, and a state that it takes from another prompt comes from one of the same side.

    Args:
        plan: Resolves the operations against prompts.

    Raises:
        InvalidRequest: Something that the operations name does not exist on either side.
    """
    clean = plan(list({pair.index: pair.clean.prompt for pair in pairs}.values()))
    others = {
        pair.index: replace(pair.corrupted.prompt, index=pair.index) for pair in pairs if pair.corrupted is not None
    }
    corrupted = plan(list(others.values())) if others else clean
    return [
        Pair(
            replace(pair.clean, plan=clean),
            None if pair.corrupted is None else replace(pair.corrupted, prompt=others[pair.index], plan=corrupted),
        )
        for pair in pairs
    ]


def observe_mean(
    model: StandardizedTransformer, inputs: Sequence[Input], places: Sequence[Place]
) -> dict[Place, Tensor]:
    """The mean over inputs of what is at each position of some places: (position, …).

    Raises:
        InvalidRequest: There is one input only, or their lengths differ.
    """
    lengths = sorted({len(given) for given in inputs})
    if len(inputs) < 2 or len(lengths) > 1:
        raise InvalidRequest(
            f"mean ablation takes the mean over prompts of equal length, position by position: {len(inputs)} "
            f"came, of {' and '.join(map(str, lengths))} tokens.",
            "Give several prompts of equal length.",
        )
    total: dict[Place, Tensor] = {}
    for given in inputs:
        for place, states in observe(model, given, places).states.items():
            total[place] = total[place] + states.float() if place in total else states.float()
    return {place: states / len(inputs) for place, states in total.items()}
