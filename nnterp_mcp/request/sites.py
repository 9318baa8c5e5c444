"""Sites: where in a layer states are read and changed, and what the engine and the tools must know of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Site = Literal[
    "token_embeddings",
    "layers_input",
    "queries",
    "keys",
    "values",
    "attention_probabilities",
    "heads_output",
    "attentions_raw_output",
    "attentions_output",
    "mlps_input",
    "neurons",
    "mlps_raw_output",
    "mlps_output",
    "layers_output",
]
"""Where an operation acts, in the order in which a layer runs.

`token_embeddings` (no layer) is what the embedding returns; `heads_output` is what each head hands to the output
projection; `mlps_input` is what the MLP module reads, behind the norm before it, and `neurons` are the activations of
its hidden layer (gated where there is a gate), which its last linear map reads; `attentions_output` and `mlps_output`
are what is added to the residual stream, and the raw outputs what the modules compute before a norm or a multiplier
behind them, where there is one. Queries and keys are taken as they enter their product, after norms and rotary
embedding.
"""

SITES: tuple[Site, ...] = get_args(Site)


@dataclass(frozen=True)
class SiteFacts:
    """The properties of a site in every model that has it.

    Attributes:
        by_head: It has heads to choose.
        heads_first: Its states are (batch, head, position, width); others have the position before the head.
        whole_sequence: It holds every token so far, those from a cache of keys and values included.
        grows: Its states have another shape, or lie in other columns, at every step of a generation.
        in_stream: Its states are as wide as the residual stream.
        patched: `patch_activations` patches it.
        receives: Paths of `patch_activations` can end there.
    """

    by_head: bool = False
    heads_first: bool = False
    whole_sequence: bool = False
    grows: bool = False
    in_stream: bool = False
    patched: bool = True
    receives: bool = False


FACTS: dict[Site, SiteFacts] = {
    "token_embeddings": SiteFacts(patched=False),
    "layers_input": SiteFacts(in_stream=True),
    "queries": SiteFacts(by_head=True, heads_first=True, receives=True),
    "keys": SiteFacts(by_head=True, heads_first=True, whole_sequence=True, grows=True, receives=True),
    "values": SiteFacts(by_head=True, heads_first=True, whole_sequence=True, grows=True, receives=True),
    "attention_probabilities": SiteFacts(by_head=True, heads_first=True, grows=True, patched=False),
    "heads_output": SiteFacts(by_head=True, receives=True),
    "attentions_raw_output": SiteFacts(in_stream=True),
    "attentions_output": SiteFacts(in_stream=True, receives=True),
    "mlps_input": SiteFacts(in_stream=True, patched=False),
    "neurons": SiteFacts(patched=False),
    "mlps_raw_output": SiteFacts(in_stream=True),
    "mlps_output": SiteFacts(in_stream=True, receives=True),
    "layers_output": SiteFacts(in_stream=True),
}
"""The facts of every site."""

HEAD_SITES = frozenset(site for site, facts in FACTS.items() if facts.by_head)
"""Where there are heads to choose."""
