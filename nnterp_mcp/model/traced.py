"""Accessors for use in a trace, under names that are the same for every architecture."""

from __future__ import annotations

from typing import Any, cast

import torch
from jaxtyping import Float, Int
from nnsight.intervention.interleaver import Mediator
from torch import Tensor

from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.model.accessors import ModuleList, StateList, read_output
from nnterp_mcp.model.attention import AttentionProbabilities, HeadsOutput, HeadStates
from nnterp_mcp.model.traced_tensor import TracedTensor
from nnterp_mcp.model.unembedding import unembed
from nnterp_mcp.model.wrapped import WrappedModel


class TracedModel(WrappedModel):
    """A wrapped model with accessors for its hidden states, its attention, its logits and the traced batch."""

    _mask: Tensor | None = None

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
        """The input of each layer's attention module."""
        return StateList(self, "attention", "input")

    @property
    def attentions_output(self) -> StateList:
        """The output of each layer's attention module, as in nnterp: before a norm or multiplier that may follow it."""
        return StateList(self, "attention_raw", "output")

    @property
    def attentions_contribution(self) -> StateList:
        """Each layer's attention contribution to the residual stream: the site `attentions_output` of interventions."""
        return StateList(self, "attention_contribution", "output")

    @property
    def mlps(self) -> ModuleList:
        """Each layer's MLP module."""
        return ModuleList(self, "mlp")

    @property
    def mlps_input(self) -> StateList:
        """The input of each layer's MLP."""
        return StateList(self, "mlp", "input")

    @property
    def neurons(self) -> StateList:
        """The activations of each MLP's hidden layer, which its last linear map reads."""
        return StateList(self, "mlp_projection", "input")

    @property
    def mlps_output(self) -> StateList:
        """The output of each layer's MLP, as in nnterp: before a norm or multiplier that may follow it."""
        return StateList(self, "mlp_raw", "output")

    @property
    def mlps_contribution(self) -> StateList:
        """Each layer's MLP contribution to the residual stream: the site `mlps_output` of interventions."""
        return StateList(self, "mlp_contribution", "output")

    @property
    def attention_probabilities(self) -> AttentionProbabilities:
        """Each layer's attention probabilities, under eager attention."""
        return AttentionProbabilities(self)

    @property
    def queries(self) -> HeadStates:
        """Each head's queries as they enter the product with the keys."""
        return HeadStates(self, "queries")

    @property
    def keys(self) -> HeadStates:
        """Each head's keys as they enter the product with the queries."""
        return HeadStates(self, "keys")

    @property
    def values(self) -> HeadStates:
        """Each head's values as they are weighted."""
        return HeadStates(self, "values")

    @property
    def heads_output(self) -> HeadsOutput:
        """The input of each layer's output projection, head by head."""
        return HeadsOutput(self)

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
    def token_embeddings(self) -> Float[TracedTensor, "batch position hidden"]:
        """The embedded tokens, before anything is added to them."""
        site = self.anatomy.embed_tokens
        return cast("TracedTensor", read_output(self.envoy(site), site))

    @token_embeddings.setter
    def token_embeddings(self, value: Float[Tensor, "batch position hidden"]) -> None:
        self.embed_tokens.output = value

    @property
    def logits(self) -> Float[TracedTensor, "batch position vocabulary"]:
        """The model's logits."""
        return self.output.logits

    @logits.setter
    def logits(self, value: Float[Tensor, "batch position vocabulary"]) -> None:
        output = self.output
        output.logits = value
        self.output = output

    @property
    def next_token_probs(self) -> Float[TracedTensor, "batch vocabulary"]:
        """Probabilities of the token after the last one of each row, on whichever side it is padded."""
        logits = self.logits
        mask = self._mask
        if mask is None or mask.shape[1] != logits.shape[1] or bool(mask[:, -1].all()):
            return cast("TracedTensor", logits[:, -1].softmax(-1))
        rows = Mediator.current("next_token_probs").batch_group
        if rows is not None:
            mask = mask[rows[0] : rows[0] + rows[1]]
        last = mask.shape[1] - 1 - mask.flip(1).long().argmax(1)
        return cast("TracedTensor", logits[torch.arange(len(last)), last.to(logits.device)].softmax(-1))

    def _batch(self, invokes: list[Any], fn: Any) -> tuple[Any, Any]:
        args, kwargs = super()._batch(invokes, fn)
        self._mask = kwargs.get("attention_mask")
        return args, kwargs

    def project_on_vocab(self, hidden_state: Float[Tensor, "*rows hidden"]) -> Float[TracedTensor, "*rows vocabulary"]:
        """The logits that the model would give for hidden states after its last layer; exact.

        Inside a trace or outside of one. On the last layer's output it gives the model's logits; on an
        earlier layer's it is the logit lens, which reads states in a basis that the model only uses at its
        end.

        Args:
            hidden_state: States before the final norm, of any leading shape.

        Raises:
            InvalidRequest: The last dimension is not the hidden size.
        """
        self.require("lens")
        with self.standing_down():
            return cast("TracedTensor", unembed(self._module, self.anatomy, hidden_state, self.name))

    def get_topk_closest_tokens(
        self, hidden_state: Float[Tensor, "*row hidden"], k: int = 5
    ) -> dict[str, float] | list[dict[str, float]]:
        """The tokens that the model would most probably give for hidden states after its last layer.

        Args:
            hidden_state: One state, or one for each row.
            k: How many tokens.

        Returns:
            Tokens with their probabilities, the most probable first: one mapping, or one for each row.

        Raises:
            InvalidRequest: The states have more than two dimensions, or another width than the model.
        """
        if hidden_state.ndim not in (1, 2):
            raise InvalidRequest(
                f"hidden states of shape {tuple(hidden_state.shape)} came: give one of shape ({self.hidden_size},) "
                f"or several of shape (n, {self.hidden_size})."
            )
        found = self.project_on_vocab(hidden_state).softmax(-1).topk(k)
        if hidden_state.ndim == 1:
            return self.probs_to_dict(found.indices, found.values)
        return [self.probs_to_dict(*row) for row in zip(found.indices, found.values, strict=True)]

    def probs_to_dict(self, tokens: Int[Tensor, " k"], probs: Float[Tensor, " k"]) -> dict[str, float]:
        """Tokens, as the tokenizer writes them, with their probabilities."""
        names: list[str] = self.tokenizer.convert_ids_to_tokens(tokens.tolist())  # pyright: ignore
        return dict(zip(names, probs.tolist(), strict=True))
