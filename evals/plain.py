"""The model as plain transformers gives it, read and edited by plain PyTorch hooks, one prompt at a time in float32.

What is right in this eval is computed here and in `evals.questions`, by other means than those of the tools that are
asked about: no padding, no batches, no nnsight, nothing of `nnterp_mcp`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

Prompt = str | Sequence[int]
"""A text, or the ids of its tokens."""


@dataclass(frozen=True)
class Place:
    """Where states can be read and changed: what goes into a module, or what comes out of it.

    Attributes:
        module: The module.
        before: Whether its input is meant.
    """

    module: nn.Module
    before: bool = False


Edits = dict[Place, Callable[[Tensor], Tensor]]
"""What becomes of the states (position, width) at places."""


@dataclass(frozen=True)
class Plain:
    """A Llama in plain transformers.

    Attributes:
        model: The model, with eager attention.
        tokenizer: Its tokenizer.
    """

    model: Any
    tokenizer: Any

    @classmethod
    def load(cls, folder: Path) -> Plain:
        """Reads a model's folder with transformers alone."""
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
        return cls(model.eval().requires_grad_(False), AutoTokenizer.from_pretrained(folder))

    @property
    def depth(self) -> int:
        """How many layers there are."""
        return self.model.config.num_hidden_layers

    @property
    def heads(self) -> int:
        """How many heads a layer has."""
        return self.model.config.num_attention_heads

    def layer(self, index: int) -> Place:
        """The residual stream after a layer."""
        return Place(self.model.model.layers[index])

    def attention(self, index: int) -> Place:
        """What a layer's attention writes."""
        return Place(self.model.model.layers[index].self_attn)

    def mlp(self, index: int) -> Place:
        """What a layer's MLP writes."""
        return Place(self.model.model.layers[index].mlp)

    def mixed(self, index: int) -> Place:
        """What a layer's heads give, side by side, before the output projection."""
        return Place(self.model.model.layers[index].self_attn.o_proj, before=True)

    @property
    def embedding(self) -> Float[Tensor, "token width"]:
        """The token embeddings."""
        return self.model.get_input_embeddings().weight

    def columns(self, head: int) -> slice:
        """Where a head is in `mixed`."""
        width = self.model.config.head_dim or self.model.config.hidden_size // self.heads
        return slice(head * width, (head + 1) * width)

    def ids(self, prompt: Prompt) -> list[int]:
        """The tokens of a prompt, as the tokenizer begins and ends a text by itself."""
        return list(self.tokenizer(prompt)["input_ids"]) if isinstance(prompt, str) else list(prompt)

    def token(self, text: str) -> int:
        """The id of a text that is one token."""
        (token,) = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return token

    def text(self, token: int | Tensor) -> str:
        """The text of a token."""
        return self.tokenizer.decode([int(token)])

    @torch.no_grad()
    def logits(self, prompt: Prompt, edits: Edits | None = None) -> Float[Tensor, "position token"]:
        """The logits at every position, edits made."""
        with hooked(edits or {}):
            return self.model(torch.tensor([self.ids(prompt)]), use_cache=False).logits[0]

    def log_probs(self, prompt: Prompt, edits: Edits | None = None) -> Float[Tensor, " token"]:
        """Of the token after the prompt, in nats and double precision."""
        return self.logits(prompt, edits)[-1].double().log_softmax(-1)

    def read(self, prompt: Prompt, places: Sequence[Place], edits: Edits | None = None) -> list[Tensor]:
        """The states (position, width) at places, edits elsewhere made."""
        found: dict[Place, Tensor] = {}

        def keep(place: Place) -> Callable[[Tensor], Tensor]:
            def kept(states: Tensor) -> Tensor:
                found[place] = states.clone()
                return states

            return kept

        self.logits(prompt, (edits or {}) | {place: keep(place) for place in places})
        return [found[place] for place in places]

    @torch.no_grad()
    def patterns(self, prompt: Prompt) -> Float[Tensor, "layer head query key"]:
        """The attention probabilities."""
        output = self.model(torch.tensor([self.ids(prompt)]), use_cache=False, output_attentions=True)
        return torch.cat(output.attentions)

    @torch.no_grad()
    def lens(self, states: Float[Tensor, "state width"]) -> Float[Tensor, "state token"]:
        """Log-probabilities of the next token where the model ends at these states, in nats and double precision."""
        return self.model.lm_head(self.model.model.norm(states)).double().log_softmax(-1)

    @torch.no_grad()
    def write(self, prompt: Prompt, count: int, edits: Edits | None = None) -> list[int]:
        """So many tokens more, each the most likely, the whole text run anew for each with edits made."""
        ids = self.ids(prompt)
        for _ in range(count):
            ids.append(int(self.logits(ids, edits)[-1].argmax()))
        return ids[-count:]


def divergence(one: Float[Tensor, "*states token"], other: Float[Tensor, "*states token"]) -> Float[Tensor, "*states"]:
    """KL(one || other) of log-probabilities, in nats."""
    return (one.exp() * (one - other)).sum(-1)


@contextmanager
def hooked(edits: Edits) -> Generator[None]:
    """Makes edits in every forward pass inside."""
    with ExitStack() as stack:
        for place, change in edits.items():
            hook = place.module.register_forward_pre_hook if place.before else place.module.register_forward_hook
            stack.callback(hook(_before(change) if place.before else _after(change)).remove)
        yield


def _before(change: Callable[[Tensor], Tensor]) -> Any:
    def hook(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (change(args[0][0])[None], *args[1:])

    return hook


def _after(change: Callable[[Tensor], Tensor]) -> Any:
    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        if isinstance(output, Tensor):
            return change(output[0])[None]
        return (change(output[0][0])[None], *output[1:])

    return hook
