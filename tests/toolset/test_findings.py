"""A finding is true of the run that it reports, whatever was asked: over random calls of every tool that states one."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import import_module
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from nnterp_mcp.worker.job import Job
from nnterp_mcp.worker.workbench import Bench
from tests.toolset.claims import causes, directions, readouts
from tests.toolset.claims.reading import Facts
from tests.toolset.test_make_vector import make_bench

# What brings nnsight in is imported where it is used: pydantic models that are defined after it break.

TEXTS = ("The capital of France is", "Paris is", "The capital is Madrid", "of the of the of", "In Spain the capital is")
WORDS = ("Paris", "Madrid", "Rome", "Spain", "France")
LAYERS = st.sampled_from(["all", [0], [3], [1, 3], [0, 2], "1:"])
PROMPTS = st.lists(st.sampled_from(TEXTS), min_size=1, max_size=3, unique=True)
TARGETS = st.dictionaries(st.sampled_from(["a", "b"]), st.sampled_from(WORDS), min_size=1, max_size=2)
ANSWER = st.permutations(WORDS).map(lambda words: {"answer": words[0], "wrong": words[1]})
FACTORS = st.lists(st.sampled_from([-8, -2, 0, 0.5, 4, 30]), min_size=1, max_size=3, unique=True)
PAIRS = st.permutations(WORDS).map(lambda words: {"positive": f" {words[0]}", "negative": f" {words[1]}"})
GROUPS = st.permutations(WORDS * 2).map(
    lambda words: {"a": [f"The {word}" for word in words[:4]], "b": [f"is {word} the" for word in words[4:8]]}
)
SCALED = {"op": "scale", "site": "mlps_output", "layers": [1], "factor": 6}
INTERVENTIONS = st.sampled_from([[], [SCALED]])
CLEAN, CORRUPTED = "The capital of France is", "The capital of Spain is"
CORRUPTIONS = st.sampled_from(
    [
        CORRUPTED,
        {"ablate": "zero"},
        {"noise": 2, "positions": [1, 4], "samples": 2},
        {"ablate": "mean", "over": [CLEAN, CORRUPTED]},
    ]
)

CALLS: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "logit_lens": st.fixed_dictionaries({"prompts": PROMPTS, "layers": LAYERS, "interventions": INTERVENTIONS}),
    "patchscope": st.fixed_dictionaries({"source_prompts": PROMPTS, "source_layers": LAYERS, "targets": TARGETS}),
    "run_prompts": st.fixed_dictionaries(
        {"prompts": PROMPTS, "targets": TARGETS, "readout": st.sampled_from(["next_token", "logit_lens"])}
    ),
    "attention_probs": st.fixed_dictionaries({"prompts": PROMPTS}, optional={"query_positions": st.just("last")}),
    "generate": st.fixed_dictionaries(
        {"prompts": PROMPTS, "max_new_tokens": st.integers(0, 4), "interventions": INTERVENTIONS}
    ),
    "steer": st.fixed_dictionaries(
        {"prompts": PROMPTS, "vector": PAIRS, "layers": LAYERS, "factors": FACTORS, "control": st.booleans()},
        optional={"targets": TARGETS},
    ),
    "patch_activations": st.one_of(
        st.fixed_dictionaries(
            {"corrupted": CORRUPTIONS, "targets": ANSWER, "layers": LAYERS, "control": st.booleans()},
            optional={"heads": st.just("all"), "direction": st.just("noising")},
        ),
        st.fixed_dictionaries(
            {
                "corrupted": CORRUPTIONS,
                "targets": ANSWER,
                "cells": st.lists(st.sampled_from(["L0H1", "L1H0", "L2H3", "L3H2"]), min_size=1, unique=True),
                "complement": st.booleans(),
            }
        ),
    ).map(lambda given: {"clean": CLEAN, **given}),
    "attribute": st.fixed_dictionaries(
        {"prompts": PROMPTS, "targets": ANSWER},
        optional={"by": st.sampled_from(["head", "layer", "sublayer"])},
    ),
    "train_probe": GROUPS.map(lambda groups: {"prompts": groups, "folds": 2, "shuffles": 3}),
    "make_vector": GROUPS.map(
        lambda groups: {"name": "v", "method": "mean_difference", "positive": groups["a"], "negative": groups["b"]}
    ),
    "collect_activations": GROUPS.map(lambda groups: {"prompts": groups}),
}
CHECKS: dict[str, Callable[[str, Facts], None]] = {
    name: getattr(module, f"check_{name}")
    for module in (causes, directions, readouts)
    for name in CALLS
    if hasattr(module, f"check_{name}")
}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return make_bench(tmp_path_factory.mktemp("findings"))


def check(bench: Bench, tool: str, arguments: dict[str, Any]) -> None:
    """Runs a call as a worker does, and recomputes what its finding claims from the result as it is stored."""
    spec = import_module(f"nnterp_mcp.toolset.{tool}").SPEC
    params = spec.params.model_validate(spec.parse(arguments).model_dump(mode="json"))
    result = import_module(f"nnterp_mcp.toolset.{tool}.run").run(bench, params, Job(1, lambda progress: None))
    CHECKS[tool](spec.digest(result).finding, result.model_dump(mode="json"))


@pytest.mark.parametrize("tool", CALLS)
@pytest.mark.parametrize("count", [3, pytest.param(60, marks=pytest.mark.slow)])
def test_a_finding_follows_from_what_its_run_stored(bench: Bench, tool: str, count: int) -> None:
    @hypothesis.settings(max_examples=count, suppress_health_check=list(hypothesis.HealthCheck))
    @hypothesis.given(CALLS[tool])
    def holds(arguments: dict[str, Any]) -> None:
        check(bench, tool, arguments)

    holds()


@pytest.mark.parametrize("tool", CALLS)
def test_a_finding_of_another_run_is_noticed(bench: Bench, tool: str) -> None:
    """A check that accepts anything would prove nothing: numbers of a finding, one after the other, are changed."""
    arguments = hypothesis.find(CALLS[tool], lambda given: True)
    spec = import_module(f"nnterp_mcp.toolset.{tool}").SPEC
    params = spec.params.model_validate(spec.parse(arguments).model_dump(mode="json"))
    result = import_module(f"nnterp_mcp.toolset.{tool}.run").run(bench, params, Job(1, lambda progress: None))
    finding, facts = spec.digest(result).finding, result.model_dump(mode="json")
    noticed = 0
    for number in re.finditer(r"(?<![\w.\"])\d+(?:\.\d+)?", finding):
        other = f"{finding[: number.start()]}{float(number[0]) * 3 + 7:g}{finding[number.end() :]}"
        try:
            CHECKS[tool](other, facts)
        except (AssertionError, StopIteration, ValueError, KeyError):
            noticed += 1
    assert noticed, finding
