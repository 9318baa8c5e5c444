"""Served models whose traces run in this process, after they went through nnsight's serialization."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import zstandard
from nnsight import TransformersModel
from nnsight.intervention.backends.local import LocalSimulationBackend
from nnsight.schema.request import RequestModel
from nnsight.tracing.backend import Backend
from nnsight.tracing.tracer import Tracer
from transformers import AutoModelForCausalLM, AutoTokenizer

from nnterp_mcp.engine.executors.ndif.client import Connection
from nnterp_mcp.engine.executors.ndif.experiments import EXPERIMENTS
from nnterp_mcp.engine.executors.ndif.meta_model import build_outline
from nnterp_mcp.engine.executors.ndif.model import ServedTransformer


@dataclass
class SimulatedConnection(Connection):
    """A connection that leads nowhere: traces run here, on a model with weights, through the same serialization.

    Attributes:
        counts: Add to `traffic` what would be sent and received, compressed.
    """

    counts: bool = False

    def backend(self) -> Backend:
        """nnsight's simulation."""
        return _Counting(self)


class _Counting(LocalSimulationBackend):
    def __init__(self, connection: SimulatedConnection) -> None:
        super().__init__(connection.model)
        self._connection = connection

    def __call__(self, tracer: Tracer) -> None:
        traffic = self._connection.traffic
        traffic.requests += 1
        if self._connection.counts:
            traffic.sent += len(RequestModel.serialize(tracer, compress=True))
        super().__call__(tracer)
        if self._connection.counts:
            local: dict[str, Any] = tracer.info.frame.f_locals  # pyright: ignore[reportOptionalMemberAccess]
            file = io.BytesIO()
            torch.save({name: local[name] for name in ("found", "said") if name in local}, file)
            traffic.received += len(zstandard.ZstdCompressor(level=3).compress(file.getvalue()))


def serve(folder: Path) -> ServedTransformer:
    """The outline of a model in a folder, served by nnsight's own simulation of NDIF."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    weights = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)
    wire = TransformersModel(weights, tokenizer=tokenizer, task="text-generation")
    connection = SimulatedConnection("simulated", folder.name, wire, "")
    return ServedTransformer(build_outline(weights.config, False), tokenizer, connection, EXPERIMENTS)
