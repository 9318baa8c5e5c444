"""The parts that recipes share: arguments, calls, and the claims in which they end."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from nnterp_mcp.errors import InvalidRequest

DEFAULT_MODEL = "smollm2-135m"


@dataclass(frozen=True)
class Argument:
    """An argument of a recipe.

    Attributes:
        name: Its name; completions go by it.
        meaning: What it is.
        required: True if the recipe needs it.
        example: A value, which the recipe takes where it is shown without arguments.
    """

    name: str
    meaning: str
    required: bool = False
    example: str | None = None

    @property
    def description(self) -> str:
        """Its description, with an example."""
        return self.meaning if self.example is None else f"{self.meaning}, such as: {self.example}"


@dataclass(frozen=True)
class Recipe:
    """One experiment.

    Attributes:
        name: Its name in MCP.
        title: A title for people.
        description: The question that it answers.
        arguments: Its arguments.
        write: Writes it for given arguments and the loaded models (handles with their numbers of layers).
    """

    name: str
    title: str
    description: str
    arguments: tuple[Argument, ...]
    write: Callable[[Mapping[str, str], Mapping[str, int]], str]


def call(tool: str, **arguments: Any) -> str:
    """A call as a line of a recipe; arguments that are None are left out."""
    given = {name: value for name, value in arguments.items() if value is not None}
    return f"{tool} {json.dumps(given, ensure_ascii=False)}"


def load(model: str, loaded: Mapping[str, int]) -> str:
    """The call that loads a model, unless it is loaded."""
    return "(loaded already)" if model in loaded else call("load_model", model=model)


def choose_model(given: Mapping[str, str], loaded: Mapping[str, int]) -> tuple[str, str | None]:
    """The model's name, and the `model` argument of its calls: None while only one model is loaded."""
    model = given.get("model") or next(iter(loaded), DEFAULT_MODEL)
    return model, model if {*loaded, model} != {model} else None


def middle_layers(model: str, loaded: Mapping[str, int]) -> str:
    """The middle third of the layers, where directions of meaning tend to act."""
    layers = loaded.get(model)
    return "all" if layers is None or layers < 3 else f"{layers // 3}:{layers - layers // 3}"


def pick_layer(layers: str, model: str, loaded: Mapping[str, int]) -> int:
    """The layer that was asked for, if it is one; else the middle one, or an early one of a model of unknown depth."""
    return int(layers) if layers.isdecimal() else loaded.get(model, 3) // 2


def split_texts(given: Mapping[str, str], name: str) -> list[str]:
    """The texts of an argument.

    Raises:
        InvalidRequest: There are fewer than two.
    """
    texts = [text.strip() for text in given[name].replace("\n", "|").split("|") if text.strip()]
    if len(texts) < 2:
        raise InvalidRequest(f"{name} takes two or more texts, separated by |, and {len(texts)} came.")
    return texts


MODEL_ARGUMENT = Argument(
    "model", f"A loaded model's handle, or what load_model takes; {DEFAULT_MODEL} unless one is loaded"
)
PROMPT_ARGUMENT = Argument("prompt", "A text that the model continues", True, "The capital of France is")
ANSWER_ARGUMENT = Argument("answer", "What it says next", True, "Paris")
OTHER_PROMPT_ARGUMENT = Argument(
    "other_prompt", "A prompt of the same form that other_answer follows", example="The capital of Italy is"
)

REPORT = """\
Report each number with its control, n, and the run_id of its call. Say what was not tried. One prompt is an \
anecdote: repeat with others before you generalise."""

_BEGINNINGS = ("In short:", "As you know:", "Question and answer:", "A fact:")
"""Beginnings that make further prompts of one: as many as a claim takes at least."""


def make_others(*prompts: str) -> list[str]:
    """Prompts that found nothing, from these in turn."""
    return [f"{begin} {prompts[at % len(prompts)]}" for at, begin in enumerate(_BEGINNINGS)]


def claim_of_fact(given: Mapping[str, str], **claim: Any) -> dict[str, Any]:
    """A claim about the last token, tested with states of a prompt that has another answer, or none."""
    other = given.get("other_prompt") or "It is"
    pairs = {"clean": make_others(given["prompt"]), "corrupted": make_others(other), "positions": {"end": "last"}}
    return claim | pairs | {"found_on": [given["prompt"]]}
