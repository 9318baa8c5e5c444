"""The card of a vector, and its place among the vectors of a model."""

from __future__ import annotations

from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING

from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.experiments.steering_vectors import Directions
from nnterp_mcp.request.vectors import ReadTokens, VectorCard
from nnterp_mcp.toolset.make_vector.params import MakeVectorParams

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nnterp_mcp.worker.workbench import Bench

_PACKAGES = ("nnterp-mcp", "torch", "transformers", "nnsight")


def save_vector(
    bench: Bench,
    params: MakeVectorParams,
    made: Directions,
    reading: ReadTokens | None,
    *,
    layers: Sequence[int] | None = None,
    classes: Sequence[str] = (),
) -> tuple[VectorCard, VectorCard | None]:
    """Saves directions under the call's name.

    Args:
        bench: The model and its vectors.
        params: The call.
        made: The directions.
        reading: The tokens that they were made from.
        layers: The layers of subspaces, which share the directions out evenly; by default those of the directions.
        classes: The two groups that they tell apart.

    Returns:
        Its card, and that of the vector that it replaces.

    Raises:
        InvalidRequest: A number is not finite.
    """
    if not bool(made.norms.isfinite().all()):
        raise InvalidRequest(
            f"the vector {params.name} has numbers beyond what float32 holds.", "Give a smaller norm, or none."
        )
    apart = made.separation
    card = VectorCard(
        name=params.name,
        model=bench.handle,
        identity=bench.identity,
        method=params.method,
        layers=list(made.layers if layers is None else layers),
        dimensions=1 if layers is None else len(made.vectors) // len(layers),
        norms=made.norms.tolist(),
        reading=reading,
        classes=list(classes),
        held_out=[] if apart is None or not bool(apart.held_out.isfinite().all()) else apart.held_out.tolist(),
        request=params.model_dump(mode="json", exclude={"model", "plot"}, exclude_defaults=True),
        versions={package: version(package) for package in _PACKAGES},
        made=datetime.now(UTC).isoformat(timespec="milliseconds"),
    )
    return card, bench.vectors.save(card, made.vectors.numpy())
