"""Result and answer of `run_prompts`."""

from __future__ import annotations

import operator

from pydantic import Field

from nnterp_mcp.contract import Measured, ModelAnswer, Result, ResultPart
from nnterp_mcp.render import in_force
from nnterp_mcp.request.lenses import LensCard
from nnterp_mcp.table import TableField

PLAIN_LENS = "logit lens"

TOP = 10
"""The rank up to which a lens is said to read a target."""


class PromptRow(ResultPart):
    """One prompt: probabilities from 0 to 1 and ranks from 1, by layer and category.

    Attributes:
        leads_from: The first layer read from which on the top token is that of the last one; None where one is read.
        lens_ranks: The ranks that each of several lenses gives, in the order of the result's `lenses`.
    """

    text: str
    tokens: int
    top: list[tuple[str, float]]
    probabilities: list[list[float]]
    ranks: list[list[int]]
    leads_from: int | None = None
    lens_ranks: list[list[list[int]]] | None = Field(default=None, exclude_if=operator.not_)


class LensPass(ResultPart):
    """The targets of one category through one lens: how often they are among the ten top tokens (pass@10).

    Attributes:
        lens: The lens.
        of: The fitted lens that it is a control of; None for a fitted lens and for the logit lens.
        category: The category.
        in_top: The share of prompts by layer.
        share: Its mean over layers.
        gain: That mean minus the logit lens's.
        first: The median over prompts of the first layer at which the target is among the ten; None where it never is.
        first_interval: The ends of its 95 % interval; None for too few prompts.
    """

    lens: str
    of: str | None
    category: str
    in_top: list[Measured]
    share: Measured
    gain: Measured
    first: int | None
    first_interval: tuple[int | None, int | None] | None


class RunPromptsResult(Result):
    """Every prompt, at every layer read.

    `asked` counts the prompts of the request, `taken` the rows that an equal call had computed before it died;
    `seconds` is the computing time of both.

    Attributes:
        fitted: The fitted lenses; the first of them gives the rows' numbers.
        lenses: How often each lens has the targets among its top tokens, where lenses were compared.
    """

    model: str
    readout: str
    layers: list[int]
    categories: list[str]
    shared: dict[str, list[str]]
    interventions: list[str]
    rows: list[PromptRow]
    asked: int
    taken: int
    seconds: float
    fitted: list[LensCard] = Field(default_factory=list[LensCard], exclude_if=operator.not_)
    lenses: list[LensPass] = Field(default_factory=list[LensPass], exclude_if=operator.not_)

    @property
    def in_force(self) -> list[str]:
        """The note that names the interventions; a patchscope's target prompt runs without them."""
        where = " in the prompts, not in the target prompt" if self.readout == "patchscope" else ""
        return in_force(self.interventions, where)


class RunPromptsAnswer(ModelAnswer):
    """Statistics over the prompts."""

    categories: TableField
    examples: TableField
    lenses: TableField | None = None
