"""Collected states as a picture: how long they are, and how far the groups lie apart, by layer."""

from __future__ import annotations

from nnterp_mcp.display.figure import Arrays, Curve, Curves, Figure, some_of
from nnterp_mcp.display.layers import on_axis
from nnterp_mcp.errors import Unsupported
from nnterp_mcp.formatting import elided, plural
from nnterp_mcp.render import in_force
from nnterp_mcp.toolset.collect_activations.result import CollectActivationsResult

_Span = tuple[float, float] | None

_GROUPS = 6
_PAIRS = 3
_COMPONENTS = 3


def figure(result: CollectActivationsResult, arrays: Arrays) -> Figure:
    """Lengths by group, cosine and gap between group means beside random groups, shares of principal components.

    Raises:
        Unsupported: The run was stopped before its states were compared.
    """
    if not result.summaries:
        raise Unsupported("this collection was stopped before its layers were compared", "Run it again.")
    layers = _Layers(result)
    groups = ", ".join(elided(name) for name in result.groups[:_GROUPS])
    return Figure(
        title=f"States at {result.site} · {result.model}",
        subtitle=f"{plural(len(result.rows), 'state')} of {plural(len(result.prompts), 'prompt')}: {groups}",
        panels=[
            layers.lengths(),
            *layers.apart("cosine", "cosine", "shuffled", "cosine between group means", span=None),
            *layers.apart("gap", "gap / mean length", "shuffled_gap", "distance between group means"),
            *layers.components(),
        ],
        notes=[
            f"Means over {plural(len(result.averaged_rows), 'state')}.",
            *(["Band of the lengths: one standard deviation over states."] if layers.varied else []),
            *some_of(len(result.groups), min(len(result.groups), _GROUPS), "groups"),
            *(["random: the same with prompts assigned to groups at random."] if result.summaries[0].pairs else []),
            *in_force(result.interventions),
        ],
    )


class _Layers:
    """The layers' summaries as curves.

    Attributes:
        varied: Whether the lengths have a spread.
    """

    def __init__(self, result: CollectActivationsResult) -> None:
        self._groups = result.groups[:_GROUPS]
        self._layers = result.summaries
        self._x, self._names = on_axis([one.layer for one in result.summaries])
        self.varied = all(group.deviation is not None for one in self._layers for group in one.groups)

    def lengths(self) -> Curves:
        """The mean length of a group's states."""
        curves: list[Curve] = []
        for index, name in enumerate(self._groups):
            of_group = [one.groups[index] for one in self._layers]
            low = [one.norm - (one.deviation or 0.0) for one in of_group] if self.varied else None
            high = [one.norm + (one.deviation or 0.0) for one in of_group] if self.varied else None
            curves.append(Curve(elided(name), self._x, [one.norm for one in of_group], low, high))
        return self._panel("length of states", "Euclidean norm", curves)

    def apart(self, measured: str, up: str, random: str, title: str, span: _Span = (0.0, 0.0)) -> list[Curves]:
        """A measure of two groups beside the same of random groups; nothing of one group."""
        curves: list[Curve] = []
        for index, pair in enumerate(self._layers[0].pairs[:_PAIRS]):
            name = f"{elided(pair.first, 14)} – {elided(pair.second, 14)}"
            pairs = [one.pairs[index] for one in self._layers]
            curves.append(Curve(name, self._x, [getattr(one, measured) for one in pairs]))
            control = [getattr(one, random) for one in pairs]
            curves.append(Curve(f"{name}, random", self._x, control, role="control", of=name))
        return [self._panel(title, up, curves, span)] if curves else []

    def components(self) -> list[Curves]:
        """The shares of the first principal components, where states differ at every layer."""
        count = min(_COMPONENTS, min(len(one.explained) for one in self._layers))
        curves = [
            Curve(f"component {index + 1}", self._x, [one.explained[index] for one in self._layers])
            for index in range(count)
        ]
        return [self._panel("principal components", "share of the variance", curves)] if curves else []

    def _panel(self, title: str, up: str, curves: list[Curve], span: _Span = (0.0, 0.0)) -> Curves:
        return Curves(title, "layer", up, curves, self._names, span)
