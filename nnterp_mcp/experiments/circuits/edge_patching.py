"""Edge patching: runs in which any set of edges carries what its senders wrote in a corrupted run."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nnterp_mcp.cancellation import check_cancelled
from nnterp_mcp.engine.branch_pass import Input
from nnterp_mcp.engine.executors.execution import execute, last_column
from nnterp_mcp.engine.forward import attention_for
from nnterp_mcp.engine.observation import ids_of, observe
from nnterp_mcp.engine.readouts.metrics import Metric, MetricName, make_metric
from nnterp_mcp.errors import InvalidRequest, Unsupported
from nnterp_mcp.experiments.circuits.edge_graph import EdgeGraph
from nnterp_mcp.experiments.circuits.split_pass import OperatedPass, PatchedPass, SplitPass
from nnterp_mcp.experiments.patching.corruption import Pair
from nnterp_mcp.model.loading.verdicts import TOLERANCES
from nnterp_mcp.model.memory import is_out_of_memory

_ROW_TOKENS = 8192
"""Tokens in the rows of a layer that run together, about."""


@dataclass(frozen=True, eq=False)
class EdgePatcher:
    """Patches edges in the clean run of one pair.

    Attributes:
        graph: The graph.
        given: The clean input.
        metric: The metric after its last token.
        clean: What each sender writes in the clean run.
        corrupted: What each writes in the corrupted run.
        clean_value: The metric of the clean run.
        corrupted_value: That of the corrupted run.
    """

    graph: EdgeGraph
    given: Input
    metric: Metric
    clean: Float[Tensor, "sender position hidden"]
    corrupted: Float[Tensor, "sender position hidden"]
    clean_value: float
    corrupted_value: float

    @property
    def copies(self) -> int:
        """About as many runs as fit one pass; one where the model multiplies what a sublayer wrote, row by row."""
        facts = [self.graph.model.anatomy.layers[layer.index] for layer in self.graph.layers]
        written = (site for layer in facts for site in (layer.attention_contribution, layer.mlp_contribution))
        if any(site is not None and site.factor != 1 for site in written):
            return 1
        rows = max(3 * layer.heads + 2 for layer in self.graph.layers)
        return max(1, _ROW_TOKENS // (rows * len(self.given)))

    @torch.inference_mode()
    def run(self, intact: Bool[Tensor, "circuit sender receiver"]) -> Float[Tensor, " circuit"]:
        """The metric of the clean run with every edge outside a circuit patched, once for each circuit.

        A receiver reads what its intact edges carry in this very run, and of its patched edges what they carry in the
        corrupted run. With every edge intact this is the clean run, with none the corrupted one.

        Args:
            intact: The edges of each circuit.

        Returns:
            The metrics, on the CPU.

        Source: Hanna et al., "Have Faith in Faithfulness" (2024).
        """
        values: list[Tensor] = []
        for chosen in intact.split(self.copies):
            check_cancelled()
            entry = self.clean[:1].expand(len(chosen), -1, -1)
            patched = (self.graph.exists & ~chosen).to(self.clean)
            visitor = PatchedPass(self.graph, entry, self.corrupted, patched)
            values.append(self.metric(run_split(self.graph, self.given, visitor)).cpu())
        return torch.cat(values)

    def patch_edges(self, edges: Sequence[tuple[int, int]]) -> Float[Tensor, " edge"]:
        """By how much patching each of some edges, given as sender and receiver, moves the metric."""
        intact = self.graph.exists.repeat(len(edges), 1, 1)
        for at, (sender, receiver) in enumerate(edges):
            intact[at, sender, receiver] = False
        return self.run(intact) - self.clean_value


@torch.inference_mode()
def make_edge_patcher(
    graph: EdgeGraph, pair: Pair, metric: MetricName, targets: Sequence[Sequence[int]]
) -> EdgePatcher:
    """Runs both inputs of a pair once, and keeps what each sender writes.

    Args:
        graph: The graph.
        pair: Two prompts of equal length.
        metric: The metric.
        targets: Token ids: of the answer, then of the wrong answer.

    Raises:
        InvalidRequest: The prompts are not equally long, or the metric needs other targets.
        Unsupported: States are ablated or noised, or what heads and MLPs write does not add up to the residual stream,
            as under operations on the stream itself.
    """
    corrupted = pair.corrupted
    if corrupted is None or any(given.noise is not None for given in (pair.clean, corrupted)):
        raise Unsupported(
            "edges are patched between a clean and a corrupted prompt, without noise.",
            'Give corrupted prompts, {"replace": …, "with": …} or {"ablate": "resample"}.',
        )
    if pair.clean.plan.needs or corrupted.plan.needs:
        raise Unsupported("edges are not patched under skip or edits of features.", "Leave out these operations.")
    if len(pair.clean) != len(corrupted):
        raise InvalidRequest(
            f"pair {pair.index} has {len(pair.clean)} tokens in its clean prompt and {len(corrupted)} in its corrupted "
            "one: tokens do not correspond.",
            "Make them equally long (tokenize shows tokens).",
        )
    clean_written, clean_logits = _written(graph, pair.clean)
    written, logits = _written(graph, corrupted)
    measure = make_metric(metric, targets, clean_logits[0])
    return EdgePatcher(
        graph,
        pair.clean,
        measure,
        clean_written,
        written,
        float(measure(clean_logits)),
        float(measure(logits)),
    )


def _written(graph: EdgeGraph, given: Input) -> tuple[Float[Tensor, "sender position hidden"], Tensor]:
    """The writes of each sender in an unpatched run, and its logits."""
    seen = observe(graph.model, given, [graph.entry, graph.end])
    visitor = PatchedPass(graph, seen.states[graph.entry][None].float())
    try:
        logits = run_split(graph, given, visitor)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise Unsupported(
            f"the code of {graph.model.name} does not run its layers with one row for each receiver ({error}): its "
            "edges cannot be told apart.",
            "Patch activations instead.",
        ) from error
    written = visitor.written[0]
    end = seen.states[graph.end].float()
    missing = end - written.sum(0)
    # Biases are in no head: what is missing has to be the same at every position.
    apart = float((missing - missing[:1]).abs().max())
    allowed = 10 * TOLERANCES.get(graph.model.module.dtype, 1e-1)
    if apart > allowed * float(end.abs().max()) or not torch.allclose(
        logits[0].cpu(), seen.logits.float().cpu(), rtol=allowed, atol=allowed * float(seen.logits.abs().max())
    ):
        raise Unsupported(
            f"what the heads and MLPs of {graph.model.name} write does not add up to its residual stream (it is off by "
            f"{apart:.2g}): its edges cannot be told apart.",
            "Patch activations instead.",
        )
    return written, logits


def run_split(graph: EdgeGraph, given: Input, visitor: SplitPass) -> Float[Tensor, "copy vocabulary"]:
    """The logits after the last token of each copy."""
    inputs: dict[str, object] = {"input_ids": ids_of(graph.model, given), "use_cache": False}
    if "logits_to_keep" in inspect.signature(graph.model.module.forward).parameters:
        inputs["logits_to_keep"] = 1
    with attention_for(graph.model, given.plan):
        logits = execute(graph.model, inputs, OperatedPass(visitor, given) if given.plan else visitor, last_column)
    assert logits is not None
    return logits
