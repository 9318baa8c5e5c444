"""Batches and generated text against plain transformers, at short lengths and beyond those that change a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import GenerationConfig

from nnterp_mcp.engine.forward import forward
from nnterp_mcp.engine.generation import Generation, end_ids, generate
from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.errors import Unsupported
from nnterp_mcp.model.loading.verdicts import TOLERANCES
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.structure.call_recorder import probe_ids
from nnterp_mcp.model.structure.context_lengths import Mark, is_affordable, lengths_of
from nnterp_mcp.model.text.tokenization import Batch, EncodedPrompt
from nnterp_mcp.verification.reference import DiffersError

NEW = 5
"""Tokens that are generated."""

_BEFORE = 2
"""Tokens by which a prompt ends before a length that its continuation goes beyond."""

_SHORT = 5

_USUAL, _LONG = 2 * _SHORT, 40
"""Lengths at which every model is tried; the longer one where its configuration names none."""


@dataclass
class LongTexts:
    """The measures of one model.

    Attributes:
        model: The model.
        everywhere: Whether to look at lengths that change nothing too.
    """

    model: StandardizedTransformer
    everywhere: bool = True
    _logits: dict[tuple[int, ...], Tensor] = field(default_factory=dict)
    _generated: dict[int, list[Generation]] = field(default_factory=dict)

    def lengths(self) -> str:
        """The last logits of prompts on both sides of each mark, read in one call, are those of each alone."""
        worst = 0.0
        for mark in self._marks():
            prompts = self._prompts(mark.length + 2, mark.length + 1, _SHORT, _SHORT + 1)

            def last(batch: Batch, numbers: Sequence[int]) -> Tensor:
                wanted = [(row, len(prompt.ids) - 1) for row, prompt in enumerate(batch.prompts)]
                logits = forward(self.model, batch, logits=wanted).logits
                assert logits is not None
                return logits

            read = Workload(prompts, batch_tokens=1 << 16).run(self.model, last)
            for prompt, found in zip(prompts, read, strict=True):
                worst = max(worst, self._apart(found, self._alone(prompt.ids), f"after {len(prompt.ids)} tokens"))
        return f"{self._said()}: prompts of one call as alone, to {worst:.1g}"

    def generation(self) -> str:
        """Each token that is generated has the log-probability that the text before it gives alone, and is its top."""
        worst = 0.0
        for prompt, said in self._texts():
            for at, (token, log_prob) in enumerate(zip(said.ids, said.log_probs, strict=True)):
                alone = self._alone([*prompt.ids, *said.ids[:at]]).log_softmax(-1)
                what = f"token {len(prompt.ids) + at}"
                worst = max(worst, self._apart(torch.tensor(log_prob), alone[token], what, alone))
                self._apart(alone[token], alone.max(), f"{what} against the most likely one", alone)
        return f"{self._said()}: as whole passes, to {worst:.1g}"

    def as_generate(self) -> str:
        """Compares with transformers' own `generate` on the same prompts, with its cache.

        Raises:
            Unsupported: It differs from transformers' own uncached passes, which `generation` was compared with.
        """
        worst = max((self._apart_from_generate(prompt, said) for prompt, said in self._texts()), default=0.0)
        if worst <= self._allowed:
            return f"{self._said()}: as generate(), to {worst:.1g}"
        raise Unsupported(f"transformers' generate() is apart from its own whole passes by {worst:.2g}")

    def _marks(self) -> list[Mark]:
        """A short length, and each at which the model changes."""
        most = (self.model.context or 1 << 62) + 1 - NEW
        marks = [mark for mark in lengths_of(self.model.module).below(most) if mark.length > 2 * _SHORT]
        rows = len(marks) * NEW
        affordable = [mark for mark in marks if is_affordable(self.model.module, rows * mark.length)]
        usual = [Mark("", length) for length in (_USUAL, *(() if affordable else (_LONG,))) if length <= most]
        return [*(usual if self.everywhere else ()), *affordable]

    def _said(self) -> str:
        marks = [str(mark) for mark in self._marks() if mark.name]
        return f"beyond {', '.join(marks)}" if marks else "no length changes it"

    def _prompts(self, *lengths: int) -> list[EncodedPrompt]:
        ids: list[int] = probe_ids(self.model.module, max(lengths) + len(lengths))[0].tolist()
        return [EncodedPrompt(row, "", ids[row : row + length], []) for row, length in enumerate(lengths)]

    def _texts(self) -> Iterator[tuple[EncodedPrompt, Generation]]:
        for mark in self._marks():
            prompts = self._prompts(mark.length - 1, mark.length - _BEFORE, _SHORT)
            if mark.length not in self._generated:
                self._generated[mark.length] = generate(self.model, Workload(prompts), max_new_tokens=NEW)
            yield from zip(prompts, self._generated[mark.length], strict=True)

    @torch.no_grad()
    def _alone(self, ids: list[int]) -> Float[Tensor, " vocabulary"]:
        if tuple(ids) not in self._logits:
            inputs = torch.tensor([ids], device=self.model.device)
            with self.model.standing_down():
                logits = self.model.module(input_ids=inputs, use_cache=False).logits
            self._logits[tuple(ids)] = logits[0, -1].float()
        return self._logits[tuple(ids)]

    @torch.no_grad()
    def _apart_from_generate(self, prompt: EncodedPrompt, said: Generation) -> float:
        """The largest difference of log-probabilities from `generate`, up to where its settings force another token."""
        model = self.model
        settings = GenerationConfig(
            max_new_tokens=NEW,
            do_sample=False,
            pad_token_id=model.pad_id,
            eos_token_id=sorted(end_ids(model)) or None,
            output_logits=True,
            return_dict_in_generate=True,
        )
        ids = torch.tensor([prompt.ids], device=model.device)
        with model.standing_down():
            found = model.module.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)  # pyright: ignore
        worst = 0.0
        steps = zip(said.ids, said.log_probs, found.sequences[0, len(prompt.ids) :], found.logits, strict=False)
        for token, log_prob, theirs, logits in steps:
            worst = max(worst, abs(float(logits[0].float().log_softmax(-1)[token]) - log_prob))
            if int(theirs) != token:
                break
        return worst

    @property
    def _allowed(self) -> float:
        return 10 * TOLERANCES.get(self.model.module.dtype, 1e-1)

    def _apart(self, found: Tensor, expected: Tensor, what: str, scale: Tensor | None = None) -> float:
        apart = float((found.float().cpu() - expected.float().cpu()).abs().max())
        largest = float((expected if scale is None else scale).abs().max())
        if not apart <= TOLERANCES.get(self.model.module.dtype, 1e-1) * max(largest, 1.0):
            raise DiffersError(f"{what} is apart from plain transformers by {apart:.2g}")
        return apart
