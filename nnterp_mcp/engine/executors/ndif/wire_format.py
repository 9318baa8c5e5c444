"""From places, plans and windows to the plain data that is sent with a trace."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nnterp_mcp.engine.edits import (
    Added,
    AddedByEntry,
    Averaged,
    Edit,
    EditOfRuns,
    PassedOn,
    Patched,
    Projected,
    Scaled,
    StateEdit,
    require_width,
)
from nnterp_mcp.engine.executors.ndif.kernels import Data, pick, pick_all
from nnterp_mcp.engine.forward import NOTHING, Plan
from nnterp_mcp.engine.hook_points import Place, in_order
from nnterp_mcp.engine.token_spans import Selection, Window
from nnterp_mcp.errors import Unsupported
from nnterp_mcp.model.structure.anatomy import Site
from nnterp_mcp.request.selectors import resolve_indices

if TYPE_CHECKING:
    from nnterp_mcp.engine.executors.ndif.model import ServedTransformer

SERVED_SITES = (
    "token_embeddings",
    "layers_input",
    "attentions_raw_output",
    "attentions_output",
    "heads_output",
    "mlps_raw_output",
    "mlps_output",
    "layers_output",
)
"""Sites that a served model can be edited at: what its modules take and return."""

Keep = tuple[str, Callable[[Tensor, Data], Any], Data]
"""The name under which a step keeps what a function makes of its state."""


@dataclass
class Way:
    """The way of one pass: what is edited and kept at each place.

    Attributes:
        model: The model.
        edits: The plain edits at each place.
        keeps: What is kept at each place, after the edits.
    """

    model: ServedTransformer
    edits: dict[Place, list[Data]] = field(default_factory=dict)
    keeps: dict[Place, list[Keep]] = field(default_factory=dict)

    def keep(self, place: Place, name: str, function: Callable[[Tensor, Data], Any], options: Data) -> None:
        """Keeps something at a place."""
        self.keeps.setdefault(place, []).append((name, function, options))

    def edit(self, place: Place, edit: Data) -> None:
        """Makes an edit at a place, after those that are there."""
        self.edits.setdefault(place, []).append(edit)

    def follow(self, plan: Plan, window: Window) -> None:
        """Makes the edits of a plan.

        Raises:
            InvalidRequest: A vector or a neuron does not fit.
            Unsupported: A served model cannot be edited so; by name.
        """
        for place in plan.needs:
            self.keep(place, _name(place), pick_all, {})
        for place, edits in plan.edits.items():
            for edit in edits:
                plain = _plain(self.model, edit, window)
                if plain is not None:
                    self.edit(place, plain)

    def steps(self) -> list[Data]:
        """The steps, in the order in which the model runs."""
        return [
            {
                "spot": spot_of(self.model, place),
                "edits": self.edits.get(place, []),
                "keeps": self.keeps.get(place, []),
            }
            for place in in_order([*self.edits, *self.keeps])
        ]


def steps_of(
    model: ServedTransformer, window: Window, plan: Plan = NOTHING, end: tuple[Tensor, Tensor] | None = None
) -> list[Data]:
    """The steps of a pass with a plan in force, and with the states kept from which logits are made.

    Args:
        model: The model.
        window: The columns that are computed.
        plan: The operations.
        end: Rows and columns at which logits are wanted.
    """
    way = Way(model)
    way.follow(plan, window)
    keep_end(way, end)
    return way.steps()


def keep_end(way: Way, end: tuple[Tensor, Tensor] | None) -> None:
    """Keeps the states of which the head makes logits."""
    if end is not None and way.model.head:
        rows, columns = end
        way.keep(Place("layers_output", way.model.anatomy.last.index), "end", pick, {"rows": rows, "columns": columns})


def spot_of(model: ServedTransformer, place: Place) -> Data:
    """Where a place is."""
    if place.layer is None:
        return _output(model.anatomy.embed_tokens)
    facts = model.anatomy.layers[place.layer]
    if place.site == "layers_input":
        return {"path": facts.block.path, "side": "input", "item": facts.block.entry, "heads": 0}
    if place.site == "heads_output" and facts.output_projection is not None:
        path, entry = facts.output_projection.path, facts.output_projection.entry
        return {"path": path, "side": "input", "item": entry, "heads": facts.num_heads}
    if place.site == "attention_probabilities" and facts.core is not None:
        return {"path": facts.core.path, "side": "output", "item": model.patterns[place.layer], "heads": 0}
    site = {
        "layers_output": facts.block,
        "attentions_raw_output": facts.attention_raw,
        "attentions_output": facts.attention_contribution,
        "mlps_raw_output": facts.mlp_raw,
        "mlps_output": facts.mlp_contribution,
    }.get(place.site)
    if site is None or site.factor != 1:
        raise Unsupported(f"the {place} of {model.name} cannot be reached on NDIF", _LOCALLY)
    return _output(site)


_LOCALLY = "Load the model with backend 'local' for it."


def _output(site: Site) -> Data:
    return {"path": site.path, "side": "output", "item": site.exit, "heads": 0}


def _name(place: Place) -> str:
    return f"state {place}"


def _plain(model: ServedTransformer, edit: Edit, window: Window) -> Data | None:
    """An edit as plain data; None where it reaches nothing in the window."""
    if isinstance(edit, EditOfRuns):
        return _plain(model, edit.edit, window.of_owners(edit.owners))
    if not isinstance(edit, StateEdit) or edit.place.site not in SERVED_SITES:
        raise Unsupported(
            f"an intervention at {edit.place.site} cannot be sent to NDIF: those that can are at "
            f"{', '.join(SERVED_SITES)}.",
            _LOCALLY,
        )
    chosen = window.select(edit.reach, window.length - window.first)
    if not chosen.entries:
        return None
    neurons = None
    if edit.neurons is not None:
        neurons = resolve_indices(edit.neurons, model.width_at(edit.place), "neuron", f"a state at {edit.place}")
    plain: Data = {
        "rows": torch.tensor(chosen.rows),
        "columns": torch.tensor(chosen.columns),
        "heads": None if edit.heads is None else list(edit.heads),
        "neurons": neurons,
        "value": None,
    }
    return plain | _change(model, edit.change, chosen)


def _change(model: ServedTransformer, change: Any, chosen: Selection) -> Data:
    if isinstance(change, Scaled):
        return {"op": "scale", "value": change.factor}
    if isinstance(change, Added | Projected):
        require_width(change.vector, model.width_at(change.place), change.label, change.place)
        return {"op": "add" if isinstance(change, Added) else "project", "value": change.vector.detach().cpu()}
    if isinstance(change, AddedByEntry):
        return {"op": "add", "value": change.vectors[[change.choose(*entry) for entry in chosen.entries]]}
    if isinstance(change, Averaged):
        mean = change.mean if change.heads is None else change.mean[list(change.heads)]
        return {"op": "put", "value": mean}
    if isinstance(change, Patched):
        taken = torch.stack([change.states[prompt][change.index[prompt, at]] for prompt, at in chosen.entries])
        return {"op": "put", "value": taken if change.heads is None else taken[:, list(change.heads)]}
    if isinstance(change, PassedOn):
        return {
            "op": "take",
            "name": _name(change.entrance),
            "index": (torch.tensor(chosen.rows), torch.tensor(chosen.columns)),
        }
    raise Unsupported(f"an intervention that makes a {type(change).__name__} state cannot be sent to NDIF", _LOCALLY)


def places_at(window: Window, wanted: Iterable[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """Rows and columns of (row, position in the unpadded prompt) pairs."""
    pairs = [(row, window.padding[row] + at - window.first) for row, at in wanted]
    rows, columns = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).T
    return rows, columns


def take_edit(rows: Sequence[int], columns: Sequence[int], name: str, index: Any, heads: Sequence[int] | None) -> Data:
    """An edit that puts in states which an earlier pass carried.

    Args:
        rows: The row of each entry.
        columns: Its column.
        name: What is carried.
        index: Which of it goes to each entry, as an index of a tensor.
        heads: The heads, None for all.
    """
    return {
        "rows": torch.tensor(rows, dtype=torch.long),
        "columns": torch.tensor(columns, dtype=torch.long),
        "heads": None if heads is None else list(heads),
        "neurons": None,
        "value": None,
        "op": "take",
        "name": name,
        "index": index,
    }
