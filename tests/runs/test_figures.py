"""The figures of tools: what is drawn is what the run's result says, read here as plain JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, pstdev, stdev
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from nnterp_mcp.display.figure import Bars, Colours, Curve, Curves, Figure, Heatmap, Passages, visible
from nnterp_mcp.display.layers import target_names, text_of
from nnterp_mcp.errors import NnterpError, Unsupported
from nnterp_mcp.formatting import number
from nnterp_mcp.runs import figures
from nnterp_mcp.runs.figures import figure_of
from nnterp_mcp.runs.store import RunStore
from nnterp_mcp.toolset import specs
from tests.recorded import EXAMPLES, Recorded
from tests.viewer.kept import attribution_run

DRAWN = {name for name, spec in specs().items() if spec.figure is not None}


def read(recorded: Recorded, name: str) -> tuple[Figure, dict[str, Any]]:
    """A run's figure, and its result as it lies on the disk."""
    run_id = recorded.ids[name]
    result = json.loads((recorded.settings.runs / run_id / "result.json").read_text())
    return figure_of(recorded.store, recorded.store.read(run_id), specs()), result


def panel(figure: Figure, kind: type[Any], title: str = "") -> Any:
    return next(one for one in figure.panels if isinstance(one, kind) and title in one.title)


def curve(curves: Curves, name: str) -> Curve:
    return next(one for one in curves.curves if one.name == name)


def shown(token: str) -> str:
    """A token as a cell shows it."""
    return (token if len(token) <= 18 else f"{token[:17]}…").replace(" ", "␣")


def whole(text: str) -> str:
    """A text without the bytes of a character that it does not end."""
    return f"{text.rstrip(chr(0xFFFD))}…" if text.endswith("\ufffd") else text


def by_layer(heatmap: Heatmap) -> list[tuple[str, list[str], list[float | None]]]:
    """The rows from the bottom, as the layers come."""
    assert heatmap.labels is not None
    rows = zip(heatmap.rows, heatmap.labels, heatmap.values, strict=True)
    return [(row, list(labels), list(values)) for row, labels, values in rows][::-1]


def test_every_tool_that_takes_plot_has_a_figure() -> None:
    assert {name for name, spec in specs().items() if "plot" in spec.params.model_fields} == DRAWN


@pytest.mark.parametrize(
    "name", [name for name, (tool, _) in EXAMPLES.items() if tool in DRAWN and name != "random vector"]
)
def test_every_figure_names_what_it_shows(name: str, recorded: Recorded) -> None:
    figure, result = read(recorded, name)

    assert result["model"] in figure.title
    assert figure.subtitle
    assert figure.panels
    for one in figure.panels:
        assert one.title
        if isinstance(one, Heatmap):
            assert [len(row) for row in one.values] == [len(one.columns)] * len(one.rows)


def test_a_run_without_a_picture_is_refused_by_name(recorded: Recorded) -> None:
    undrawn = recorded.store.read(recorded.ids["random vector"])
    with pytest.raises(Unsupported, match="a picture shows directions by layer, and this vector has none"):
        figure_of(recorded.store, undrawn, specs())
    with pytest.raises(NnterpError, match=r"has no picture: make_vector draws none"):
        figure_of(recorded.store, undrawn, {})


def test_a_text_shows_each_token_with_its_probability(recorded: Recorded) -> None:
    figure, result = read(recorded, "sampling")
    (text,) = result["texts"]

    for name in ("baseline", "edited"):
        drawn = panel(figure, Heatmap, name)
        values = [value for row in drawn.values for value in row if value is not None]
        assert values == pytest.approx(np.exp(text[name]["log_probs"]))
        labels = [label for row in drawn.labels for label in row if label]
        assert labels == [visible(token) for token in text[name]["tokens"]]
        row, column = drawn.focus
        assert row * len(drawn.columns) + column == text["differs_at"]
    texts = [(name, whole(text[name]["text"])) for name in ("baseline", "edited")]
    for (name, expected), drawn in zip(texts, panel(figure, Passages).rows, strict=True):
        assert drawn == (name, expected if "\ufffd" not in expected else text_of(text[name]["tokens"]))


def test_a_vector_shows_norms_separation_and_how_alike_its_directions_are(recorded: Recorded) -> None:
    figure, result = read(recorded, "vector")
    layers = [one["layer"] for one in result["directions"]]
    norms = panel(figure, Curves, "norm")
    cosines = panel(figure, Heatmap, "cosine")
    vectors = load_file(next(recorded.settings.data.glob("vectors/**/joy.safetensors")))
    (states,) = vectors.values()
    unit = states / np.linalg.norm(states, axis=1, keepdims=True)

    assert (curve(norms, "vector").x, curve(norms, "vector").y) == (
        layers,
        [one["norm"] for one in result["directions"]],
    )
    assert curve(norms, "states").y == [one["stream"] for one in result["directions"]]
    assert np.array(cosines.values)[::-1] == pytest.approx(unit @ unit.T, abs=1e-6)
    assert (cosines.columns, cosines.rows) == ([str(layer) for layer in layers], [str(layer) for layer in layers[::-1]])


