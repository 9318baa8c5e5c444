"""A steering sweep as a picture: the effect over factors or layers, next to that of random directions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from nnterp_mcp.display.figure import Arrays, Colours, Curve, Curves, Figure, Heatmap, Panel
from nnterp_mcp.formatting import elided, number, probability, quoted
from nnterp_mcp.render import in_force
from nnterp_mcp.table import cell_text
from nnterp_mcp.toolset.steer.result import SteeredRun, SteerResult

_CATEGORIES = 3
"""Target categories that are drawn."""

_CURVES = 4
"""Layers up to which each has a curve."""


def figure(result: SteerResult, arrays: Arrays) -> Figure:
    """A panel for the divergence and one for each category."""
    sweep = _Sweep(result)
    measures: list[_Measure] = [_Measure("KL(steered ‖ baseline)", "nats", lambda run: run.kl)]
    measures += [
        _Measure(elided(name), "probability", lambda run, index=index: run.targets[index][0])
        for index, name in enumerate(list(result.categories)[:_CATEGORIES])
    ]
    panels = [panel for measure in measures for panel in sweep.panels(measure)]
    first = quoted(elided(result.prompts[0], 200))
    baselines = "; ".join(
        f"{measure.name} {cell_text(probability(sweep.baseline(measure)))}" for measure in measures[1:]
    )
    controls = f"Dashed, with a band of ± 1 sd: {result.controls} random directions of equal norm."
    return Figure(
        title=f"Steering with {elided(result.vector, 40)} · {result.model}",
        subtitle=first if len(result.prompts) == 1 else f"mean of {len(result.prompts)} prompts, the first: {first}",
        panels=panels,
        notes=[
            *([controls] if result.controls and not sweep.as_grid else []),
            *([f"Baseline: {baselines}."] if baselines and sweep.as_grid else []),
            *([] if result.controls else ["Without a control: any push of this length moves a model."]),
            *in_force(result.in_force),
        ],
    )


@dataclass(frozen=True)
class _Measure:
    """A number of a run that is drawn, with its name and unit."""

    name: str
    unit: str
    of: Callable[[SteeredRun], float]


class _Sweep:
    """The runs by layer and factor.

    Attributes:
        as_grid: True if there are too many layers for a curve each, and several factors.
    """

    def __init__(self, result: SteerResult) -> None:
        self._runs = result.runs
        self._steered = [run for run in result.runs if run.layer is not None]
        self._layers = sorted({run.layer for run in self._steered if run.layer is not None})
        self._factors = sorted({run.factor for run in self._steered})
        self._controls = result.controls
        self.as_grid = len(self._layers) > _CURVES and len(self._factors) > 1

    def panels(self, measure: _Measure) -> list[Panel]:
        """One panel of curves; or a grid, with that of the controls."""
        if not self.as_grid:
            over_layers = len(self._layers) > 1 and len(self._factors) == 1
            return [self._over_layers(measure) if over_layers else self._over_factors(measure)]
        grids = [self._grid(measure, control=False)]
        return [*grids, self._grid(measure, control=True)] if self._controls else list(grids)

    def baseline(self, measure: _Measure) -> float:
        """The mean over the prompts' baselines."""
        return fmean(measure.of(run) for run in self._runs if run.layer is None)

    def _at(self, layer: int, factor: float, control: int | None) -> list[SteeredRun]:
        return [run for run in self._steered if (run.layer, run.factor, run.control) == (layer, factor, control)]

    def _mean(self, measure: _Measure, layer: int, factor: float) -> float | None:
        runs = self._at(layer, factor, None)
        return fmean(map(measure.of, runs)) if runs else None

    def _random(self, measure: _Measure, layer: int, factor: float) -> list[float]:
        """The mean under each random direction."""
        draws = [self._at(layer, factor, control) for control in range(self._controls)]
        return [fmean(map(measure.of, runs)) for runs in draws if runs]

    def _over_factors(self, measure: _Measure) -> Curves:
        curves: list[Curve] = []
        for layer in self._layers:
            name = f"layer {layer}"
            factors = [factor for factor in self._factors if self._at(layer, factor, None)]
            curves += self._pair(measure, name, factors, [(layer, factor) for factor in factors])
        return self._panel(measure, "factor", curves, self._factors)

    def _over_layers(self, measure: _Measure) -> Curves:
        (factor,) = self._factors
        places = [(layer, factor) for layer in self._layers if self._at(layer, factor, None)]
        curves = self._pair(measure, f"factor {number(factor)}", [layer for layer, _ in places], places)
        return self._panel(measure, "layer", curves, self._layers)

    def _pair(
        self, measure: _Measure, name: str, x: Sequence[float], places: Sequence[tuple[int, float]]
    ) -> list[Curve]:
        """The vector's curve, and the one of the controls."""
        pair = [Curve(name, x, [self._mean(measure, *place) or 0.0 for place in places])]
        draws = [self._random(measure, *place) for place in places]
        if draws and all(len(values) > 1 for values in draws):
            means, spreads = [fmean(values) for values in draws], [stdev(values) for values in draws]
            low = [max(0.0, mean - sd) for mean, sd in zip(means, spreads, strict=True)]
            high = [mean + sd for mean, sd in zip(means, spreads, strict=True)]
            pair.append(Curve(f"{name}, random", x, means, low, high, role="control", of=name))
        return pair

    def _panel(self, measure: _Measure, across: str, curves: list[Curve], x: Sequence[float]) -> Curves:
        ends = sorted({x[0], x[-1]})
        curves = [*curves, Curve("baseline", ends, [self.baseline(measure)] * len(ends), role="control")]
        whole = across == "layer"
        return Curves(measure.name, across, measure.unit, curves, span=(0.0, 0.0), whole=whole)

    def _grid(self, measure: _Measure, control: bool) -> Heatmap:
        rows = self._layers[::-1]
        of = self._control_mean if control else self._mean
        found = [[of(measure, layer, factor) for factor in self._factors] for layer in rows]
        own = [self._mean(measure, layer, factor) for layer in rows for factor in self._factors]
        high = max((value for value in own if value is not None), default=1.0)
        return Heatmap(
            title=f"{measure.name}: random" if control else measure.name,
            across="factor",
            down="layer",
            columns=[number(factor) for factor in self._factors],
            rows=[str(layer) for layer in rows],
            values=found,
            colours=Colours(measure.unit, 0.0, high or 1.0),
        )

    def _control_mean(self, measure: _Measure, layer: int, factor: float) -> float | None:
        draws = self._random(measure, layer, factor)
        return fmean(draws) if draws else None
