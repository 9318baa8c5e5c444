"""TransformerLens, by its bridge to transformers; runs in an environment of its own."""
# pyright: reportMissingImports=false

from __future__ import annotations

from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoTokenizer

from ..workloads import REPEAT_PROMPT, Workload
from . import Numbers, Play, Stage
from .readings import answer_ids, describe, describe_probs

_ROWS = 32
"""Prompts in a batch."""


class Contestant(Stage):
    """TransformerLens."""

    @cached_property
    def model(self) -> Any:
        """The bridge."""
        return self._load()

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer as the model's files have it; the bridge's own writes a token before each text."""
        tokenizer: Any = AutoTokenizer.from_pretrained(self.folder, padding_side="left")
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer

    def warm(self) -> None:
        """Runs a short prompt."""
        self._run(["a"])

    def lens(self, load: Workload) -> Play:
        """A cache of the residual streams, then final norm and unembedding."""
        return Play(lambda: self._project(self._read(load.prompts)).softmax(-1), describe_probs)

    def patchscope(self, load: Workload) -> Play:
        """A run for each layer, with a row for each source."""

        @torch.inference_mode()
        def work() -> Tensor:
            states = self._read(load.prompts)
            target = [REPEAT_PROMPT] * len(load.prompts)
            layers = range(self.model.cfg.n_layers)
            hooks = [(_name(layer), partial(_put, state=states[:, layer])) for layer in layers]
            return torch.stack([self._run(target, fwd_hooks=[hook])[:, -1] for hook in hooks], dim=1)

        return Play(work, describe)

    def run_prompts(self, load: Workload) -> Play:
        """Batches of prompts in the order in which they come."""
        answer = answer_ids(self.tokenizer)

        @torch.inference_mode()
        def work() -> Tensor:
            starts = range(0, len(load.prompts), _ROWS)
            logits = torch.cat([self._run(load.prompts[start : start + _ROWS])[:, -1] for start in starts])
            return logits.softmax(-1)[:, answer].sum(-1).cpu()

        return Play(work, Tensor.tolist)

    def load(self, load: Workload) -> Play:
        """The load of the bridge."""

        @torch.inference_mode()
        def numbers(model: Any) -> Numbers:
            return describe(model(model.to_tokens(list(load.prompts), prepend_bos=False))[:, -1])

        return Play(self._load, numbers)

    def _load(self) -> Any:
        return TransformerBridge.boot_transformers(self.folder, device=self.device, dtype=getattr(torch, self.dtype))

    @torch.inference_mode()
    def _read(self, prompts: Any) -> Tensor:
        """The residual stream after each layer at the last position, (prompt, layer, hidden)."""
        names = [_name(layer) for layer in range(self.model.cfg.n_layers)]
        inputs = self._encode(prompts)
        _, cache = self.model.run_with_cache(inputs.pop("input"), names_filter=lambda name: name in names, **inputs)
        return torch.stack([cache[name][:, -1] for name in names], dim=1)

    @torch.inference_mode()
    def _project(self, states: Tensor) -> Tensor:
        return self.model.unembed(self.model.ln_final(states))

    @torch.inference_mode()
    def _run(self, prompts: Any, **hooks: Any) -> Tensor:
        inputs = self._encode(prompts)
        return self.model.run_with_hooks(inputs.pop("input"), **inputs, **hooks)

    def _encode(self, prompts: Any) -> dict[str, Any]:
        encoding = self.tokenizer(list(prompts), return_tensors="pt", padding=True)
        mask = encoding["attention_mask"]
        return {"input": encoding["input_ids"].to(self.device), "attention_mask": mask.to(self.device)}


def _name(layer: int) -> str:
    return f"blocks.{layer}.hook_resid_post"


def _put(states: Tensor, hook: Any, state: Tensor) -> Tensor:
    states[:, -1] = state
    return states
