"""Result and answer of `compare_models`."""

from __future__ import annotations

from pydantic import Field

from nnterp_mcp.contract import ModelAnswer, Result, ResultPart
from nnterp_mcp.table import TableField


class PositionChanged(ResultPart):
    """The predictions of both models after a token.

    Attributes:
        kl: KL(model ‖ base), in nats.
        random: KL(base with a random change ‖ base); None without that control.
    """

    prompt: int
    position: int
    token: str
    kl: float
    base_top: str
    base_p: float
    top: str
    p: float
    random: float | None = None

    @property
    def changed(self) -> bool:
        """True if the top token is another."""
        return self.base_top != self.top


class PlaceChanged(ResultPart):
    """The change of activations at a site of a layer, as means over tokens.

    Attributes:
        change: ‖h' - h‖ / ‖h‖.
        cosine: The cosine of h' and h.
        made: For the output of a layer, the share of the change that this layer's weights make, over ‖h‖.
        came: What the base's layer makes of the other input, over ‖h‖.
        random: The change under a random change of weights.
    """

    site: str
    layer: int
    change: float
    cosine: float
    made: float | None = None
    came: float | None = None
    random: float | None = None


class ModuleChanged(ResultPart):
    """The change of a weight; `rank` and `spectrum` (singular values) where it was decomposed."""

    module: str
    shape: list[int]
    norm: float
    relative: float
    rank: int | None
    spectrum: list[float]


class LayerDifference(ResultPart):
    """The mean difference of a layer's output on unrelated text.

    Attributes:
        size: Its norm over the mean norm of the base's states there.
        top: The tokens that it promotes, read through the final norm and the head.
    """

    layer: int
    size: float
    top: list[tuple[str, float]]


class CellPatched(ResultPart):
    """One place at which the activations of one model replace the other's, at all positions, as means over prompts.

    Attributes:
        into_base: Recovery, 1 - KL(model ‖ patched base) / KL(model ‖ base), with the model's activations in the base.
        into_model: 1 - KL(base ‖ patched model) / KL(base ‖ model), with the base's in the model.
    """

    site: str
    layer: int
    into_base: float
    into_model: float


class TextPair(ResultPart):
    """Greedy continuations of a prompt: by the base, by the model, and by the base with the mean difference added."""

    prompt: int
    base: str
    model: str
    steered: str | None = None


class CompareModelsResult(Result):
    """Two models side by side.

    Attributes:
        model: The model's handle.
        base: The other model.
        prompts: The texts on which they ran.
        neutral: These are built-in neutral texts.
        parts: What was compared.
        left_out: What was asked for, but is not there to compare in models that are built otherwise.
        uncontrolled: Changed weights that the random change leaves out: vectors, and what is no linear map.
        steered_layer: The layer at whose output the mean difference was added for `steered`.
        patched: The prompts that were patched.
    """

    model: str
    base: str
    prompts: list[str]
    neutral: bool
    parts: list[str]
    left_out: list[str] = Field(default_factory=list[str])
    positions: list[PositionChanged] = Field(default_factory=list[PositionChanged])
    places: list[PlaceChanged] = Field(default_factory=list[PlaceChanged])
    modules: list[ModuleChanged] = Field(default_factory=list[ModuleChanged])
    uncontrolled: int = 0
    differences: list[LayerDifference] = Field(default_factory=list[LayerDifference])
    cells: list[CellPatched] = Field(default_factory=list[CellPatched])
    patched: list[int] = Field(default_factory=list[int])
    texts: list[TextPair] = Field(default_factory=list[TextPair])
    steered_layer: int | None = None


class CompareModelsAnswer(ModelAnswer):
    """The largest changes of each kind."""

    predictions: TableField
    layers: TableField
    modules: TableField
    differences: TableField
    patching: TableField
    texts: TableField

    def body(self) -> list[str]:
        """Each table under its name."""
        return [f"{name}:\n{table.text()}" for name, table in self.tables.items() if table.rows]
