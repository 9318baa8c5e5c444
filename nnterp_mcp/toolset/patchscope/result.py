"""Result and answer of `patchscope`."""

from __future__ import annotations

import operator
from typing import Annotated, Literal

from pydantic import Field

from nnterp_mcp.contract import Result, ResultPart, TableAnswer
from nnterp_mcp.formatting import quoted
from nnterp_mcp.request.lenses import LensCard


class Distribution(ResultPart):
    """The next token of the target prompt: probabilities from 0 to 1, entropy in nats.

    Attributes:
        top: The top tokens.
        entropy: Entropy of the distribution.
        tracked: Probability and rank of each tracked category; rank 0 where it has no token.
        text: The generated text; None where none was asked for.
        says: For each tracked category, whether it is what is said: on top, or a word of the text.
    """

    top: list[tuple[str, float]]
    entropy: float
    tracked: list[tuple[float, int]]
    text: str | None
    says: list[bool]


class PatchReading(Distribution):
    """The next token with a state of `source_layer` put in as the output of `target_layer`.

    Attributes:
        lengths: The norms of a vector and of the state that it replaces.
    """

    source_layer: int
    target_layer: int
    lengths: tuple[float, float] | None = None


class StateReading(ResultPart):
    """The state of a source layer read by lenses, without a target prompt.

    Attributes:
        layer: The source layer.
        top: The fitted lens's top token and its probability.
        tracked: The fitted lens's probability and rank of each tracked category; rank 0 where it has no token.
        plain_top: The logit lens's top token and its probability.
        plain_tracked: The logit lens's probability and rank of each tracked category.
    """

    layer: int
    top: tuple[str, float]
    tracked: list[tuple[float, int]]
    plain_top: tuple[str, float]
    plain_tracked: list[tuple[float, int]]


class SourceReading(ResultPart):
    """One position of one source prompt, or one vector, under every patch.

    Attributes:
        prompt: The source prompt's number.
        position: The position in it.
        token: The token there.
        answer: The model's own top token after it; None where its lens is not exact.
        vector: The name of the vector; None for a prompt's state.
        unpatched: The target prompt left alone.
        patches: The target prompt under each patch.
        states: The source's states by lenses, where a fitted lens was asked for.
    """

    prompt: int | None
    position: int | None
    token: str | None
    answer: str | None
    vector: str | None = None
    unpatched: Distribution
    patches: list[PatchReading]
    states: list[StateReading] = Field(default_factory=list[StateReading], exclude_if=operator.not_)


class PatchscopeResult(Result):
    """Every patch.

    Attributes:
        model: The model's handle.
        before: The target prompt's text before the patched token.
        target_token: That token.
        after: The text after it.
        layout: `same` or `pairs`: one target layer for each source layer; `grid`: several.
        categories: The targets' tokens; without targets, what is tracked is a prompt's own token and answer.
        shared: Tokens that count for two categories.
        interventions: The active interventions, one line each.
        fitted: The metadata of the fitted lens that reads the sources' states too.
        sources: The sources.
    """

    model: str
    before: str
    target_token: str
    after: str
    layout: Literal["same", "pairs", "grid"]
    categories: dict[str, list[str]]
    shared: dict[str, list[str]]
    interventions: list[str]
    fitted: Annotated[LensCard | None, Field(exclude_if=operator.not_)] = None
    sources: list[SourceReading]


class PatchscopeAnswer(TableAnswer):
    """The patches as an agent sees them."""

    target: Annotated[str, Field(description="The target prompt, the patched token in «».")]

    def body(self) -> list[str]:
        """The target prompt, then the table."""
        return [f"Target prompt: {quoted(self.target)}", *super().body()]
