"""Models as a sum of senders and a loop over receivers, written out: each receiver gets its own residual stream."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.gpt_neox.modeling_gpt_neox import apply_rotary_pos_emb as partly_rotated
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

Stream = Tensor
"""(position, hidden)."""


@dataclass(frozen=True)
class Layer:
    """One layer's maps, of one prompt.

    Attributes:
        queries: From a stream to (head, position, width), behind the norm and with the positions' encoding.
        keys: The same, one for each query head.
        values: The same.
        scale: Of the scores.
        cap: The scores' softcap.
        project: From (head, position, width) to what each head writes, and what attention adds in all.
        mlp: From a stream to what the MLP adds.
        sequential: The MLP reads what attention wrote.
    """

    queries: Callable[[Stream], Tensor]
    keys: Callable[[Stream], Tensor]
    values: Callable[[Stream], Tensor]
    scale: float
    project: Callable[[Tensor], tuple[Tensor, Tensor]]
    mlp: Callable[[Stream], Stream]
    sequential: bool = True
    cap: float | None = None


@dataclass(frozen=True)
class WrittenOut:
    """A model of such layers."""

    embed: Callable[[Tensor], Stream]
    layers: list[Layer]
    logits: Callable[[Stream], Tensor]
    heads: int

    def run(
        self,
        ids: list[int],
        *,
        corrupted: Tensor | None = None,
        intact: Tensor | None = None,
        added: Tensor | None = None,
        entry: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The last token's logits, and what each sender writes: (sender, position, hidden).

        Args:
            corrupted: What each sender writes in another run.
            intact: (sender, receiver): where False, the receiver gets that in place of what the sender writes here.
            added: (receiver, position, hidden), added to what each receiver reads.
            entry: The embeddings, in place of those of the tokens.
        """
        stream = self.embed(torch.tensor(ids)) if entry is None else entry
        written = [stream]
        receiver = 0

        def read(now: Stream, before: int) -> Stream:
            nonlocal receiver
            own = now
            for sender in range(before):
                if intact is not None and not intact[sender, receiver]:
                    assert corrupted is not None
                    own = own - written[sender] + corrupted[sender]
            if added is not None:
                own = own + added[receiver]
            receiver += 1
            return own

        for layer in self.layers:
            before = len(written)
            made = [
                torch.stack([make(read(stream, before))[head] for head in range(self.heads)])
                for make in (layer.queries, layer.keys, layer.values)
            ]
            scores = made[0] @ made[1].transpose(1, 2) * layer.scale
            scores = scores if layer.cap is None else torch.tanh(scores / layer.cap) * layer.cap
            future = torch.ones(len(ids), len(ids), dtype=torch.bool).triu(1)
            pattern = scores.masked_fill(future, -torch.inf).softmax(-1)
            heads, whole = layer.project(pattern @ made[2])
            written += list(heads)
            middle = stream + whole
            mlp = layer.mlp(read(middle if layer.sequential else stream, len(written) if layer.sequential else before))
            written.append(mlp)
            stream = middle + mlp
        return self.logits(read(stream, len(written)))[-1], torch.stack(written)


def write_out(model: PreTrainedModel, length: int) -> WrittenOut:
    """Writes out a tiny Llama, Gemma 2, GPT-2 or GPT-NeoX."""
    return {"llama": _llama, "gemma2": _llama, "gpt2": _gpt2, "gpt_neox": _gpt_neox}[model.config.model_type](
        model, length
    )


def _by_head(states: Tensor, heads: int) -> Tensor:
    return states.unflatten(-1, (heads, -1)).transpose(0, 1)


def _project(weight: Tensor, bias: Tensor | None, heads: int) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """For a weight (in, out)."""

    def project(states: Tensor) -> tuple[Tensor, Tensor]:
        own = torch.einsum("hpw,hwo->hpo", states, weight.unflatten(0, (heads, -1)))
        return own, own.sum(0) + (0 if bias is None else bias)

    return project


