"""Sweeps of steering on a served model: each baseline stays beside the runs that are compared with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby

import torch
from jaxtyping import Float
from torch import Tensor

from nnterp_mcp.engine.executors.ndif.backend import (
    PASSES,
    Asked,
    batches_of,
    in_requests,
    logit_rows_at_once,
    next_pass,
    readout_of,
)
from nnterp_mcp.engine.executors.ndif.generation import generate_served
from nnterp_mcp.engine.executors.ndif.model import ServedTransformer
from nnterp_mcp.engine.forward import NOTHING, Plan
from nnterp_mcp.engine.interpreter import Data
from nnterp_mcp.engine.readouts.next_token import Categories, Readout
from nnterp_mcp.experiments.steering import (
    Dose,
    SteeredRuns,
    Sweep,
    doses_of,
    draw_directions,
    runs_of,
    speaks,
    spread_over_doses,
)
from nnterp_mcp.model.text.tokenization import EncodedPrompt
from nnterp_mcp.request.fields import PositionSpec


def sweep_served(
    model: ServedTransformer,
    prompts: Sequence[EncodedPrompt],
    directions: Mapping[int, Float[Tensor, " hidden"]],
    factors: Sequence[float],
    *,
    positions: Sequence[PositionSpec] = ("all",),
    plan: Plan = NOTHING,
    controls: int = 0,
    seed: int = 0,
    top_k: int = 3,
    targets: Mapping[str, Sequence[int]] | None = None,
    max_new_tokens: int = 0,
    batch_tokens: int = 4096,
    on_batch: Callable[[int], None] = lambda runs_done: None,
    on_token: Callable[[int], None] = lambda steps_done: None,
    offer: Callable[[Callable[[], Sweep]], None] = lambda so_far: None,
) -> Sweep:
    """`sweep.sweep` on a served model: every run is a row that is computed whole, and nothing is offered before all
    are."""
    layers = sorted(directions)
    doses = [dose for prompt in prompts for dose in doses_of(prompt.index, layers, factors, controls)]
    drawn = draw_directions(directions, controls, seed)
    needed = runs_of(doses)
    rows, steering = SteeredRuns(prompts, needed, drawn, positions, plan).as_prompts()
    sweeping = _Sweeping(model, needed, rows, steering, layers, top_k, list((targets or {}).values()), batch_tokens)
    readout, divergences, stream = sweeping.read(on_batch)
    speaking = [row for row, dose in enumerate(needed) if speaks(dose)]
    texts: dict[int, list[int]] = {}
    if max_new_tokens:
        said = generate_served(
            model,
            [rows[row] for row in speaking],
            steering,
            max_new_tokens=max_new_tokens,
            batch_tokens=batch_tokens,
            on_token=on_token,
        )
        texts = {generation.prompt: generation.ids for generation in said}
    return spread_over_doses(Sweep(needed, readout, divergences, stream, texts, plan.labels), doses)


class _Sweeping:
    """The passes of a sweep."""

    def __init__(
        self,
        model: ServedTransformer,
        doses: Sequence[Dose],
        rows: Sequence[EncodedPrompt],
        steering: Plan,
        layers: Sequence[int],
        top_k: int,
        categories: Sequence[Sequence[int]],
        batch_tokens: int,
    ) -> None:
        self._model = model
        self._doses = doses
        self._rows = rows
        self._steering = steering
        self._layers = layers
        self._top_k = top_k
        self._categories = list(categories)
        self._batch_tokens = batch_tokens

    def read(self, on_batch: Callable[[int], None]) -> tuple[Readout, Tensor, Tensor]:
        """What comes after each run, its KL from its baseline, and the lengths of each prompt's unsteered states."""
        groups = [self._group(list(runs)) for _, runs in groupby(range(len(self._doses)), self._prompt_of)]
        pieces = [piece for group in groups for piece in group]
        done = [sum(len(rows) for piece in pieces[: at + 1] for rows, _ in piece) for at in range(len(pieces))]
        found = in_requests(
            self._model, [[one for _, one in piece] for piece in pieces], lambda count: on_batch(done[count - 1])
        )
        parts: list[Readout] = []
        order: list[int] = []
        divergences: dict[int, Tensor] = {}
        lengths: dict[int, Tensor] = {}
        for piece, readings in zip(pieces, found, strict=True):
            for (rows, _), reading in zip(piece, readings, strict=True):
                new = [row for row in rows if row not in divergences]
                kept = [rows.index(row) for row in new]
                readout = readout_of(reading)
                parts.append(Readout(*(getattr(readout, name)[kept] for name in Readout.__dataclass_fields__)))
                order += new
                divergences |= zip(new, reading.get("kl", torch.zeros(len(rows)))[kept], strict=True)
                if "lengths" in reading:
                    lengths |= {self._prompt_of(row): one for row, one in zip(rows, reading["lengths"], strict=True)}
        kl = torch.stack([divergences[row] for row in range(len(self._doses))])
        prompts = dict.fromkeys(dose.prompt for dose in self._doses)
        return Readout.gather(parts, order, (len(order),)), kl, torch.stack([lengths[prompt] for prompt in prompts])

    def _prompt_of(self, row: int) -> int:
        return self._doses[row].prompt

    def _group(self, runs: Sequence[int]) -> list[list[tuple[list[int], Data]]]:
        """The passes of one prompt, in pieces of a request at most; each begins with the baseline."""
        baseline, *steered = runs
        batches = batches_of(
            self._model, [self._rows[row] for row in steered], self._batch_tokens, logit_rows_at_once(self._model)
        )
        batch_rows = [[prompt.index for prompt in batch.prompts] for batch in batches]
        size = PASSES - 1
        starts = range(0, max(1, len(batch_rows)), size)
        return [
            [self._pass([baseline], first=True), *(self._pass(rows) for rows in batch_rows[at : at + size])]
            for at in starts
        ]

    def _pass(self, rows: list[int], first: bool = False) -> tuple[list[int], Data]:
        (batch,) = batches_of(self._model, [self._rows[row] for row in rows], 1 << 62)
        rows = [prompt.index for prompt in batch.prompts]
        asked = Asked(self._top_k, Categories.of([self._categories] * len(rows), self._model.device))
        name = [self._prompt_of(rows[0])]
        return rows, next_pass(
            self._model,
            batch,
            self._steering,
            asked,
            lengths=self._layers if first else (),
            baselines=name if first else (),
            against=() if first else name * len(rows),
        )
