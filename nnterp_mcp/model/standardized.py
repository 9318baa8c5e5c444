"""Any Hugging Face causal LM under one set of names, on nnsight."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

import torch
from jaxtyping import Float, Int
from nnsight import TransformersModel
from nnsight.intervention.envoy import Envoy
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from nnterp_mcp.errors import InvalidRequest, Unsupported
from nnterp_mcp.model.accessors import ModuleList, StateList
from nnterp_mcp.model.anatomy import Anatomy, Site
from nnterp_mcp.model.attention import AttentionProbabilities, watch
from nnterp_mcp.model.implementation import current_attention, probe_eagerly, switch_attention
from nnterp_mcp.model.resolve import resolve
from nnterp_mcp.model.vocabulary import project


class StandardizedTransformer(TransformersModel):
    """A causal LM whose parts have the same names whatever its architecture.

    `embed_tokens`, `layers[i].self_attn`, `layers[i].mlp`, `ln_final` and `lm_head` are the modules;
    `layers_output[i]` and its like read and assign hidden states in a trace.

    Args:
        model: A Hub id, a local folder, or a loaded Hugging Face causal LM.
        tokenizer: Its tokenizer; loaded from where the model came from by default.
        name: What errors and cards call the model; by default its id, or its class.
        enable_attention_probs: Start with eager attention, under which probabilities can be read and edited.
        trust_remote_code: Run modelling code that comes with the weights.
        **kwargs: Passed to `from_pretrained`.
    """

    def __init__(
        self,
        model: str | nn.Module,
        tokenizer: PreTrainedTokenizerBase | None = None,
        name: str | None = None,
        enable_attention_probs: bool = False,
        trust_remote_code: bool = False,
        **kwargs: Any,
    ) -> None:
        if isinstance(model, str | Path):
            source = str(model)
            name = name or source
            kwargs.setdefault("device_map", "auto")
            model = AutoModelForCausalLM.from_pretrained(source, trust_remote_code=trust_remote_code, **kwargs)
            tokenizer = tokenizer or AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
        assert isinstance(model, nn.Module)
        model.eval()
        self.name = name or getattr(model, "name_or_path", "") or type(model).__name__
        self.anatomy: Anatomy = resolve(model, probe_eagerly(model))
        super().__init__(model, tokenizer=tokenizer, task="text-generation")
        self._refusals: dict[str, str] = {}
        self._bind_names()
        for layer in self.anatomy.layers:
            if layer.core is not None and layer.product is not None:
                watch(layer.core.module, self.envoy(layer.core).path, self.interleaver)
        if enable_attention_probs:
            self.set_attention("eager")

    def _bind_names(self) -> None:
        anatomy = self.anatomy
        roots = {
            "embed_tokens": anatomy.embed_tokens,
            "layers": anatomy.layers_module,
            "ln_final": anatomy.ln_final,
            "lm_head": anatomy.lm_head,
        }
        for alias, site in roots.items():
            self._bind(self, alias, site)
        for layer in anatomy.layers:
            block = self.envoy(layer.block)
            self._bind(block, "self_attn", layer.attention)
            self._bind(block, "mlp", layer.mlp)

    def _bind(self, host: Envoy, alias: str, site: Site | None) -> None:
        if site is None:
            return
        target = self.envoy(site)
        if host.__dict__.get(alias) is target:
            return
        object.__setattr__(host, alias, target)
        host._aliases[alias] = target.path.removeprefix(f"{host.path}.")

    def envoy(self, site: Site) -> Envoy:
        """The nnsight wrapper of a module of the anatomy."""
        return self.interleaver.envoys[id(site.module)]

    @property
    def num_layers(self) -> int:
        """Number of layers."""
        return self.anatomy.num_layers

    @property
    def num_heads(self) -> int:
        """Number of (query) attention heads of a layer; the largest where layers differ."""
        return self.anatomy.num_heads

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream."""
        return self.anatomy.hidden_size

    @property
    def vocab_size(self) -> int:
        """Number of logits at each position."""
        return self.anatomy.vocab_size

    @property
    def layers_input(self) -> StateList:
        """The residual stream before each layer."""
        return StateList(self, "block", "input")

    @property
    def layers_output(self) -> StateList:
        """The residual stream after each layer."""
        return StateList(self, "block", "output")

    @property
    def attentions(self) -> ModuleList:
        """Each layer's attention module."""
        return ModuleList(self, "attention")

    @property
    def attentions_input(self) -> StateList:
        """What each layer's attention reads."""
        return StateList(self, "attention", "input")

    @property
    def attentions_output(self) -> StateList:
        """What each layer's attention adds to the residual stream."""
        return StateList(self, "attention_contribution", "output")

    @property
    def mlps(self) -> ModuleList:
        """Each layer's MLP module."""
        return ModuleList(self, "mlp")

    @property
    def mlps_input(self) -> StateList:
        """What each layer's MLP reads."""
        return StateList(self, "mlp", "input")

    @property
    def mlps_output(self) -> StateList:
        """What each layer's MLP adds to the residual stream."""
        return StateList(self, "mlp_contribution", "output")

    @property
    def attention_probabilities(self) -> AttentionProbabilities:
        """Each layer's attention probabilities, under eager attention."""
        return AttentionProbabilities(self)

    @property
    def input_ids(self) -> Int[Tensor, "batch position"]:
        """The token ids of the traced batch."""
        return self.inputs[1]["input_ids"]

    @property
    def input_size(self) -> torch.Size:
        """Rows and positions of the traced batch."""
        return self.input_ids.shape

    @property
    def attention_mask(self) -> Int[Tensor, "batch position"]:
        """1 where the traced batch has a token, 0 where it is padding."""
        return self.inputs[1]["attention_mask"]

    @property
    def token_embeddings(self) -> Float[Tensor, "batch position hidden"]:
        """The embedded tokens, before anything is added to them."""
        return self.embed_tokens.output

    @token_embeddings.setter
    def token_embeddings(self, value: Float[Tensor, "batch position hidden"]) -> None:
        self.embed_tokens.output = value

    @property
    def logits(self) -> Float[Tensor, "batch position vocabulary"]:
        """The model's logits."""
        return self.output.logits

    @property
    def next_token_probs(self) -> Float[Tensor, "batch vocabulary"]:
        """Probabilities of the token after the last position; assumes padding on the left."""
        return self.logits[:, -1, :].softmax(-1)

    def project_on_vocab(self, hidden: Float[Tensor, "*rows hidden"]) -> Float[Tensor, "*rows vocabulary"]:
        """The logits that the model would give for hidden states after its last layer; exact.

        Inside a trace or outside of one. On the last layer's output it gives the model's logits; on an
        earlier layer's it is the logit lens, which reads states in a basis that the model only uses at its
        end.

        Args:
            hidden: States before the final norm, of any leading shape.

        Raises:
            InvalidRequest: The last dimension is not the hidden size.
        """
        with self.standing_down():
            return project(self._module, self.anatomy, hidden, self.name)

    @contextmanager
    def standing_down(self) -> Generator[None]:
        """While this lasts, modules run unobserved: nothing in a trace sees or counts their calls."""
        was = self.interleaver.interleaving
        self.interleaver.interleaving = False
        try:
            yield
        finally:
            self.interleaver.interleaving = was

    def set_attention(self, implementation: Literal["eager", "sdpa"]) -> None:
        """Switch how attention is computed, on the loaded weights.

        Args:
            implementation: `eager` forms the probabilities, so that they can be read and edited; `sdpa` is
                the fused kernel.

        Raises:
            InvalidRequest: Another name came.
            Unsupported: The architecture has no such path.
        """
        if implementation not in ("eager", "sdpa"):
            raise InvalidRequest(f"attention {implementation!r} does not exist: choose eager or sdpa.")
        switch_attention(self.module, implementation)

    def require(self, capability: str) -> None:
        """Refuse what the checks at load found not to work.

        Args:
            capability: What the caller is about to rely on: `lens`, `batch`, `attention`, `attention_edit`,
                ….

        Raises:
            Unsupported: The check failed; with its reason.
        """
        reason = self._refusals.get(capability)
        if reason is not None:
            raise Unsupported(reason)

    def refuse(self, reasons: dict[str, str]) -> None:
        """Set what `require` refuses from now on: each capability with its reason."""
        self._refusals = dict(reasons)

    def can(self, capability: str) -> bool:
        """Whether `require` would let this capability pass."""
        return capability not in self._refusals

    @property
    def context(self) -> int | None:
        """Tokens that the model reads at most, None where its configuration sets no bound."""
        config = self.module.config.get_text_config(decoder=True)
        bounds = [getattr(config, name, None) for name in ("max_position_embeddings", "n_positions", "max_seq_len")]
        return next((bound for bound in bounds if isinstance(bound, int) and bound > 0), None)

    @property
    def pad_id(self) -> int:
        """The token that masked positions hold."""
        pad = getattr(self.tokenizer, "pad_token_id", None)
        return 0 if pad is None else int(pad)

    @property
    def attention(self) -> str:
        """How attention is computed now: `eager`, `sdpa` or another implementation of transformers."""
        return current_attention(self.module)

    @property
    def device(self) -> torch.device:
        """Where the model takes its inputs."""
        return self.module.device

    @property
    def module(self) -> PreTrainedModel:
        """The Hugging Face model itself."""
        return cast("PreTrainedModel", self._module)
