"""Result and answer of `steer`."""

from __future__ import annotations

from nnterp_mcp.contract import DominantToken, Result, ResultPart, TableAnswer


class SteeredRun(ResultPart):
    """One run: the baseline of a prompt, or one direction added after one layer.

    Attributes:
        prompt: The prompt's index.
        layer: The layer; None for the baseline.
        factor: The factor of the direction.
        control: Which control it was, those of matched features before random directions; None for the vector itself.
        push: Length of what was added over the length of the unsteered state at the last token after that layer.
        kl: KL(steered ‖ baseline) of the next token's distribution, in nats.
        top: The top tokens with their probabilities.
        targets: Probability and rank of each category.
        text: The generated text; None where none was asked for.
        perplexity: Of that text after the prompt, under the model without any intervention.
    """

    prompt: int
    layer: int | None
    factor: float
    control: int | None
    push: float | None
    kl: float
    top: list[tuple[str, float]]
    targets: list[tuple[float, int]]
    text: str | None
    perplexity: float | None = None


class SteerResult(Result):
    """Every run, the baseline of each prompt before its own.

    `matched` are features that are about as often and as strongly active, for a vector that is a feature's row; None
    for another vector. `controls` is the number of random directions.
    """

    model: str
    vector: str
    norms: dict[int, float]
    prompts: list[str]
    controls: int
    matched: list[int] | None = None
    categories: dict[str, list[str]]
    shared: dict[str, list[str]]
    in_force: list[str]
    dominant: DominantToken | None = None
    runs: list[SteeredRun]


class SteerAnswer(TableAnswer):
    """The sweep as an agent sees it."""
