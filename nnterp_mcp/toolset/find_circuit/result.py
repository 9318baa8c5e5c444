"""Result and answer of `find_circuit`."""

from __future__ import annotations

from pydantic import Field

from nnterp_mcp.contract import Measured, ProfiledAnswer, Result, ResultPart

ENOUGH = 0.8
"""The faithfulness at which a circuit counts as large enough, where the call names no size."""


class CircuitEdge(ResultPart):
    """An edge of the circuit.

    Attributes:
        sender: The component that writes: embeddings, L5H3, MLP 5.
        receiver: The input that reads: L7H1 queries, MLP 7, logits.
        score: The estimated change of the metric if the edge carried what it carries in the corrupted run.
        effect: The change that the patch made; None of edges that were not patched one by one.
    """

    sender: str
    receiver: str
    score: float
    effect: float | None = None


class CircuitSize(ResultPart):
    """Circuits of one size.

    Attributes:
        edges: The circuit's edges.
        share: Their share of all.
        faithfulness: The circuit's: 0 where it does what the corrupted runs do, 1 where it does what the clean runs do.
        randoms: That of each random circuit of as many edges.
    """

    edges: int
    share: float
    faithfulness: Measured
    randoms: list[float]


class CircuitPart(ResultPart):
    """A head or an MLP of the circuit.

    Attributes:
        layer: Its layer.
        head: The head; None for an MLP.
        edges: The edges of the circuit that it sends along.
        score: The sum of their scores' sizes.
    """

    layer: int
    head: int | None
    edges: int
    score: float


class FindCircuitResult(Result):
    """A circuit, and the faithfulness of circuits of several sizes.

    Attributes:
        model: The model's handle.
        metric: The metric.
        corruption: The origin of the corrupted runs, in words.
        in_force: The interventions.
        texts: The first clean prompt and its corrupted one.
        scored: The clean prompts on which edges were scored.
        measured: Those on which circuits were measured; the same where there are fewer than 4.
        steps: The points at which slopes were taken.
        total: The edges of the whole graph.
        clean: The metric of the clean runs that were measured.
        corrupted: That of the corrupted ones.
        categories: The target tokens of the first prompt, by category.
        shared: The tokens that categories share, under `a and b`.
        curve: Circuits by size, the circuit itself among them.
        under: The area under the curve of faithfulness by share of edges (CPR); None where there is no curve.
        from_one: The area between the curve and 1 (CMD).
        circuit: The place of the circuit in the curve; None where faithfulness is not defined.
        edges: Its edges, the largest score first.
        parts: Its heads and MLPs, the largest sum of scores first.
        agreement: The share of the edges patched one by one whose effect has the sign that was estimated.
        pearson: The correlation of scores and effects over these; None where there are too few.
        sizes_left: The sizes that are not measured, of a call that ended early.
    """

    model: str
    metric: str
    corruption: str
    in_force: list[str] = Field(default_factory=list[str])
    texts: list[str]
    scored: list[int]
    measured: list[int]
    steps: int
    total: int
    clean: Measured
    corrupted: Measured
    categories: dict[str, list[str]]
    shared: dict[str, list[str]]
    curve: list[CircuitSize]
    under: float | None
    from_one: float | None
    circuit: int | None
    edges: list[CircuitEdge]
    parts: list[CircuitPart]
    agreement: float
    pearson: float | None
    sizes_left: int = 0

    @property
    def chosen(self) -> CircuitSize | None:
        """The circuit's faithfulness."""
        return None if self.circuit is None else self.curve[self.circuit]


class FindCircuitAnswer(ProfiledAnswer):
    """The strongest edges, the faithfulness by size, and the circuit's parts.

    Attributes:
        cells: Its strongest heads and MLPs, as `cells` of patch_activations and `claim` of verify_claim take them.
    """

    cells: list[str]

    def body(self) -> list[str]:
        """The tables, then the heads and MLPs."""
        return [*super().body(), f"cells: {', '.join(self.cells) or 'none'}"]
