"""`load_features` and `features`: what a dictionary is told to do is what plain PyTorch does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nnterp_mcp.errors import Forbidden, InvalidRequest
from nnterp_mcp.settings import Settings
from nnterp_mcp.toolset.features import SPEC as FEATURES
from nnterp_mcp.toolset.features.result import FeaturesResult
from nnterp_mcp.toolset.load_features import SPEC as LOAD
from nnterp_mcp.toolset.load_features.result import LoadFeaturesResult
from nnterp_mcp.worker.job import Job
from nnterp_mcp.worker.workbench import Bench
from tests.dictionaries import write

LAYER = 2
GOOD, BAD = (
    ["Paris is good", "Rome is in Italy", "the king of France"],
    ["one two three", "four five six", "cold and dark"],
)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    import torch

    from tests.model.families import standardized

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("dictionaries")
    yield Bench("tiny", Settings(data=folder / "data", folders=(folder / "given",)), standardized("llama", "sdpa"))
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def given(bench: Bench) -> Path:
    (folder,) = bench.settings.folders
    return folder


def load(bench: Bench, **arguments: Any) -> LoadFeaturesResult:
    """Runs the tool as a worker does, the parameters sent over the wire."""
    from nnterp_mcp.toolset.load_features.run import run

    result = run(
        bench, LOAD.params.model_validate(LOAD.parse(arguments).model_dump(mode="json")), Job(1, lambda sent: None)
    )
    return LOAD.result.model_validate_json(result.model_dump_json())


def read(bench: Bench, **arguments: Any) -> FeaturesResult:
    from nnterp_mcp.toolset.features.run import run

    sent = FEATURES.parse(arguments).model_dump(mode="json")
    result = run(bench, FEATURES.params.model_validate(sent), Job(1, lambda sent: None))
    return FEATURES.result.model_validate_json(result.model_dump_json())


def test_an_exact_dictionary_fits_and_answers_stay_small(
    bench: Bench, given: Path, count_tokens: Callable[[object], int]
) -> None:
    width = bench.model.hidden_size
    result = load(bench, name="exact", source=write(given / "exact", f"blocks.{LAYER}.hook_resid_post", width))
    (layer,) = result.layers
    read_now = read(bench, dictionary="exact", prompts={"good": GOOD, "bad": BAD})

    assert result.tokens >= 1000
    assert layer.fit.fvu == 0
    assert layer.fit.l0 == pytest.approx(width)
    assert layer.spliced == layer.loss != layer.zeroed
    assert layer.recovered in (None, 1.0)
    assert layer.faults == []
    for spec, made in ((LOAD, result), (FEATURES, read_now)):
        answer = spec.summarize(made)
        assert count_tokens(answer.text()) <= 1000
        assert count_tokens(answer.structured()) <= 1000


def test_features_are_those_of_plain_hooks(bench: Bench, given: Path) -> None:
    import torch

    from nnterp_mcp.verification.tiny import tiny_model

    width, latents = bench.model.hidden_size, 50
    load(bench, name="random", source=write(given / "random", f"blocks.{LAYER}.hook_resid_post", width, latents))
    result = read(bench, dictionary="random", prompts={"good": GOOD, "bad": BAD})
    rows = torch.randn(latents, width, generator=torch.Generator().manual_seed(1))
    plain = tiny_model("llama")
    means, peaks = [], []
    for prompt in bench.encode([*GOOD, *BAD]):
        with torch.no_grad():
            states = plain(torch.tensor([prompt.ids]), output_hidden_states=True).hidden_states[LAYER + 1][0, 1:]
        means.append((states @ rows.T).relu().mean(0))
        peaks.append((states @ rows.T).relu().amax(0))
    difference = torch.stack(means[:3]).mean(0) - torch.stack(means[3:]).mean(0)
    effects = (rows * plain.model.norm.weight) @ plain.lm_head.weight.T

    assert [one.feature for one in result.features] == difference.abs().sort(descending=True).indices[
        : len(result.features)
    ].tolist()
    for one in result.features[:10]:
        assert one.difference == pytest.approx(float(difference[one.feature]), rel=1e-3, abs=1e-5)
        assert one.tokens[0].activation == pytest.approx(float(torch.stack(peaks)[:, one.feature].max()), rel=1e-4)
        best = effects[one.feature].detach().max()
        assert one.promotes[0].effect == pytest.approx(float(best), rel=1e-3)
    named = read(bench, dictionary="random", features=[7, 3])
    cosines = torch.nn.functional.cosine_similarity(rows[7], rows, dim=-1)
    cosines[7] = -1
    assert [one.feature for one in named.features] == [7, 3]
    assert named.features[0].matched == []
    assert named.features[0].nearest[0].feature == int(cosines.argmax())
    assert "LlamaRMSNorm" in FEATURES.summarize(named).text()


def test_a_wrong_hook_point_is_told_with_the_one_that_fits(bench: Bench, given: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    from nnterp_mcp.experiments.features.calibration import read_all
    from nnterp_mcp.experiments.features.calibration_texts import TEXTS
    from nnterp_mcp.request.feature_sites import FeaturePlace

    place = FeaturePlace("layers_output", LAYER)
    work = bench.workload(bench.encode([text[:200] for text in TEXTS]), (), Job(1, lambda sent: None))
    states = read_all(bench.model, work, [place])[place]
    axes = torch.linalg.svd(states - states.mean(0), full_matrices=False).Vh[:8]
    folder = given / "fitted"
    source = write(folder, f"blocks.{LAYER}.hook_attn_out", bench.model.hidden_size, 16, apply_b_dec_to_input=True)
    rows = torch.cat([axes, -axes])
    file = folder / "sae_weights.safetensors"
    save_file(load_file(file) | {"W_enc": rows.T.contiguous(), "W_dec": rows, "b_dec": states.mean(0)}, file)
    wrong = load(bench, name="fitted", source=source)
    right = load(bench, name="fitted", source=source, site="hook_resid_post")

    assert wrong.layers[0].faults
    assert wrong.layers[0].elsewhere[0].place == "layers_output of layer 2"
    assert "It fits best at layers_output of layer 2" in LOAD.summarize(wrong).text()
    assert not right.layers[0].faults


def test_a_dictionary_is_listed_and_unloaded_by_name(bench: Bench, given: Path) -> None:
    width = bench.model.hidden_size
    source = write(given / "brief", f"blocks.{LAYER}.hook_resid_post", width, 7)
    (layer,) = load(bench, name="brief", source=source).layers
    (card,) = [card for card in bench.dictionaries.store.cards() if card.name == "brief"]
    gone = load(bench, name="brief", source="unload")

    assert layer.nbytes == card.layers[0].nbytes == 4 * (2 * 7 * width + 7 + width)
    assert gone.freed == layer.nbytes
    assert "brief" in LOAD.summarize(gone).text()
    with pytest.raises(InvalidRequest, match="has no dictionary 'brief'"):
        load(bench, name="brief", source="unload")


def test_a_token_that_dominates_the_means_is_named(bench: Bench, given: Path) -> None:
    width = bench.model.hidden_size
    load(bench, name="means", source=write(given / "means", f"blocks.{LAYER}.hook_resid_post", width, 7))
    groups = {"good": GOOD, "bad": BAD}
    plain = read(bench, dictionary="means", prompts=groups)
    longer = {"op": "scale", "site": "layers_output", "layers": LAYER, "factor": 90, "positions": -1, "prompts": 1}
    edited = read(bench, dictionary="means", prompts=groups, interventions=[longer])

    assert plain.dominant is None
    assert edited.dominant is not None
    assert (edited.dominant.group, edited.dominant.prompt, edited.dominant.layer) == ("good", 1, LAYER)
    assert "dominates the mean at layer 2" in FEATURES.summarize(edited).text()


def test_what_does_not_belong_to_the_model_is_refused_by_name(bench: Bench, given: Path, tmp_path: Path) -> None:
    width = bench.model.hidden_size
    wide = write(given / "wide", f"blocks.{LAYER}.hook_resid_post", width + 1, 5)
    deep = write(given / "deep", "blocks.40.hook_resid_post", width, 5)
    outside = write(tmp_path / "outside", f"blocks.{LAYER}.hook_resid_post", width, 5)
    refused: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"source": wide}, InvalidRequest, f"states of width {width + 1}, and those at the layers_output of layer 2"),
        ({"source": deep}, InvalidRequest, "has layers 0 to 3"),
        ({"source": outside}, Forbidden, "outside of the folders from which dictionaries are read"),
        ({"source": str(given / "nowhere")}, InvalidRequest, "there is no folder"),
        ({"source": deep, "layers": [1]}, InvalidRequest, "no dictionary of these layers"),
    ]
    for arguments, error, said in refused:
        with pytest.raises(error, match=said):
            load(bench, name="refused", **arguments)
    with pytest.raises(InvalidRequest, match="has no dictionary 'refused'"):
        read(bench, dictionary="refused", features=[1])
    load(bench, name="known", source=write(given / "known", f"blocks.{LAYER}.hook_resid_post", width, 5))
    with pytest.raises(InvalidRequest, match="there is no feature 5: known has features 0 to 4"):
        read(bench, dictionary="known", features=[5])
    with pytest.raises(InvalidRequest, match="needs prompts"):
        FEATURES.parse({"dictionary": "known"})


def test_rows_of_features_are_vectors(bench: Bench, given: Path) -> None:
    import torch

    from nnterp_mcp.toolset.make_vector import SPEC
    from nnterp_mcp.toolset.make_vector.run import run

    width = bench.model.hidden_size
    load(bench, name="rows", source=write(given / "rows", f"blocks.{LAYER}.hook_resid_post", width, 7))
    rows = torch.randn(7, width, generator=torch.Generator().manual_seed(1))

    def make(**arguments: Any) -> None:
        run(bench, SPEC.parse({"name": "row", **arguments}), Job(1, lambda sent: None))

    for method in ("decoder_row", "encoder_row"):
        make(method=method, positive=f"rows:{LAYER}:3")
        torch.testing.assert_close(bench.find_vector("row"), rows[3])
    with pytest.raises(InvalidRequest, match="there is no feature 7: rows has features 0 to 6"):
        make(method="decoder_row", positive="rows:7")
    with pytest.raises(InvalidRequest, match="a feature is named as NAME:FEATURE"):
        make(method="decoder_row", positive="rows")


def test_features_are_edited_by_name_in_every_tool(bench: Bench, given: Path) -> None:
    from nnterp_mcp.toolset.generate import SPEC
    from nnterp_mcp.toolset.generate.run import run

    width = bench.model.hidden_size
    load(bench, name="edited", source=write(given / "edited", f"blocks.{LAYER}.hook_resid_post", width, 7))
    edit = {"op": "set", "site": "features", "dictionary": "edited", "features": [2], "value": 9.0}
    params = SPEC.parse({"prompts": "Paris is in", "max_new_tokens": 2, "interventions": [edit]})
    result = run(bench, params, Job(1, lambda sent: None))

    assert result.interventions == ['set feature 2 of "edited" to 9, all positions but the first, every step']
    for wrong, said in ({"features": [7]}, "edited has features 0 to 6"), ({"layers": 1}, "edited has no layer 1"):
        params = SPEC.parse({"prompts": "Paris is in", "interventions": [edit | wrong]})
        with pytest.raises(InvalidRequest, match=said):
            run(bench, params, Job(1, lambda sent: None))
