"""Result and answer of `compare_models`."""

from __future__ import annotations

from pydantic import Field

from nnterp_mcp.contract import ModelAnswer, Result, ResultPart
from nnterp_mcp.table import TableField


class PositionChanged(ResultPart):
    """The predictions of both models after a text that both have read.

    Attributes:
        position: The position in the model; in the base it is another one where the tokens differ.
        token: The model's token there.
        kl: KL(model ‖ base), in nats; of two vocabularies, given that the next token is one that both have.
        changed: The top token is another; of two vocabularies, neither top token begins with the other.
        random: KL(base with a random change ‖ base); None without that control.
        other: KL(other fine-tune ‖ base); None without it.
        base_bits: Bits that the base needs for a character of the text up to the next such position; None at the end.
        bits: Bits that the model needs.
        characters: How many characters these are.
        base_shared: The base's probability of tokens that both vocabularies have.
        shared: The model's.
    """

    prompt: int
    position: int
    token: str
    kl: float
    base_top: str
    base_p: float
    top: str
    p: float
    changed: bool
    random: float | None = None
    other: float | None = None
    base_bits: float | None = None
    bits: float | None = None
    characters: int | None = None
    base_shared: float = 1.0
    shared: float = 1.0


class PlaceChanged(ResultPart):
    """The change of activations at a site of a layer, as means over tokens.

    Attributes:
        change: ‖h' - h‖ / ‖h‖.
        cosine: The cosine of h' and h.
        made: For the output of a layer, the share of the change that this layer's weights make, over ‖h‖; None where
            the models read other tokens.
        came: What the base's layer makes of the other input, over ‖h‖.
        random: The change under a random change of weights.
        other: The change in another fine-tune.
    """

    site: str
    layer: int
    change: float
    cosine: float
    made: float | None = None
    came: float | None = None
    random: float | None = None
    other: float | None = None


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
        early: It is the mean over positions 1 to 4 alone, not over all positions but the first.
        size: Its norm over the mean norm of the base's states there.
        top: The tokens that it promotes, read through the final norm and the head.
        scope: What the model says of it in the repeat prompt.
        other: Its cosine with the mean difference of another fine-tune.
    """

    layer: int
    early: bool
    size: float
    top: list[tuple[str, float]]
    scope: list[tuple[str, float]] = Field(default_factory=list[tuple[str, float]])
    other: float | None = None


class Steered(ResultPart):
    """The base with a multiple of the mean difference added, as means over prompts.

    Attributes:
        kl: KL(model ‖ steered base) after the prompt, in nats; the strength 0 is the base itself.
        random: The same with random directions of equal length.
    """

    strength: float
    kl: float
    random: float


class CellPatched(ResultPart):
    """One place at which the activations of one model replace the other's, at all positions, as means over prompts.

    Attributes:
        into_base: Recovery, 1 - KL(model ‖ patched base) / KL(model ‖ base), with the model's activations in the base.
        into_model: 1 - KL(base ‖ patched model) / KL(base ‖ model), with the base's in the model.
        other: 1 - KL(model ‖ patched base) / KL(model ‖ base), with those of another fine-tune in the base.
    """

    site: str
    layer: int
    into_base: float
    into_model: float
    other: float | None = None


class TextPair(ResultPart):
    """Greedy continuations of a prompt: by the base, by the model, by the base with the mean difference added, and by
    another fine-tune."""

    prompt: int
    base: str
    model: str
    steered: str | None = None
    other: str | None = None


class CompareModelsResult(Result):
    """Two models side by side.

    Attributes:
        model: The model's handle.
        base: The other model.
        other: Another fine-tune, as a control.
        others: Further adapters on the same base, which could be that.
        prompts: The texts on which they ran.
        neutral: These are built-in neutral texts.
        interventions: What acted in each model, one short line each.
        parts: What was compared.
        left_out: What was asked for, but is not there to compare in models that are built otherwise.
        by_text: The models read other tokens, or have other vocabularies: positions correspond by text.
        uncontrolled: Changed weights that the random change leaves out: vectors, and what is no linear map.
        steered_layer: The layer at whose output the mean difference was added.
        steered_strength: The multiple of it that was added for texts.
        scoped: What the model says in the repeat prompt without a difference.
        patched: The prompts that were patched.
    """

    model: str
    base: str
    other: str | None = None
    others: list[str] = Field(default_factory=list[str])
    prompts: list[str]
    neutral: bool
    interventions: list[str] = Field(default_factory=list[str])
    parts: list[str]
    left_out: list[str] = Field(default_factory=list[str])
    by_text: bool = False
    positions: list[PositionChanged] = Field(default_factory=list[PositionChanged])
    places: list[PlaceChanged] = Field(default_factory=list[PlaceChanged])
    modules: list[ModuleChanged] = Field(default_factory=list[ModuleChanged])
    uncontrolled: int = 0
    differences: list[LayerDifference] = Field(default_factory=list[LayerDifference])
    scoped: list[tuple[str, float]] = Field(default_factory=list[tuple[str, float]])
    steering: list[Steered] = Field(default_factory=list[Steered])
    steered_layer: int | None = None
    steered_strength: float | None = None
    cells: list[CellPatched] = Field(default_factory=list[CellPatched])
    patched: list[int] = Field(default_factory=list[int])
    texts: list[TextPair] = Field(default_factory=list[TextPair])


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
