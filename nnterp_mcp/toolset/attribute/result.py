"""Result and answer of `attribute`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from nnterp_mcp.contract import Measured, Result, ResultPart, TableAnswer


class AttributedPart(ResultPart):
    """A part, and what it counts.

    Attributes:
        kind: What it is: `embeddings`, `positions`, `layer`, `attention`, `head`, `mlp`, `neuron`, `feature`, a bias,
            `reconstruction error`, `rest`, `token choice`, `token`, or the site of a patched cell.
        layer: The layer.
        index: The head, the neuron, or the token's position.
        source: The position that a head reads, where heads are split by it.
        prompt: Which prompt, for a token of one prompt; of several that are patched together, the first.
        token: The token.
        value: What it adds to the metric; of a patched cell, the estimate of what the patch does.
        logits: What it adds to the logit of each category, in the mean over prompts (direct, several categories).
        patched: What the patch did, where it was made, in the mean over prompts.
        by_construction: What the patch does follows from what is replaced, such as the last layer's output at the last
            position.
    """

    kind: str
    layer: int | None = None
    index: int | None = None
    source: int | None = None
    prompt: int | None = None
    token: str | None = None
    value: Measured
    logits: list[float] = Field(default_factory=list[float])
    patched: float | None = None
    by_construction: bool = False


class LayerSum(ResultPart):
    """The sum over a layer; missing where the layer was not split."""

    layer: int
    attention: float | None = None
    mlp: float | None = None
    rest: float | None = None


class Checked(ResultPart):
    """Estimates beside real patches.

    Attributes:
        cells: How many cells were patched.
        strongest: How many of these are the strongest; the others were drawn at random.
        pearson: The correlation of estimates and effects over all of them; None where one does not vary.
        agreement: The share of the strongest whose effect has the sign that was estimated.
    """

    cells: int
    strongest: int
    pearson: float | None
    agreement: float


class AttributeResult(Result):
    """Every part.

    Attributes:
        model: The model's handle.
        method: How it was attributed.
        by: To what.
        dictionary: The dictionary whose features they are.
        metric: What was attributed: `logit_difference`, `logit` or `log_probability`.
        prompts: The prompts.
        categories: The target tokens of the first prompt, by category.
        shared: The tokens that categories share, under `a and b`.
        in_force: The interventions.
        whole: The metric, in the mean over prompts.
        base: That of the baseline (integrated gradients) or of the corrupted runs (patching).
        corruption: How the corrupted runs came about, in words.
        against: The first corrupted prompt, where there is one.
        error: The largest difference of a prompt's sum of parts and its metric (direct), or of its sum over tokens and
            the difference from the baseline (integrated gradients).
        missed: The same piece by piece of the way from the baseline, where pieces cannot make up for one another.
        points: The most points at which slopes were taken on a prompt's way (integrated gradients).
        rescaled: Whether a softcap or scale after the head was frozen too.
        parts: The parts: all, or the strongest where there are many neurons.
        total: How many there are.
        left: What those that are not listed add together, in the mean over prompts.
        layers: The sums of each layer (direct).
        shown: How many parts an answer shows.
        checked: The check of the estimates; None for other methods, or where nothing has an effect.
    """

    model: str
    method: str
    by: str
    dictionary: str | None = None
    metric: str
    prompts: list[str]
    categories: dict[str, list[str]]
    shared: dict[str, list[str]]
    in_force: list[str]
    whole: Measured
    base: Measured | None = None
    corruption: str | None = None
    against: str | None = None
    error: float | None = None
    missed: float | None = None
    points: int | None = None
    rescaled: bool = False
    parts: list[AttributedPart]
    total: int
    left: float = 0.0
    layers: list[LayerSum] = Field(default_factory=list)
    shown: int
    checked: Checked | None = None


class AttributeAnswer(TableAnswer):
    """The strongest parts, and a number for every layer."""

    metric: Annotated[float, Field(description="The metric that is attributed.")]
    error: Annotated[float | None, Field(description="By how much the parts miss it.")] = None