def test_the_lens_shows_each_readings_top_tokens_and_targets(recorded: Recorded) -> None:
    figure, result = read(recorded, "lens")
    readings = result["readings"]
    rows = by_layer(panel(figure, Heatmap))

    assert len(readings) == 4
    for at, (row, labels, values) in enumerate(rows):
        layers = [reading["layers"][at] for reading in readings]
        assert row == str(layers[0]["layer"])
        assert labels == [shown(layer["top"][0][0]) for layer in layers]
        assert values == [layer["top"][0][1] for layer in layers]
    for index, name in enumerate(target_names(result["categories"])):
        probabilities, ranks = [one for one in figure.panels if isinstance(one, Curves)][2 * index : 2 * index + 2]
        assert (probabilities.title, ranks.title) == (name, f"{name}: rank")
        assert len(probabilities.curves) == len(ranks.curves) == len(readings)
        for drawn, reading in zip(probabilities.curves, readings, strict=True):
            assert drawn.y == [layer["targets"][index][0] for layer in reading["layers"]]
    assert any("Active interventions" in note for note in figure.notes)


def test_a_patchscope_shows_what_the_target_says_beside_the_unpatched_one(recorded: Recorded) -> None:
    figure, result = read(recorded, "patchscope")
    (source,) = result["sources"]
    rows = by_layer(panel(figure, Heatmap))
    said = [source["unpatched"], *source["patches"]]

    assert [row for row, _, _ in rows] == ["unpatched", *(str(one["source_layer"]) for one in source["patches"])]
    assert [labels for _, labels, _ in rows] == [[shown(token) for token, _ in one["top"]] for one in said]
    assert [values for _, _, values in rows] == [[p for _, p in one["top"]] for one in said]
    tracked = panel(figure, Curves)
    measured = [one for one in tracked.curves if one.role == "measured"]
    assert measured[0].name == f"itself: {shown(source['token'])}"
    assert [one.y for one in measured] == [
        [patch["tracked"][index][0] for patch in source["patches"]] for index in range(len(measured))
    ]
    (written,) = [one for one in figure.panels if isinstance(one, Passages)]
    assert [text for _, text in written.rows] == [whole(one["text"]) for one in said]
    unpatched = [one for one in tracked.curves if one.role == "control"]
    assert [one.y[0] for one in unpatched] == [p for p, _ in source["unpatched"]["tracked"]]


def test_attention_shows_the_patterns_that_were_kept(recorded: Recorded) -> None:
    figure, result = read(recorded, "attention")
    folder = recorded.settings.runs / recorded.ids["attention"]
    patterns = load_file(folder / "attention_0.safetensors")["array"]
    names = [f"L{head['layer']}H{head['head']}" for head in result["heads"]]
    beyond: list[float] = []

    assert figure.panels
    for one in figure.panels:
        assert isinstance(one, Heatmap)
        pattern = patterns[names.index(one.title.split(" ")[0])]
        drawn = np.array([[0.0 if value is None else value for value in row] for row in one.values])
        assert drawn == pytest.approx(pattern)
        assert [name.rsplit(" ", 1)[0] for name in one.rows] == [shown(token) for token in result["tokens"][0]]
        beyond.append(pattern[:, 1:].max())
    assert figure.panels[0].colours.high == pytest.approx(max(beyond))  # pyright: ignore[reportAttributeAccessIssue]


def test_a_patching_grid_shows_every_cell_and_its_control(recorded: Recorded) -> None:
    figure, result = read(recorded, "patching")
    heatmap = panel(figure, Heatmap)
    cells = {(cell["layer"], cell["column"]): cell for cell in result["cells"] if cell["site"] == heatmap.title}

    assert len(cells) == sum(map(len, heatmap.values))
    for (layer, column), cell in cells.items():
        value = heatmap.values[heatmap.rows.index(str(layer))][column]
        assert value == (cell["effect"] if cell["recovery"] is None else cell["recovery"]["mean"])
    bars = panel(figure, Bars).bars
    together = result["patched_set"]
    assert bars[0].value == (together["recovery"] or together["metric"])["mean"]
    random = together["control_recoveries"] if together["recovery"] else together["controls"]
    assert [bar.value for bar in bars if bar.role == "control"] == random
    assert result["texts"] == ["The capital of France is"]
    assert '"The capital of France is" with' in figure.subtitle


def of(runs: Sequence[dict[str, Any]], **wanted: Any) -> list[dict[str, Any]]:
    return [run for run in runs if all(run[name] == value for name, value in wanted.items())]


def test_a_sweep_shows_the_effect_over_factors_beside_random_directions(recorded: Recorded) -> None:
    figure, result = read(recorded, "steering")
    (curves,) = figure.panels
    assert isinstance(curves, Curves)
    runs = result["runs"]

    for layer in (1, 2):
        own, random = curve(curves, f"layer {layer}"), curve(curves, f"layer {layer}, random")
        assert own.x == [-4, 0, 4]
        assert own.y[1] == random.y[1] == 0  # the baseline
        assert random.low is not None
        for at, factor in enumerate(own.x):
            if factor == 0:
                continue
            measured = [run["kl"] for run in of(runs, layer=layer, factor=factor, control=None)]
            draws = [
                fmean(run["kl"] for run in of(runs, layer=layer, factor=factor, control=number))
                for number in range(result["controls"])
            ]
            assert len(measured) == 2
            assert own.y[at] == pytest.approx(fmean(measured))
            assert random.y[at] == pytest.approx(fmean(draws))
            assert random.low[at] == pytest.approx(max(0, fmean(draws) - stdev(draws)))


