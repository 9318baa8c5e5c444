"""The models of a comparison, and its prompts as each of them reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nnterp_mcp.engine.planning.plan import plan
from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.experiments.comparison.activations import correspond, require_same_build
from nnterp_mcp.experiments.comparison.sides import AlignedPrompt, ComparedModel, align_by_text, share_vocabulary
from nnterp_mcp.experiments.features.calibration_texts import TEXTS
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.text.tokenization import EncodedPrompt, encode_prompts
from nnterp_mcp.request.adapter_folder import split_scale
from nnterp_mcp.request.remarks import collect_remarks
from nnterp_mcp.toolset.compare_models.params import PARTS, ComparedPart, CompareModelsParams

if TYPE_CHECKING:
    from nnterp_mcp.worker.workbench import Bench

_TEXTS, _CHARACTERS = 8, 160
"""Neutral texts, and how much of each is read."""

_OF_ANY_TWO = ("predictions", "texts")
"""Parts that any two models have."""


@dataclass(frozen=True)
class Compared:
    """The models of a comparison, and its prompts as each of them reads them.

    Attributes:
        base: The model that is compared with.
        model: The model.
        other: Another fine-tune of the base, as a control.
        names: Their handles: of the base, of the model, and of the other one.
        prompts: The prompts of the call.
        neutral: Built-in texts.
        by_text: Some positions or tokens of base and model do not correspond one to one.
        parts: What can be compared of what was asked for.
    """

    base: ComparedModel
    model: ComparedModel
    other: ComparedModel | None
    names: tuple[str, str, str | None]
    prompts: list[AlignedPrompt]
    neutral: list[AlignedPrompt]
    by_text: bool
    parts: list[str]

    def asks(self, *parts: ComparedPart) -> bool:
        """True if one of some parts is compared."""
        return any(part in self.parts for part in parts)

    @property
    def alike(self) -> bool:
        """Layers and positions of both correspond one to one."""
        return not self.by_text and correspond(self.base.model, self.model.model)


def find_models(bench: Bench, params: CompareModelsParams) -> Compared:
    """Reads the models, encodes the prompts for each, and plans the interventions in each.

    Raises:
        NnterpError: A model cannot be loaded, or an intervention cannot act in it.
        InvalidRequest: Nothing that was asked for can be compared, or the control is no fine-tune of the base.
    """
    model = bench.model
    base, name = bench.find_base(params.base)
    texts = [text[:_CHARACTERS] for text in TEXTS[:_TEXTS]]
    neutral = _aligned(base, name, texts, encode_prompts(model.tokenizer, texts, bench.handle))
    given = None if params.prompts is None else bench.encode(params.prompts)
    prompts = neutral if given is None else _aligned(base, name, params.prompts or (), given)
    by_text = not share_vocabulary(base, model) or not all(prompt.same for prompt in (*prompts, *neutral))
    other = _find_other(bench, params, base, by_text)
    acting = _Interventions(bench, params)
    return Compared(
        acting.side(base, [prompt.base for prompt in prompts]),
        acting.side(model, [prompt.model for prompt in prompts]),
        None if other is None else acting.side(other, [prompt.model for prompt in prompts]),
        (name, bench.handle, params.other),
        prompts,
        neutral,
        by_text,
        _possible(base, model, params.parts or PARTS, by_text),
    )


@dataclass(frozen=True)
class _Interventions:
    """The interventions of a call, in any of its models."""

    bench: Bench
    params: CompareModelsParams

    def side(self, model: StandardizedTransformer, prompts: Sequence[EncodedPrompt]) -> ComparedModel:
        bench = self.bench
        if not self.params.interventions:
            return ComparedModel(model)
        return ComparedModel(
            model,
            plan(
                model,
                self.params.interventions,
                prompts,
                bench.find_vector,
                states=bench.find_states,
                features=bench.dictionaries.find_basis,
                batch_tokens=bench.batch_tokens,
            ),
        )


def plan_control(
    bench: Bench, params: CompareModelsParams, control: Any, prompts: Sequence[AlignedPrompt]
) -> ComparedModel:
    """The base with a random change, with the interventions of the call."""
    return _Interventions(bench, params).side(control, [prompt.base for prompt in prompts])


def _aligned(
    base: StandardizedTransformer, name: str, given: Sequence[Any], prompts: Sequence[EncodedPrompt]
) -> list[AlignedPrompt]:
    """The prompts as both models read them; what there is to say of them was said of the model."""
    with collect_remarks():
        others = encode_prompts(base.tokenizer, given, name, base.context, base.embedded)
    return [align_by_text(*pair) for pair in zip(others, prompts, strict=True)]


def _possible(
    base: StandardizedTransformer, model: StandardizedTransformer, asked: Sequence[ComparedPart], by_text: bool
) -> list[str]:
    """The parts that can be compared: of models that are built otherwise only what they predict and write."""
    alike = correspond(base, model)
    possible = [part for part in asked if part in _OF_ANY_TWO or (alike and not (by_text and part == "patching"))]
    if not possible:
        require_same_build(base, model)
        raise InvalidRequest(
            f"{base.name} and {model.name} read texts as different tokens: there is no position to patch.",
            'Compare what they predict, what changes inside, and what they write: parts: ["predictions", "texts"].',
        )
    return possible


def _find_other(
    bench: Bench, params: CompareModelsParams, base: StandardizedTransformer, by_text: bool
) -> StandardizedTransformer | None:
    """Another fine-tune of the base.

    Raises:
        InvalidRequest: It is one of the two models, or is built otherwise.
    """
    if params.other is None:
        return None
    if params.other in (bench.handle, params.base):
        raise InvalidRequest(f"other is {params.other}, one of the two models.", "Name a third one, or leave it out.")
    other, name = bench.find_base(params.other)
    if other is base:
        raise InvalidRequest(f"other is {name}, the base itself.", "Name another fine-tune of it, or leave it out.")
    if by_text or not correspond(base, other) or not share_vocabulary(base, other):
        raise InvalidRequest(
            f"{name} is no control: base, model and other must have the same tokens and layers.", "Leave out other."
        )
    return other


def other_adapters(bench: Bench, compared: Compared) -> list[str]:
    """Adapters on the same weights that could serve as the other fine-tune, at their full scale."""
    if compared.other is not None or not compared.alike:
        return []
    taken = {split_scale(name)[0] for name in compared.names if name is not None}
    return [name for name in bench.relatives() if split_scale(name)[0] not in taken]
