"""nnterp, as its documentation says to use it; runs in an environment of its own."""
# pyright: reportMissingImports=false, reportUnknownMemberType=false

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from nnsight import save
from nnterp import StandardizedTransformer
from nnterp.interventions import logit_lens, patchscope_lens
from nnterp.prompt_utils import Prompt, run_prompts
from torch import Tensor

from ..workloads import STEERING, Workload
from . import Numbers, Play, Stage
from .readings import answer_ids, describe, describe_probs


class Contestant(Stage):
    """nnterp."""

    @cached_property
    def model(self) -> Any:
        """Under sdpa, except where attention is read."""
        return self._load()

    @cached_property
    def eager_model(self) -> Any:
        """The model that attention is read from."""
        return self._load(enable_attention_probs=True)

    def warm(self) -> None:
        """Runs a short prompt."""
        with torch.no_grad(), self.model.trace("a"):
            self.model.logits.save()

    def lens(self, load: Workload) -> Play:
        """`logit_lens`: whole distributions."""
        return Play(lambda: logit_lens(self.model, list(load.prompts)), describe_probs)

    def patchscope(self, load: Workload) -> Play:
        """`patchscope_lens`: whole distributions."""
        return Play(lambda: patchscope_lens(self.model, list(load.prompts)), describe_probs)

    def run_prompts(self, load: Workload) -> Play:
        """`run_prompts` with its default batches."""
        answer = answer_ids(self.model.tokenizer)

        def work() -> Tensor:
            prompts = [Prompt(prompt, {"answer": answer}) for prompt in load.prompts]
            with torch.no_grad():
                return run_prompts(self.model, prompts, tqdm=lambda batches, **options: batches)["answer"][:, 0]

        return Play(work, Tensor.tolist)

    def steered_generation(self, load: Workload) -> Play:
        """`steer` at every step."""
        model = self.model
        vector = _embed(model, STEERING[0]) - _embed(model, STEERING[1])

        def work() -> list[int]:
            (prompt,) = load.prompts
            with torch.no_grad(), model.generate(prompt, max_new_tokens=load.new_tokens, do_sample=False) as tracer:
                for _ in tracer.iter[: load.new_tokens]:
                    model.steer(layers=model.num_layers // 2, steering_vector=vector)
                said = model.generator.output.save()
            return said[0, len(model.tokenizer(prompt)["input_ids"]) :].tolist()

        return Play(work, lambda ids: [float(token) for token in ids])

    def attention(self, load: Workload) -> Play:
        """`attention_probabilities` of every layer; whole patterns."""
        model = self.eager_model

        def work() -> list[Tensor]:
            (prompt,) = load.prompts
            with torch.no_grad(), model.trace(prompt):
                patterns = save([model.attention_probabilities[layer] for layer in range(model.num_layers)])
            return patterns  # noqa: RET504 - the trace ends before

        def numbers(patterns: list[Tensor]) -> Numbers:
            reads = torch.cat(patterns)[:, :, 1:].double()
            entropy = torch.special.entr(reads).sum(-1).mean(-1)
            return [*entropy.flatten().tolist(), *reads[..., 0].mean(-1).flatten().tolist()]

        return Play(work, numbers)

    def load(self, load: Workload) -> Play:
        """The load, with the checks that it makes."""

        def numbers(model: Any) -> Numbers:
            with torch.no_grad(), model.trace(list(load.prompts)):
                logits = model.logits[:, -1].save()
            return describe(logits)

        return Play(self._load, numbers)

    def _load(self, **options: Any) -> Any:
        return StandardizedTransformer(self.folder, dtype=getattr(torch, self.dtype), device_map=self.device, **options)


def _embed(model: Any, token: str) -> Tensor:
    ids = model.tokenizer(token, add_special_tokens=False)["input_ids"]
    return model.embed_tokens.weight[ids].mean(0).detach()