def _llama(model: Any, length: int) -> WrittenOut:
    config, body = model.config, model.model
    heads, shared = config.num_attention_heads, config.num_attention_heads // config.num_key_value_heads
    gemma = config.model_type == "gemma2"
    cos, sin = body.rotary_emb(torch.zeros(1, length, config.hidden_size), torch.arange(length)[None])

    def turned(states: Tensor) -> Tensor:
        return apply_rotary_pos_emb(states[None], states[None], cos, sin)[0][0]

    def make(block: Any) -> Layer:
        attention, norm = block.self_attn, block.input_layernorm
        project = _project(attention.o_proj.weight.T, None, heads)

        def normed(states: Tensor) -> tuple[Tensor, Tensor]:
            own, whole = project(states)
            post = block.post_attention_layernorm
            scale = (1 + post.weight) * torch.rsqrt(whole.square().mean(-1, keepdim=True) + post.eps)
            return own * scale, post(whole)

        return Layer(
            queries=lambda stream: turned(_by_head(attention.q_proj(norm(stream)), heads)),
            keys=lambda stream: turned(
                _by_head(attention.k_proj(norm(stream)), heads // shared).repeat_interleave(shared, 0)
            ),
            values=lambda stream: _by_head(attention.v_proj(norm(stream)), heads // shared).repeat_interleave(
                shared, 0
            ),
            scale=attention.scaling,
            cap=config.attn_logit_softcapping if gemma else None,
            project=normed if gemma else project,
            mlp=(
                (lambda stream: block.post_feedforward_layernorm(block.mlp(block.pre_feedforward_layernorm(stream))))
                if gemma
                else (lambda stream: block.mlp(block.post_attention_layernorm(stream)))
            ),
        )

    def logits(stream: Tensor) -> Tensor:
        found = model.lm_head(body.norm(stream))
        cap = config.final_logit_softcapping if gemma else None
        return found if cap is None else torch.tanh(found / cap) * cap

    factor = config.hidden_size**0.5 if gemma else 1.0
    embed = body.embed_tokens.weight
    return WrittenOut(lambda ids: embed[ids] * factor, [make(block) for block in body.layers], logits, heads)


def _gpt2(model: Any, length: int) -> WrittenOut:
    config, body = model.config, model.transformer
    heads = config.num_attention_heads

    def make(block: Any) -> Layer:
        attention = block.attn

        def part(which: int) -> Callable[[Tensor], Tensor]:
            return lambda stream: _by_head(attention.c_attn(block.ln_1(stream)).chunk(3, -1)[which], heads)

        return Layer(
            part(0),
            part(1),
            part(2),
            (config.hidden_size // heads) ** -0.5,
            _project(attention.c_proj.weight, attention.c_proj.bias, heads),
            lambda stream: block.mlp(block.ln_2(stream)),
        )

    return WrittenOut(
        lambda ids: body.wte(ids) + body.wpe(torch.arange(length)),
        [make(block) for block in body.h],
        lambda stream: model.lm_head(body.ln_f(stream)),
        heads,
    )


def _gpt_neox(model: Any, length: int) -> WrittenOut:
    config, body = model.config, model.gpt_neox
    heads = config.num_attention_heads
    cos, sin = body.rotary_emb(torch.zeros(1, length, config.hidden_size), torch.arange(length)[None])

    def make(block: Any) -> Layer:
        attention = block.attention

        def part(which: int) -> Callable[[Tensor], Tensor]:
            def of(stream: Tensor) -> Tensor:
                made = _by_head(attention.query_key_value(block.input_layernorm(stream)), heads).chunk(3, -1)[which]
                return made if which == 2 else partly_rotated(made[None], made[None], cos, sin)[0][0]

            return of

        return Layer(
            part(0),
            part(1),
            part(2),
            attention.scaling,
            _project(attention.dense.weight.T, attention.dense.bias, heads),
            lambda stream: block.mlp(block.post_attention_layernorm(stream)),
            sequential=not config.use_parallel_residual,
        )

    return WrittenOut(
        body.embed_in,
        [make(block) for block in body.layers],
        lambda stream: model.lm_head(body.final_layer_norm(stream)),
        heads,
    )
