"""Colours: apart for everybody, and legible."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from nnterp_mcp.display import style
from nnterp_mcp.display.figure import Colours, Curve
from nnterp_mcp.display.panels import shades

# Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB.
DEFICIENCIES = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def linear(colours: np.ndarray) -> np.ndarray:
    return np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIELAB of linear RGB under D65."""
    xyz = rgb @ np.array([[0.4124, 0.2126, 0.0193], [0.3576, 0.7152, 0.1192], [0.1805, 0.0722, 0.9505]])
    ratio = xyz / np.array([0.95047, 1.0, 1.08883])
    f = np.where(ratio > 0.008856, np.cbrt(np.clip(ratio, 0, None)), 7.787 * ratio + 16 / 116)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], -1)


def contrast(first: tuple[float, ...], second: tuple[float, ...]) -> float:
    lights = sorted(float(linear(np.array(one)) @ [0.2126, 0.7152, 0.0722]) for one in (first, second))
    return (lights[1] + 0.05) / (lights[0] + 0.05)


@pytest.mark.parametrize("centre", [None, 0.5])
def test_text_in_a_cell_is_legible_on_every_colour(centre: float | None) -> None:
    for colour in shades(Colours("v", 0, 1, centre)).to_rgba(np.linspace(0, 1, 256))[:, :3]:
        assert contrast(tuple(colour), to_rgb(style.ink_on(*colour))) >= 4.5


def test_lines_and_small_text_stand_out_from_white() -> None:
    assert all(contrast(to_rgb(colour), (1, 1, 1)) >= 3 for colour in style.PALETTE)
    assert all(contrast(to_rgb(colour), to_rgb("#1b1b1f")) >= 3 for colour in style.PALETTE_ON_DARK)
    assert contrast(to_rgb(style.INK), (1, 1, 1)) >= 7
    assert contrast(to_rgb(style.FAINT), (1, 1, 1)) >= 4.5


@pytest.mark.parametrize("deficiency", DEFICIENCIES)
def test_the_first_curves_are_told_apart_by_everybody(deficiency: str) -> None:
    """Any two of the first four colours differ by more than three times what is just noticeable."""
    colours = linear(np.array([to_rgb(colour) for colour in style.PALETTE[:4]]))
    seen = lab(np.clip(colours @ np.array(DEFICIENCIES[deficiency]).T, 0, 1))
    apart = [np.linalg.norm(seen[a] - seen[b]) for a in range(4) for b in range(a)]

    assert min(apart) > 7


@pytest.mark.parametrize("deficiency", DEFICIENCIES)
def test_a_scale_that_grows_gets_lighter_for_everybody(deficiency: str) -> None:
    colours = linear(shades(Colours("v", 0, 1)).to_rgba(np.linspace(0, 1, 64))[:, :3])
    lightness = lab(np.clip(colours @ np.array(DEFICIENCIES[deficiency]).T, 0, 1))[:, 0]

    assert (np.diff(lightness) > -0.3).all()
    assert lightness[-1] - lightness[0] > 60


@pytest.mark.parametrize("centre", [0.0, 1.0])
def test_a_diverging_scale_is_lightest_at_its_centre(centre: float) -> None:
    colours = Colours.around("v", [-0.5, 0.2, 3.0], centre)
    values = np.linspace(colours.low, colours.high, 101)
    lightness = lab(linear(shades(colours).to_rgba(values)[:, :3]))[:, 0]

    assert values[lightness.argmax()] == pytest.approx(centre, abs=0.1)
    assert colours.high - centre == pytest.approx(centre - colours.low)
    assert colours.low <= -0.5
    assert colours.high >= 3.0


def test_a_control_looks_like_what_it_belongs_to() -> None:
    curves = [
        Curve("a", [0], [0]),
        Curve("a, random", [0], [0], role="control", of="a"),
        Curve("baseline", [0], [0], role="control"),
        Curve("chance", [0], [0], role="control"),
    ]
    colours, dashes = style.colours_of(curves), style.dashes_of(curves)

    assert colours["a"] == colours["a, random"] == style.PALETTE[0]
    assert colours["baseline"] == colours["chance"] == style.FAINT
    assert dashes["baseline"] != dashes["chance"]
    assert "a" not in dashes
