"""Our library."""

from __future__ import annotations

import shutil
import tempfile
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nnterp_mcp import Laboratory, Prompt, encode_prompts, parse_operation, patchscope_lens, plan, run_prompts
from nnterp_mcp.engine import workload
from nnterp_mcp.engine.branch_pass import Input
from nnterp_mcp.engine.forward import NOTHING, Plan
from nnterp_mcp.engine.generation import Generation, generate
from nnterp_mcp.experiments.attention_patterns import AttentionReadings, choose_heads, read_attention
from nnterp_mcp.experiments.attribution.gradients import multiply_gradients
from nnterp_mcp.experiments.logit_lens import LensReadings, read_lens
from nnterp_mcp.experiments.patching.activation_patching import Patcher, make_grid
from nnterp_mcp.experiments.patching.corruption import Pair
from nnterp_mcp.model.text.tokenization import EncodedPrompt
from nnterp_mcp.settings import Settings

from ..workloads import STEERING, Workload
from . import Numbers, Play, Stage
from .readings import TOP, answer_ids, describe, describe_probs


class Contestant(Stage):
    """Our library, on a model as `load_model` loads it."""

    @cached_property
    def laboratory(self) -> Laboratory:
        """The loaded model with its limits."""
        return self._load()

    @property
    def model(self) -> Any:
        """The standardized model."""
        return self.laboratory.bench.model

    def warm(self) -> None:
        """Loads and checks the model, which runs it."""
        assert self.laboratory.card.checks

    def lens(self, load: Workload) -> Play:
        """`read_lens`: top tokens, entropy and KL."""

        def work() -> LensReadings:
            prompts = self._encode(load)
            at = [range(len(prompt.ids)) if load.positions == "all" else [len(prompt.ids) - 1] for prompt in prompts]
            return read_lens(self.model, self._work(prompts), at, range(self.model.num_layers), top_k=TOP)

        def numbers(read: LensReadings) -> Numbers:
            return torch.cat([read.readout.top_probs, read.readout.entropy[..., None]], dim=-1).flatten().tolist()

        return Play(work, numbers)

    def patchscope(self, load: Workload) -> Play:
        """`patchscope_lens`: whole distributions."""
        return Play(lambda: patchscope_lens(self.model, load.prompts), describe_probs)

    def grid(self, load: Workload) -> Play:
        """`Patcher` over layers × positions."""

        def work() -> Tensor:
            clean, corrupted = self._encode(load)
            pairs = [Pair(Input(clean), Input(corrupted))]
            grid = make_grid(self.model, pairs, ["layers_output"])
            work = workload.Workload((), batch_tokens=self._batch_tokens)
            return Patcher(self.model, pairs, grid, metric="kl").patch(work=work).values[0]

        return Play(work, Tensor.tolist)

    def run_prompts(self, load: Workload) -> Play:
        """`run_prompts` with its default batches."""
        answer = answer_ids(self.model.tokenizer)

        def work() -> Tensor:
            prompts = [Prompt(prompt, {"answer": answer}) for prompt in load.prompts]
            return run_prompts(self.model, prompts, tqdm=None)["answer"][:, 0]

        return Play(work, Tensor.tolist)

    def steered_generation(self, load: Workload) -> Play:
        """`generate` with an operation in force."""
        add = parse_operation(
            {
                "op": "add",
                "site": "layers_output",
                "layers": self.model.num_layers // 2,
                "vector": {"positive": STEERING[0], "negative": STEERING[1]},
            }
        )

        def work() -> Generation:
            prompts = self._encode(load)
            edits = plan(self.model, [add], prompts)
            return generate(self.model, self._work(prompts, edits), max_new_tokens=load.new_tokens)[0]

        def numbers(said: Generation) -> Numbers:
            return [float(token) for token in said.ids] if self.exact else said.log_probs[:1]

        return Play(work, numbers)

    def attention(self, load: Workload) -> Play:
        """`read_attention` of all heads."""

        def work() -> AttentionReadings:
            chosen = choose_heads(self.model)
            return read_attention(self.model, self._work(self._encode(load)), chosen)

        def numbers(read: AttentionReadings) -> Numbers:
            return [*read.entropy[0].tolist(), *read.of("first")[0].tolist()]

        return Play(work, numbers)

    def attribution(self, load: Workload) -> Play:
        """`multiply_gradients`, of the log-probability."""
        targets = [[answer_ids(self.model.tokenizer)]]

        def work() -> Tensor:
            return multiply_gradients(self.model, self._work(self._encode(load)), targets, "log_probability")[0].values

        return Play(work, Tensor.tolist)

    def load(self, load: Workload) -> Play:
        """A laboratory: the load, the names and the checks."""
        return Play(self._load, lambda loaded: _say(loaded, load))

    def load_first(self, load: Workload) -> Play:
        """The same with an empty cache."""

        def work() -> tuple[Laboratory, Path]:
            cache = Path(tempfile.mkdtemp(prefix="bench-"))
            return self._load(cache=cache), cache

        return Play(work, lambda done: _say(done[0], load), lambda done: shutil.rmtree(done[1]))

    def _load(self, **settings: Any) -> Laboratory:
        return Laboratory(self.model_name, settings=Settings(**settings), device=self.device, dtype=self.dtype)

    @property
    def _batch_tokens(self) -> int:
        return self.laboratory.bench.batch_tokens

    def _work(self, prompts: list[EncodedPrompt], edits: Plan = NOTHING) -> workload.Workload:
        return workload.Workload(prompts, edits, self._batch_tokens)

    def _encode(self, load: Workload) -> list[EncodedPrompt]:
        return encode_prompts(self.model.tokenizer, load.prompts, self.model.name)


@torch.inference_mode()
def _say(loaded: Laboratory, load: Workload) -> Numbers:
    model = loaded.bench.model
    inputs = model.tokenizer(list(load.prompts), return_tensors="pt").to(model.device)
    return describe(model.module(**inputs).logits[:, -1])
