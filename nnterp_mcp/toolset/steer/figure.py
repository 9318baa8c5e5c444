"""A steering sweep as a picture: the effect over factors or layers, next to that of random directions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from nnterp_mcp.display.figure import Arrays, Colours, Curve, Curves, Figure, Heatmap, Panel, Passages
from nnterp_mcp.display.layers import target_names, unbroken
from nnterp_mcp.formatting import elided, number, plural, quoted
from nnterp_mcp.render import in_force
from nnterp_mcp.toolset.steer.result import SteeredRun, SteerResult

_CATEGORIES = 3
"""Target categories that are drawn."""

_CURVES = 4
"""Layers up to which each has a curve."""

_TEXTS = 12
"""Generated texts that are drawn."""


def figure(result: SteerResult, arrays: Arrays) -> Figure:
    """A panel for the divergence, two for each category, and the generated texts."""
    sweep = _Sweep(result)
    measures = [_Measure("KL(steered ‖ baseline)", "nats", lambda run: run.kl)]
    for index, name in enumerate(target_names(result.categories)[:_CATEGORIES]):
        measures.append(_Measure(name, "probability", lambda run, at=index: run.targets[at][0]))
        measures.append(_Measure(f"{name}: rank", "rank", lambda run, at=index: run.targets[at][1]))
    panels = [panel for measure in measures for panel in sweep.panels(measure)]
    first = quoted(elided(result.prompts[0], 200))
    several = len(result.prompts) > 1
    return Figure(
        title=f"Steering with {elided(result.vector, 40)} · {result.model}",
        subtitle=f"mean of {len(result.prompts)} prompts, the first: {first}" if several else first,
        panels=[*panels, *_texts(result)],
        columns=3 if len(panels) > 4 else 2,
        notes=[*_notes(sweep, result), *in_force(result.in_force)],
    )


def _notes(sweep: _Sweep, result: SteerResult) -> list[str]:
    notes = ["Factor 0 is the baseline: the model without the vector."] if sweep.over_factors else []
    if result.controls and not sweep.as_grid:
        drawn = plural(result.controls, "random direction")
        if len(result.matched or []) > 1:
            drawn = f"the rows of {len(result.matched or [])} matched features"
        notes.append(f"Dashed, with a band of ± 1 sd: {drawn}, of equal norm.")
    if len(result.categories) > _CATEGORIES:
        notes.append(f"{_CATEGORIES} of {len(result.categories)} target categories are drawn.")
    texts = sum(run.text is not None and run.control is None for run in result.runs)
    if texts > _TEXTS:
        notes.append(f"{_TEXTS} of {texts} generated texts are shown, those of the first prompt.")
    return [*notes, *([] if result.controls else ["Without a control: random directions may do the same."])]


def _texts(result: SteerResult) -> list[Passages]:
    """What the model writes, unsteered first."""
    own = [run for run in result.runs if run.prompt == 0 and run.control is None and run.text is not None]
    rows = [
        (
            "baseline" if run.layer is None else f"layer {run.layer}, factor {number(run.factor)}",
            unbroken(run.text or ""),
        )
        for run in own[:_TEXTS]
    ]
    return [Passages("generated", rows)] if rows else []


@dataclass(frozen=True)
class _Measure:
    """A number of a run that is drawn, with its name and unit."""

    name: str
    unit: str
    of: Callable[[SteeredRun], float]

    @property
    def ranks(self) -> bool:
        return self.unit == "rank"


class _Sweep:
    """The runs by layer and factor; factor 0 is the baseline.

    Attributes:
        over_factors: True if there is an axis of factors.
        as_grid: True if there are too many layers for a curve each, and several factors.
    """

    def __init__(self, result: SteerResult) -> None:
        self._runs = result.runs
        self._steered = [run for run in result.runs if run.layer is not None]
        self._layers = sorted({run.layer for run in self._steered if run.layer is not None})
        factors = {run.factor for run in self._steered}
        self.over_factors = len(self._layers) == 1 or len(factors) > 1
        self._factors = sorted(factors | {0.0}) if self.over_factors else sorted(factors)
        self._controls = result.controls
        self._matched = len(result.matched or [])
        self.as_grid = len(self._layers) > _CURVES and self.over_factors

    def panels(self, measure: _Measure) -> list[Panel]:
        """One panel of curves; or a grid, with that of the controls."""
        if not self.as_grid:
            return [self._panel_over_factors(measure) if self.over_factors else self._panel_over_layers(measure)]
        grids = [self._grid(measure, control=False)]
        return [*grids, self._grid(measure, control=True)] if self._controls and not measure.ranks else list(grids)

    def _baseline(self, measure: _Measure) -> float:
        """The mean over the prompts' baselines."""
        return fmean(measure.of(run) for run in self._runs if run.layer is None)

    def _at(self, layer: int, factor: float, control: int | None) -> list[SteeredRun]:
        return [run for run in self._steered if (run.layer, run.factor, run.control) == (layer, factor, control)]

    def _mean(self, measure: _Measure, layer: int, factor: float) -> float | None:
        runs = self._at(layer, factor, None)
        if not runs and factor == 0.0:
            return self._baseline(measure)
        return fmean(map(measure.of, runs)) if runs else None

    def _random(self, measure: _Measure, layer: int, factor: float) -> list[float]:
        """The mean under each random direction."""
        return self._under(range(self._matched, self._matched + self._controls), measure, layer, factor)

    def _matching(self, measure: _Measure, layer: int, factor: float) -> list[float]:
        """The mean under the row of each matched feature."""
        return self._under(range(self._matched), measure, layer, factor)

    def _under(self, controls: range, measure: _Measure, layer: int, factor: float) -> list[float]:
        draws = [self._at(layer, factor, control) for control in controls]
        if factor == 0.0 and not any(draws):
            return [self._baseline(measure)] * len(controls)
        return [fmean(map(measure.of, runs)) for runs in draws if runs]

    def _panel_over_factors(self, measure: _Measure) -> Curves:
        curves: list[Curve] = []
        for layer in self._layers:
            factors = [factor for factor in self._factors if self._mean(measure, layer, factor) is not None]
            curves += self._pair(measure, f"layer {layer}", factors, [(layer, factor) for factor in factors])
        return self._panel(measure, "factor", curves)

    def _panel_over_layers(self, measure: _Measure) -> Curves:
        (factor,) = self._factors
        places = [(layer, factor) for layer in self._layers if self._at(layer, factor, None)]
        curves = self._pair(measure, f"factor {number(factor)}", [layer for layer, _ in places], places)
        ends = sorted({places[0][0], places[-1][0]})
        baseline = Curve("baseline", ends, [self._baseline(measure)] * len(ends), role="control")
        return self._panel(measure, "layer", [*curves, baseline])

    def _pair(
        self, measure: _Measure, name: str, x: Sequence[float], places: Sequence[tuple[int, float]]
    ) -> list[Curve]:
        """The vector's curve, and the one of the controls: of matched features where there are any."""
        pair = [Curve(name, x, [self._mean(measure, *place) or 0.0 for place in places])]
        control = self._matching if self._matched > 1 else self._random
        draws = [control(measure, *place) for place in places]
        if draws and all(len(values) > 1 for values in draws):
            means, spreads = [fmean(values) for values in draws], [stdev(values) for values in draws]
            least = 1.0 if measure.ranks else 0.0
            low = [max(least, mean - sd) for mean, sd in zip(means, spreads, strict=True)]
            high = [mean + sd for mean, sd in zip(means, spreads, strict=True)]
            kind = "matched" if self._matched > 1 else "random"
            pair.append(Curve(f"{name}, {kind}", x, means, low, high, role="control", of=name))
        return pair

    def _panel(self, measure: _Measure, across: str, curves: list[Curve]) -> Curves:
        return Curves(measure.name, across, measure.unit, curves, span=(0.0, 0.0), ranks=measure.ranks)

    def _grid(self, measure: _Measure, control: bool) -> Heatmap:
        rows = self._layers[::-1]
        of = self._control_mean if control else self._mean
        found = [[of(measure, layer, factor) for factor in self._factors] for layer in rows]
        own = [self._mean(measure, layer, factor) for layer in rows for factor in self._factors]
        high = max((value for value in own if value is not None), default=1.0)
        return Heatmap(
            title=f"{measure.name}: mean of random directions" if control else measure.name,
            across="factor",
            down="layer",
            columns=[number(factor) for factor in self._factors],
            rows=[str(layer) for layer in rows],
            values=found,
            colours=Colours(measure.unit, 1.0 if measure.ranks else 0.0, high or 1.0),
        )

    def _control_mean(self, measure: _Measure, layer: int, factor: float) -> float | None:
        draws = self._random(measure, layer, factor)
        return fmean(draws) if draws else None
