"""Text written by a served model: many steps in one request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from nnterp_mcp.cancellation import check_cancelled
from nnterp_mcp.engine.executors.ndif.model import ServedTransformer
from nnterp_mcp.engine.executors.ndif.traces import write_tokens
from nnterp_mcp.engine.executors.ndif.wire_format import steps_of
from nnterp_mcp.engine.forward import Plan
from nnterp_mcp.engine.generation import Generation, end_ids
from nnterp_mcp.engine.interpreter import Data
from nnterp_mcp.engine.readouts.numerics import require_finite
from nnterp_mcp.engine.sampling import GREEDY, Sampling
from nnterp_mcp.engine.token_spans import Window
from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.model.structure.context_lengths import lengths_of
from nnterp_mcp.model.text.tokenization import Batch

_TOKENS = 32
"""Steps in one request; the next one reads what is written so far again, once."""


def generate_served(
    model: ServedTransformer,
    work: Workload,
    *,
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
) -> list[Generation]:
    """`generation.generate` on a served model; cached keys and values stay there for the length of a request."""
    model.require("causal")
    found: dict[int, Generation] = {}
    work, done = replace(work, new_tokens=max_new_tokens), 0
    groups = work.split(model)
    for numbers in groups:
        text = _Text(model, work.batch(model, numbers), work.plan, sampling, max_new_tokens)
        while len(text.tokens) < max_new_tokens and not text.ended:
            check_cancelled()
            before = len(text.tokens)
            text.go_on(min(_TOKENS, max_new_tokens - before))
            done += len(text.tokens) - before
            work.progress(done, max_new_tokens * len(groups), "steps")
        found |= zip(numbers, text.generations(), strict=True)
    return [found[number] for number in range(len(work.prompts))]


class _Text:
    """The tokens generated so far for a batch of prompts.

    Attributes:
        tokens: The tokens of each step, a row each.
    """

    def __init__(self, model: ServedTransformer, batch: Batch, plan: Plan, sampling: Sampling, new_tokens: int) -> None:
        self.tokens: list[Tensor] = []
        self._log_probs: list[Tensor] = []
        self._model = model
        self._batch = batch
        self._plan = plan
        self._sampling = sampling
        self._dice = [sampling.dice(prompt.ids) for prompt in batch.prompts]
        longest, kind = batch.inputs["input_ids"].shape[1], lengths_of(model.module).kind
        self._cached = model.cache_name is not None and kind(longest) == kind(longest + new_tokens)
        self._ends = torch.tensor(sorted(end_ids(model)), dtype=torch.long)

    @property
    def ended(self) -> bool:
        """True once every row has ended."""
        return bool(self._ended().all())

    def _ended(self) -> Tensor:
        if not self.tokens:
            return torch.zeros(len(self._batch.prompts), dtype=torch.bool)
        return torch.isin(torch.stack(self.tokens), self._ends).any(0)

    def go_on(self, count: int) -> None:
        """Writes at most so many more tokens, in one request."""
        ids, mask = self._batch.inputs["input_ids"], self._batch.inputs["attention_mask"]
        if self.tokens:
            ids = torch.cat([ids, torch.stack(self.tokens, dim=1).to(ids)], dim=1)
            mask = torch.cat([mask, mask.new_ones(len(mask), len(self.tokens))], dim=1)
        windows = [self._window(ids.shape[1], step) for step in range(count)]
        columns = [torch.full((len(ids),), window.length - window.first - 1) for window in windows]
        rows = torch.arange(len(ids))
        steps = [
            steps_of(self._model, window, self._plan, end=(rows, at))
            for window, at in zip(windows, columns, strict=True)
        ]
        drawn = None
        if self._sampling.temperature:
            drawn = torch.stack([self._sampling.draw(self._dice) for _ in range(count)])
        written = write_tokens(self._model.connection, ids, mask, steps, self._options(rows, columns, drawn))
        log_probs = [step["log_probs"] for step in written]
        require_finite(torch.stack(log_probs), "logits")
        self.tokens += [step["tokens"] for step in written]
        self._log_probs += log_probs

    def _window(self, known: int, step: int) -> Window:
        """The columns that a step of a request computes, which begins with so many known ones."""
        length = known + step
        first = length - 1 if step and self._cached else 0
        return Window(self._batch.prompts, self._batch.padding, first, length)

    def _options(self, rows: Tensor, columns: Sequence[Tensor], drawn: Tensor | None) -> Data:
        model = self._model
        ends = [{"head": model.head, "rows": rows, "columns": at} for at in columns]
        return {
            "head": model.head,
            "ends_of_passes": ends,
            "temperature": self._sampling.temperature,
            "top_p": self._sampling.top_p,
            "top_k": self._sampling.top_k,
            "draws": drawn,
            "ends": self._ends,
            "ended": self._ended(),
            "cached": self._cached,
            "cache_name": model.cache_name,
            "positions": model.takes_positions,
        }

    def generations(self) -> list[Generation]:
        """Each row up to its end."""
        return [self._generation(row, prompt.index) for row, prompt in enumerate(self._batch.prompts)]

    def _generation(self, row: int, prompt: int) -> Generation:
        text = Generation(prompt)
        for tokens, log_probs in zip(self.tokens, self._log_probs, strict=True):
            text.ids.append(int(tokens[row]))
            text.log_probs.append(float(log_probs[row]))
            if text.ids[-1] in self._ends:
                return replace(text, ended=True)
        return text