def test_probes_are_shown_beside_all_their_baselines(recorded: Recorded) -> None:
    figure, result = read(recorded, "probe")
    (curves,) = figure.panels
    assert isinstance(curves, Curves)
    layers = result["layers"]
    accuracy, shuffled = curve(curves, "held-out accuracy"), curve(curves, "shuffled labels")

    assert accuracy.x == [layer["layer"] for layer in layers]
    assert accuracy.y == [layer["accuracy"] for layer in layers]
    assert (accuracy.low, accuracy.high) == tuple([layer[end] for layer in layers] for end in ("low", "high"))
    assert shuffled.y == pytest.approx([fmean(layer["shuffled"]) for layer in layers])
    assert shuffled.high == [max(layer["shuffled"]) for layer in layers]
    assert set(curve(curves, "largest class").y) == {result["majority"]}
    assert set(curve(curves, "prompt length").y) == {result["length"]}


def test_an_attribution_shows_its_strongest_parts_and_the_sums_of_layers(recorded: Recorded) -> None:
    figure, result = read(recorded, "attribution")
    bars = panel(figure, Bars).bars
    strongest = sorted((part["value"]["mean"] for part in result["parts"]), key=abs, reverse=True)[:20]
    sums = panel(figure, Curves)

    assert [bar.value for bar in bars] == strongest
    added = result["whole"]["mean"] - sum(strongest)
    assert f"{number(added)} is left." in figure.notes[0]
    for one in sums.curves:
        field = {"attention": "attention", "MLP": "mlp", "rest": "rest"}[one.name]
        assert one.y == [layer[field] for layer in result["layers"] if layer[field] is not None]
    assert any(f"of {result['total']} parts" in note for note in figure.notes)


def test_every_head_stands_in_a_grid_with_its_unit_and_sign(tmp_path: Path) -> None:
    heads = np.array([[1.5, -2.0], [0.25, 3.0]])
    store = RunStore(tmp_path / "runs")
    figure = figure_of(store, attribution_run(store, heads), specs())
    drawn = panel(figure, Heatmap)

    assert (drawn.rows, drawn.columns) == (["1", "0"], ["0", "1"])
    assert drawn.values == heads[::-1].tolist()
    assert drawn.colours == Colours("adds to the logit difference (logits)", -3.0, 3.0, 0.0)
    assert panel(figure, Bars).signed
    assert "sum to 3.75; nothing is left." in figure.notes[0]


def test_a_prompt_set_shows_means_and_spread(recorded: Recorded) -> None:
    figure, result = read(recorded, "prompt set")
    drawn = curve(panel(figure, Curves), "a")
    samples = [[row["probabilities"][at][0] for row in result["rows"]] for at in range(len(result["layers"]))]

    assert drawn.x == result["layers"]
    assert drawn.y == pytest.approx([fmean(values) for values in samples])
    assert drawn.low == pytest.approx([max(0, fmean(values) - pstdev(values)) for values in samples])


def test_states_are_shown_by_length_and_by_how_far_groups_lie_apart(recorded: Recorded) -> None:
    figure, result = read(recorded, "states")
    lengths = panel(figure, Curves, "length")
    cosines = panel(figure, Curves, "cosine")
    layers = result["summaries"]

    for index, name in enumerate(("a", "b")):
        drawn = curve(lengths, name)
        assert drawn.y == [layer["groups"][index]["norm"] for layer in layers]
        assert drawn.high == pytest.approx(
            [layer["groups"][index]["norm"] + layer["groups"][index]["deviation"] for layer in layers]
        )
    assert cosines.curves[0].y == [layer["pairs"][0]["cosine"] for layer in layers]
    assert cosines.curves[1].y == [layer["pairs"][0]["shuffled"] for layer in layers]
    assert cosines.curves[1].of == cosines.curves[0].name


def test_a_large_result_is_drawn_in_another_process(recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    name = next(name for name, (tool, _) in EXAMPLES.items() if tool == "logit_lens")
    record = recorded.store.read(recorded.ids[name])
    here = figures.draw_here(recorded.store, record, specs())
    folder = recorded.settings.runs / record.id
    for file in (figures.PICTURE, figures.PAGE):
        (folder / file).unlink()
    monkeypatch.setattr(figures, "_LARGE", 0)
    assert figures.draw(recorded.store, record, specs()) == here == (folder / figures.PICTURE).read_bytes()
    assert (folder / figures.PAGE).exists()

    undrawn = recorded.store.read(recorded.ids["random vector"])
    with pytest.raises(Unsupported, match="this vector has none"):
        figures.draw(recorded.store, undrawn, specs())
