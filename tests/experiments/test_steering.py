"""Sweeps against plain transformers with plain hooks: distributions, divergences and every generated token."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from nnterp_mcp.engine.planning.plan import plan
from nnterp_mcp.engine.workload import ReportProgress, Workload
from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.experiments.steering import Dose, Sweep, doses_of, sweep
from nnterp_mcp.experiments.steering_vectors import random_direction
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.text.positions import resolve_positions
from nnterp_mcp.model.text.tokenization import EncodedPrompt, encode_prompts
from nnterp_mcp.request.operations import Operation, parse_operation
from nnterp_mcp.request.positions import PositionSpec, TextPosition
from tests.conftest import FAMILIES
from tests.experiments.test_logit_lens import TAILS

PROMPTS = ["The capital of France is", "Spain", "The capital of Spain is Madrid, and that of France is"]
FACTORS = (-2.0, 0.0, 0.5, 3.0)
LAYERS = (0, 2, -1)
TARGETS = {"early": [5, 70, 99], "one": [200]}


@dataclass
class Subject:
    """A model twice, with a direction for some of its layers."""

    family: str
    plain: Any
    model: StandardizedTransformer
    prompts: list[EncodedPrompt]
    directions: dict[int, Tensor]

    def sweep(self, prompts: Sequence[EncodedPrompt] | None = None, **options: Any) -> Sweep:
        factors = options.pop("factors", FACTORS)
        chosen = prompts or self.prompts
        planned = plan(self.model, options.pop("operations", ()), chosen)
        limits = {name: options.pop(name) for name in ("batch_tokens", "progress") if name in options}
        return sweep(self.model, Workload(chosen, planned, **limits), self.directions, factors, **options)

    def added(self, dose: Dose) -> Tensor:
        assert dose.layer is not None
        direction = self.directions[dose.layer]
        if dose.control is not None:
            norm = float(direction.norm())
            direction = random_direction(len(direction), norm, dose.control).vectors[0]
        return dose.factor * direction

    @torch.no_grad()
    def logits(self, ids: list[int], dose: Dose, at: Callable[[int], bool]) -> Tensor:
        """The logits after the last token, by a hook on one block of the plain model."""
        if dose.layer is None:
            return self.plain(torch.tensor([ids])).logits[0, -1]
        mask = torch.tensor([at(position) for position in range(len(ids))])[:, None]
        addition = mask * self.added(dose)

        def add(module: Any, inputs: Any, output: Any) -> Any:
            return (output[0] + addition, *output[1:]) if isinstance(output, tuple) else output + addition

        hook = TAILS[self.family][0](self.plain)[dose.layer].register_forward_hook(add)
        try:
            return self.plain(torch.tensor([ids]), use_cache=False).logits[0, -1]
        finally:
            hook.remove()


@pytest.fixture(
    scope="module", params=[*FAMILIES, pytest.param("smollm2-135m", marks=[pytest.mark.smollm2, pytest.mark.slow])]
)
def subject(request: pytest.FixtureRequest, tiny: Callable[..., Path]) -> Subject:
    family = request.param
    folder = tiny(family) if family in FAMILIES else request.getfixturevalue("smollm2_folder")
    plain, ours = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval() for _ in range(2))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = StandardizedTransformer(ours, tokenizer=tokenizer, name=family)
    generator = torch.Generator().manual_seed(3)
    size = 8.0 if family == "smollm2-135m" else 1.5
    directions = {
        layer % model.num_layers: size
        * torch.nn.functional.normalize(torch.randn(model.hidden_size, generator=generator), dim=0)
        for layer in LAYERS
    }
    return Subject(family, plain, model, encode_prompts(tokenizer, PROMPTS, family), directions)


def expected_probs(subject: Subject, found: Sweep, positions: Sequence[PositionSpec]) -> Tensor:
    rows: list[Tensor] = []
    for dose in found.doses:
        prompt = subject.prompts[dose.prompt]
        chosen = set(resolve_positions(positions, prompt))
        rows.append(subject.logits(prompt.ids, dose, chosen.__contains__))
    return torch.stack(rows).double().log_softmax(-1)


@pytest.mark.parametrize(
    "positions",
    [("all",), ("last",), ("-2:",), (TextPosition(text="a", occurrence=-1),)],
    ids=["all", "last", "two", "text"],
)
def test_distributions_are_those_of_plain_hooks(
    subject: Subject, positions: Sequence[PositionSpec], record_property: Callable[[str, object], None]
) -> None:
    prompts = subject.prompts if positions != ("-2:",) else [subject.prompts[0], subject.prompts[2]]
    found = subject.sweep(prompts, positions=positions, controls=1, top_k=20, targets=TARGETS)
    reference = expected_probs(subject, found, positions)
    probs = reference.exp()

    difference = (probs.gather(-1, found.readout.top_ids) - found.readout.top_probs).abs().max()
    record_property("largest difference", f"{subject.family} {positions}: {difference:.2e}")
    assert difference < 1e-5
    for index, ids in enumerate(TARGETS.values()):
        assert (probs[:, ids].sum(-1) - found.readout.target_probs[:, index]).abs().max() < 1e-5
    baselines = {dose.prompt: row for row, dose in enumerate(found.doses) if dose.layer is None}
    for row, dose in enumerate(found.doses):
        moved = (probs[row] * (reference[row] - reference[baselines[dose.prompt]])).sum()
        assert abs(float(found.kl[row] - moved)) < 1e-4 * max(1.0, float(moved))
    assert found.kl.max() > 0.01


@pytest.mark.parametrize("positions", [("all",), (-1,)], ids=["all", "one"])
def test_a_factor_of_zero_is_a_cell_that_shows_the_baseline(
    subject: Subject, positions: Sequence[PositionSpec]
) -> None:
    read: list[int] = []

    def report(done: int, total: int | None, unit: str) -> None:
        if unit == "runs read":
            read.append(done)

    found = subject.sweep(factors=(0.0, 1.0), positions=positions, controls=2, max_new_tokens=2, progress=report)
    baselines = {dose.prompt: row for row, dose in enumerate(found.doses) if dose.layer is None}
    zeros = [row for row, dose in enumerate(found.doses) if dose.layer is not None and dose.factor == 0]
    plain = [subject.logits(subject.prompts[found.doses[row].prompt].ids, Dose(0), lambda at: False) for row in zeros]

    assert len(zeros) == 3 * 3 * 3  # prompts, layers, and the vector with its controls
    assert read[-1] == len(found.doses) - len(zeros)
    probs = torch.stack(plain).softmax(-1)
    assert (probs.gather(-1, found.readout.top_ids[zeros]) - found.readout.top_probs[zeros]).abs().max() < 1e-5
    assert found.kl[zeros].max() == 0
    for row in zeros:
        dose = found.doses[row]
        assert (row in found.texts) == (dose.control != 1)
        assert found.texts.get(row, found.texts[baselines[dose.prompt]]) == found.texts[baselines[dose.prompt]]


def test_every_source_is_read_once(tiny: Callable[..., Path]) -> None:
    folder = tiny("llama")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = StandardizedTransformer(AutoModelForCausalLM.from_pretrained(folder), tokenizer=tokenizer, name="llama")
    prompts = encode_prompts(tokenizer, PROMPTS, "llama")
    source = tuple(encode_prompts(tokenizer, ["Rome"], "llama")[0].ids)
    read: Counter[tuple[int, ...]] = Counter()

    def count(module: Any, args: Any, kwargs: Any) -> None:
        for ids, mask in zip(kwargs["input_ids"].tolist(), kwargs["attention_mask"].tolist(), strict=True):
            read[tuple(token for token, real in zip(ids, mask, strict=True) if real)] += 1

    model.module.register_forward_pre_hook(count, with_kwargs=True)
    listed = [
        {"op": "mean", "site": "layers_output", "layers": 1, "positions": "last", "over": "all"},
        {
            "op": "patch",
            "site": "layers_output",
            "layers": 2,
            "positions": "last",
            "from": {"prompt": "Rome"},
            "prompts": [0, 2],
        },
    ]
    planned = plan(model, [parse_operation(one) for one in listed], prompts)
    sweep(model, Workload(prompts, planned), {0: torch.ones(model.hidden_size)}, (0.5, 1.0))

    assert read.pop(source) == 1
    # Once for the mean, once for the lengths of its states, and as the baseline and with either factor.
    assert read == {tuple(prompt.ids): 5 for prompt in prompts}


def test_a_vanishing_factor_changes_nothing(subject: Subject) -> None:
    found = subject.sweep(factors=(1e-30,))
    baselines = {dose.prompt: row for row, dose in enumerate(found.doses) if dose.layer is None}
    rows = [baselines[dose.prompt] for dose in found.doses]

    assert found.kl.max() < 1e-6
    assert (found.readout.top_probs - found.readout.top_probs[rows]).abs().max() < 1e-5


def test_each_prompt_alone_and_small_batches_give_the_same(subject: Subject) -> None:
    whole = subject.sweep(controls=1, top_k=4)
    told: list[tuple[int, int | None, str]] = []
    small = subject.sweep(controls=1, top_k=4, batch_tokens=40, progress=lambda *what: told.append(what))

    assert len(told) > 3
    runs = len({dose.run for dose in whole.doses})
    assert told[-1] == (runs, runs, "runs read")
    assert small.doses == whole.doses
    assert (small.readout.top_probs - whole.readout.top_probs).abs().max() < 1e-5
    assert (small.kl - whole.kl).abs().max() < 1e-4 * max(1.0, float(whole.kl.max()))
    for prompt in subject.prompts:
        rows = [row for row, dose in enumerate(whole.doses) if dose.prompt == prompt.index]
        alone = subject.sweep([prompt], controls=1, top_k=4)
        assert (alone.readout.top_probs - whole.readout.top_probs[rows]).abs().max() < 1e-5
        assert (alone.stream[0] - whole.stream[prompt.index]).abs().max() < 1e-2


@pytest.mark.parametrize(("positions", "onward"), [(("all",), True), (("last",), True), ((0,), False), ((-1,), False)])
def test_every_generated_token_is_that_of_plain_hooks(
    subject: Subject, positions: Sequence[PositionSpec], onward: bool
) -> None:
    count = 6
    found = subject.sweep(subject.prompts[:2], factors=(3.0,), positions=positions, controls=2, max_new_tokens=count)

    for row, ids in found.texts.items():
        dose = found.doses[row]
        prompt = subject.prompts[dose.prompt]
        new = range(len(prompt.ids), len(prompt.ids) + count) if onward else ()
        reached = {*resolve_positions(positions, prompt), *new}.__contains__
        said = list(prompt.ids)
        for token in ids:
            logits = subject.logits(said, dose, reached)
            # Where logits all but tie, either token is right.
            assert float(logits.max() - logits[token]) < 1e-3
            said.append(token)
        assert len(ids) <= count
    assert {found.doses[row].control for row in found.texts} == {None, 0}
    assert any(len(ids) == count for ids in found.texts.values())
    if subject.family == "smollm2-135m" and positions == ("all",):  # tiny random models say one thing all the time
        assert len({tuple(ids) for ids in found.texts.values()}) > 6


def test_other_interventions_are_in_force_in_every_run(subject: Subject) -> None:
    operations: list[Operation] = [
        parse_operation({"op": "skip", "layers": 2, "prompts": 2}),
        parse_operation({"op": "patch", "layers": 1, "positions": "last", "from": {"prompt": 1}, "prompts": [0]}),
    ]
    found = subject.sweep(positions=("last",), operations=operations, controls=1)
    plain = subject.sweep(positions=("last",), controls=1)
    one = {dose.prompt: row for row, dose in enumerate(found.doses) if dose.layer is None}

    assert len(found.labels) == 2
    changed = (found.readout.top_probs - plain.readout.top_probs).abs().amax(-1) > 1e-4
    assert changed[one[0]]
    assert not changed[one[1]]
    assert changed[one[2]]
    assert found.kl[list(one.values())].max() == 0
    rows = [row for row, dose in enumerate(found.doses) if dose.prompt == 0 and dose.layer == 0]
    assert found.kl[rows].max() < 1e-4  # what was added before the patch is patched over at the last position
    assert plain.kl[rows].max() > 1e-3


def test_what_is_wrong_is_told_of_prompts(subject: Subject) -> None:
    with pytest.raises(InvalidRequest, match="position 7 does not exist: prompt 1 has positions"):
        subject.sweep([subject.prompts[2], subject.prompts[1]], positions=(7,))
    with pytest.raises(InvalidRequest, match="prompt 3 does not exist"):
        subject.sweep(operations=[parse_operation({"op": "skip", "layers": 1, "prompts": 3})])


def test_what_a_batch_raises_ends_the_sweep(subject: Subject) -> None:
    class Enough(Exception):
        pass

    def stop_at(unit: str) -> ReportProgress:
        def stop(done: int, total: int | None, told: str) -> None:
            if told == unit:
                raise Enough

        return stop

    with pytest.raises(Enough):
        subject.sweep(progress=stop_at("runs read"))
    with pytest.raises(Enough):
        subject.sweep(factors=(1.0,), max_new_tokens=2, progress=stop_at("runs read and steps generated"))
    assert subject.sweep(factors=(1.0,)).kl.shape == (12,)


def test_doses_are_in_order() -> None:
    assert doses_of(4, [1, 2], [-1.0, 0.0], 1) == [
        Dose(4),
        Dose(4, 1, -1.0, None),
        Dose(4, 1, -1.0, 0),
        Dose(4, 1, 0.0, None),
        Dose(4, 1, 0.0, 0),
        Dose(4, 2, -1.0, None),
        Dose(4, 2, -1.0, 0),
        Dose(4, 2, 0.0, None),
        Dose(4, 2, 0.0, 0),
    ]
