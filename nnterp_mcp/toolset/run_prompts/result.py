"""Result and answer of `run_prompts`."""

from __future__ import annotations

from nnterp_mcp.contract import ModelAnswer, Result, ResultPart
from nnterp_mcp.render import in_force
from nnterp_mcp.table import TableField


class PromptRow(ResultPart):
    """One prompt: probabilities from 0 to 1 and ranks from 1, by layer and category.

    Attributes:
        leads_from: The first layer read from which on the top token is that of the last one; None where one is read.
    """

    text: str
    tokens: int
    top: list[tuple[str, float]]
    probabilities: list[list[float]]
    ranks: list[list[int]]
    leads_from: int | None = None


class RunPromptsResult(Result):
    """Every prompt, at every layer read.

    `asked` counts the prompts of the request, `taken` the rows that an equal call had computed before it died;
    `seconds` is the computing time of both.
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

    @property
    def in_force(self) -> list[str]:
        """The note that names the interventions; a patchscope's target prompt runs without them."""
        where = " in the prompts, not in the target prompt" if self.readout == "patchscope" else ""
        return in_force(self.interventions, where)


class RunPromptsAnswer(ModelAnswer):
    """Statistics over the prompts."""

    categories: TableField
    examples: TableField
