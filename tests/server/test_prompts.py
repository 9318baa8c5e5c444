"""The recipes, over a real client: every call that one names is made, on tiny models."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from mcp.shared.exceptions import MCPError
from mcp_types import INVALID_PARAMS, PromptReference

from nnterp_mcp.server.recipes import RECIPES
from nnterp_mcp.toolset import specs
from nnterp_mcp.verification.tiny import tiny_model
from tests.adapters import write_adapter
from tests.serving import Caller, stdio, text

ADAPTERS = tempfile.TemporaryDirectory()
FACT = {"prompt": "The capital of France is", "answer": "Paris"}
GIVEN: dict[str, dict[str, str]] = {
    "locate_fact": {**FACT, "subject": "France", "other_subject": "Norway", "other_answer": "Oslo"},
    "steering_vector": {
        "vector": "joy",
        "positive": "I won | We won | They won",
        "negative": "I lost\nWe lost\nThey lost",
        "prompt": 'She said: "I {feel}"',
    },
    "explain_prediction": {**FACT, "other_answer": "Rome"},
    "induction_heads": {},
    "compare_models": {**FACT, "model_a": "tiny-llama", "model_b": "tiny-gpt2"},
    "explain_finetune": {**FACT, "other_prompt": "It is", "adapter": str(Path(ADAPTERS.name) / "persona")},
}
LARGEST = 1200
"""Tokens of a recipe."""


@pytest.fixture(scope="module")
def client(tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Generator[Caller]:
    with stdio(data=tmp_path_factory.mktemp("recipes")) as caller:
        write_adapter(tiny_model("llama"), Path(ADAPTERS.name) / "persona", target_modules=["down_proj"])
        for family in ("llama", "gpt2"):
            assert not caller.call("load_model", model=str(tiny(family))).is_error
        yield caller


def calls(recipe: str) -> list[tuple[str, dict[str, Any]]]:
    """The calls that a recipe names, in its order."""
    found = re.findall(r"^([a-z_]+) (\{.*\})$", recipe, re.MULTILINE)
    return [(tool, json.loads(arguments)) for tool, arguments in found]


def refusal(client: Caller, name: str, **arguments: str) -> str:
    with pytest.raises(MCPError) as raised:
        client.prompt(name, **arguments)
    assert raised.value.error.code == INVALID_PARAMS
    return raised.value.error.message


def test_every_recipe_is_listed_with_its_arguments(client: Caller) -> None:
    listed = {prompt.name: prompt for prompt in client.prompts()}

    assert set(listed) == set(GIVEN)
    for prompt in listed.values():
        assert prompt.title
        assert prompt.description
        assert all(argument.description for argument in prompt.arguments or ())
        required = {argument.name for argument in prompt.arguments or () if argument.required}
        assert required <= set(GIVEN[prompt.name])


@pytest.mark.parametrize("name", GIVEN)
def test_every_call_of_a_recipe_runs(name: str, client: Caller) -> None:
    recipe = client.prompt(name, **GIVEN[name], **({} if "model_a" in GIVEN[name] else {"model": "tiny-llama"}))
    named = calls(recipe)

    assert len(named) >= 5
    for tool, arguments in named:
        jsonschema.validate(arguments, specs()[tool].input_schema())
        result = client.call(tool, **arguments)
        assert not result.is_error, (tool, arguments, text(result))
    if "adapter" in GIVEN[name]:
        assert not client.call("unload_model", model="tiny-llama+persona").is_error


@pytest.mark.parametrize("name", GIVEN)
def test_a_recipe_has_a_control_and_says_what_counts_against_it(
    name: str, client: Caller, count_tokens: Callable[[object], int]
) -> None:
    recipe = client.prompt(name, **GIVEN[name])

    assert "\n\nLook\n" in recipe or "\n\nMake it\n" in recipe
    assert "\n\nControl\n" in recipe
    assert "\n\nIt counts against " in recipe
    assert "Report each number with its control, n, and the run_id" in recipe
    assert count_tokens(recipe) <= LARGEST


def test_a_recipe_loads_what_is_not_loaded(client: Caller) -> None:
    recipe = RECIPES["induction_heads"].write

    assert calls(recipe({}, {}))[0] == ("load_model", {"model": "smollm2-135m"})
    assert all("model" not in arguments for tool, arguments in calls(recipe({}, {})) if tool != "load_model")
    assert all("model" not in arguments for _, arguments in calls(recipe({}, {"tiny-llama": 4})))
    assert calls(recipe({"model": "org/other"}, {"tiny-llama": 4}))[0] == ("load_model", {"model": "org/other"})
    assert all(arguments["model"] == "org/other" for _, arguments in calls(recipe({"model": "org/other"}, {"a": 4})))


def test_steering_begins_in_the_middle_layers() -> None:
    given = GIVEN["steering_vector"]
    steered = [
        [
            arguments["layers"]
            for tool, arguments in calls(RECIPES["steering_vector"].write(given | chosen, loaded))
            if tool == "steer"
        ]
        for chosen, loaded in [({}, {"a": 30}), ({}, {}), ({"layers": "3"}, {"a": 30})]
    ]

    assert steered == [["10:20"] * 2, ["all"] * 2, ["3"] * 2]


def test_what_a_recipe_cannot_be_written_for_is_named(client: Caller) -> None:
    fact = GIVEN["locate_fact"]

    assert refusal(client, "recipe") == (
        "invalid_request: there is no prompt 'recipe': prompts are locate_fact, steering_vector, explain_prediction, "
        "induction_heads, compare_models, explain_finetune."
    )
    assert refusal(client, "locate_fact", **fact | {"subject": " "}).startswith(
        "invalid_request: locate_fact needs the argument 'subject': The piece of the prompt"
    )
    assert "locate_fact has no argument 'layer': its arguments are prompt, subject" in refusal(
        client, "locate_fact", **fact, layer="3"
    )
    assert "the subject 'Spain' is not in the prompt 'The capital of France is'" in refusal(
        client, "locate_fact", **fact | {"subject": "Spain"}
    )
    assert "positive takes two or more texts, separated by |, and 1 came." in refusal(
        client, "steering_vector", **GIVEN["steering_vector"] | {"positive": "one"}
    )
    assert "model_a and model_b are both 'tiny-gpt2'" in refusal(
        client, "compare_models", **GIVEN["compare_models"] | {"model_a": "tiny-gpt2"}
    )


def test_arguments_are_completed(client: Caller) -> None:
    def suggested(prompt: str, argument: str, typed: str = "", **known: str) -> list[str]:
        return client.complete(PromptReference(name=prompt), argument, typed, **known)

    client.call("make_vector", name="zeal", method="random", norm=1.0, model="tiny-llama")

    assert suggested("locate_fact", "model") == ["tiny-llama", "tiny-gpt2", "smollm2-135m"]
    assert suggested("locate_fact", "model", "tiny-g") == ["tiny-gpt2"]
    assert suggested("compare_models", "model_b", model_a="tiny-llama") == ["tiny-gpt2", "smollm2-135m"]
    assert suggested("steering_vector", "layers", model="tiny-llama") == ["all", "0", "1", "2", "3"]
    assert suggested("steering_vector", "layers") == ["all"], "two models are loaded"
    assert "zeal" in suggested("steering_vector", "vector", "ze")
    assert suggested("locate_fact", "prompt", "The") == []
