"""A model that NDIF serves, under the standard names: everything but its weights is known here."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from nnsight import TransformersModel
from torch import Tensor

from nnterp_mcp.engine.executors.ndif.client import Connection
from nnterp_mcp.engine.executors.ndif.meta_model import find_patterns, without_numbers
from nnterp_mcp.engine.executors.ndif.refusals import not_offered
from nnterp_mcp.engine.hook_points import Place
from nnterp_mcp.engine.kv_cache import cache_name
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.traced_tensor import TracedTensor


class ServedTransformer(StandardizedTransformer):
    """The outline of a served model, and the way to it.

    Nothing runs on the outline: an experiment goes through `remote_calls`, and a trace is refused.

    Attributes:
        connection: The way to the model.
        remote_calls: What is sent, by the name of the local function.
        patterns: Which element of what a layer's attention returns is its probabilities.
        cache_name: The name of the argument by which it takes cached keys and values there; None where it takes none.
        dtype_served: The dtype of its logits there.
    """

    connection: Connection
    remote_calls: Mapping[str, Callable[..., Any]]
    patterns: dict[int, int]
    cache_name: str | None
    dtype_served: torch.dtype = torch.float32

    def __init__(self, outline: Any, tokenizer: Any, connection: Connection, remote_calls: Mapping[str, Any]) -> None:
        with without_numbers():
            super().__init__(outline, check_renaming=False, tokenizer=tokenizer, name=connection.name)
        self.connection = connection
        self.remote_calls = remote_calls
        self.cache_name = cache_name(self.module)
        self.token_rows: dict[tuple[str, int], Tensor] = {}
        self.head_rows: dict[int, tuple[Tensor, Tensor]] = {}
        cores = {layer.index: layer.core.module for layer in self.anatomy.layers if layer.core is not None}
        self.patterns = find_patterns(self.module, cores, {i: self.anatomy.layers[i].num_heads for i in cores})

    @property
    def device(self) -> torch.device:
        """Where inputs are made and results are read: here."""
        return torch.device("cpu")

    @property
    def computing_on(self) -> tuple[str, str]:
        """NDIF, and where."""
        return "ndif", self.connection.host

    @property
    def computing_dtype(self) -> torch.dtype:
        """The data type in which the service computes."""
        return self.dtype_served

    @property
    def held_bytes(self) -> int:
        """Bytes of the weights, there."""
        return sum(parameter.numel() for parameter in self.module.parameters()) * self.dtype_served.itemsize

    @property
    def fingerprint(self) -> str:
        """Identifies a served model; served weights are not hashed."""
        return hashlib.sha256(f"ndif {self.connection.key}".encode()).hexdigest()[:16]

    @contextmanager
    def stopping(self, check: Callable[[], None], tell: Callable[[str], None]) -> Generator[None]:
        """While in force, requests are asked whether to go on while they wait, and what the service says is told."""
        connection = self.connection
        before = connection.check, connection.say
        connection.check, connection.say = check, tell
        try:
            yield
        finally:
            connection.check, connection.say = before

    @property
    def head(self) -> list[str]:
        """The modules that make logits of the last layer's states, where nothing else lies between."""
        sites = (self.anatomy.ln_final, self.anatomy.lm_head)
        return [site.path for site in sites if site is not None] if self.anatomy.head_is_direct else []

    @property
    def last_output(self) -> Place:
        """The output of the last layer."""
        return Place("layers_output", self.anatomy.last.index)

    @property
    def takes_positions(self) -> bool:
        """True where its forward pass takes position ids."""
        return "position_ids" in inspect.signature(self.module.forward).parameters

    @property
    def attention(self) -> str:
        """How the served model attends in the requests of this one."""
        return str(self.connection.model.attn_implementation)

    def use_attention(self, implementation: str) -> None:
        """Asks for another way in the requests from now on."""
        self.connection.model._module.set_attn_implementation("eager" if implementation == "eager" else "sdpa")

    def width_at(self, place: Place) -> int:
        """The width of a state at a place; of one head where there are heads."""
        if place.site == "neurons" and place.layer is not None:
            return self.anatomy.layers[place.layer].num_neurons
        if place.site != "heads_output" or place.layer is None:
            return self.hidden_size
        facts = self.anatomy.layers[place.layer]
        projection: Any = None if facts.output_projection is None else facts.output_projection.module
        weight = getattr(projection, "weight", None)
        if not isinstance(weight, Tensor):
            raise not_offered(self.name, f"{place}: the width of a head there is not known here")
        inner = weight.shape[1] if isinstance(projection, torch.nn.Linear) else weight.shape[0]
        return inner // facts.num_heads

    def project_on_vocab(self, hidden_state: Tensor) -> TracedTensor:
        """Refused: the head is not here."""
        raise not_offered(self.name, "such pass")

    def trace(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: nothing runs on an outline."""
        raise not_offered(self.name, "such pass")

    def session(self, *args: Any, **kwargs: Any) -> Any:
        """Refused likewise."""
        raise not_offered(self.name, "such pass")


def wrap_for_wire(source: str, tokenizer: Any, revision: str | None, code: bool) -> TransformersModel:
    """nnsight's own wrapper, whose modules stand for the served ones in a request."""
    options: dict[str, Any] = {"trust_remote_code": True} if code else {}
    return TransformersModel(source, tokenizer=tokenizer, revision=revision, task="text-generation", **options)
