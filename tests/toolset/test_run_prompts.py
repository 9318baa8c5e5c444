"""The tool `run_prompts`: its numbers against plain transformers, its wording, its files and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import pytest
from syrupy.assertion import SnapshotAssertion

from nnterp_mcp.contract import Answer
from nnterp_mcp.errors import Forbidden, InvalidRequest, LimitExceeded
from nnterp_mcp.formatting import rounded
from nnterp_mcp.pool.messages import Progress
from nnterp_mcp.request.remarks import collect_remarks
from nnterp_mcp.settings import Settings
from nnterp_mcp.toolset.run_prompts import SPEC
from nnterp_mcp.toolset.run_prompts.figure import figure
from nnterp_mcp.toolset.run_prompts.result import RunPromptsResult
from nnterp_mcp.worker.job import Job
from nnterp_mcp.worker.workbench import Bench
from tests.serving import Caller, text
from tests.toolset.test_make_vector import make_bench

PROMPTS = ["The capital of France is", "Madrid", "The capital of Spain is the city of", "Paris and London"]
TARGETS = {"capital": ["Paris", "Madrid"], "verb": "is"}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return make_bench(tmp_path_factory.mktemp("run_prompts"))


def ask(bench: Bench, send: Callable[[Progress], None] = lambda progress: None, **arguments: Any) -> RunPromptsResult:
    """Runs the tool as a worker does, the parameters sent over the wire."""
    from nnterp_mcp.toolset.run_prompts.run import run

    sent = SPEC.parse({"prompts": PROMPTS, "targets": TARGETS} | arguments)
    params = SPEC.params.model_validate(sent.model_dump(mode="json"))
    return SPEC.result.model_validate_json(run(bench, params, Job(1, send)).model_dump_json())


def plain_probabilities(bench: Bench, prompt: str) -> Any:
    import torch

    ids = bench.model.tokenizer(prompt)["input_ids"]
    with torch.no_grad():
        return bench.model.module(torch.tensor([ids])).logits[0, -1].double().softmax(-1)


def first_tokens(bench: Bench, words: str | list[str]) -> list[int]:
    tokenizer = bench.model.tokenizer
    listed = [words] if isinstance(words, str) else words
    forms = [form for word in listed for form in (word, f" {word}")]
    return sorted({tokenizer(form, add_special_tokens=False)["input_ids"][0] for form in forms})


def test_probabilities_and_ranks_are_those_of_plain_transformers(bench: Bench) -> None:
    result = ask(bench, batch_tokens=16)

    assert result.layers == [bench.model.num_layers - 1]
    assert len({row.tokens for row in result.rows}) > 2
    for prompt, row in zip(PROMPTS, result.rows, strict=True):
        expected = plain_probabilities(bench, prompt)
        assert row.text == prompt
        assert abs(row.top[0][1] - float(expected.max())) < 1e-5
        for index, words in enumerate(TARGETS.values()):
            tokens = first_tokens(bench, words)
            assert abs(row.probabilities[-1][index] - float(expected[tokens].sum())) < 1e-5
            assert row.ranks[-1][index] == 1 + int((expected > expected[tokens].max()).sum())


def test_each_prompt_may_have_targets_of_its_own(bench: Bench) -> None:
    words = ["Paris", "Madrid", "is", "of"]
    items = [{"prompt": prompt, "targets": {"own": word}} for prompt, word in zip(PROMPTS, words, strict=True)]
    result = ask(bench, prompts=items, targets={})
    listed = ask(bench, targets=[{"own": word} for word in words])
    assert listed.rows == result.rows
    with pytest.raises(InvalidRequest, match="targets has 2 mappings for 4 prompts: give one for all, or one for each"):
        ask(bench, targets=[{"own": "is"}] * 2)

    for prompt, word, row in zip(PROMPTS, words, result.rows, strict=True):
        expected = float(plain_probabilities(bench, prompt)[first_tokens(bench, word)].sum())
        assert abs(row.probabilities[-1][0] - expected) < 1e-5


def test_the_last_layer_of_every_readout_by_layer(bench: Bench) -> None:
    answers, lens = ask(bench), ask(bench, readout="logit_lens")

    assert lens.layers == list(range(bench.model.num_layers))
    for one, other in zip(answers.rows, lens.rows, strict=True):
        assert one.probabilities[-1] == pytest.approx(other.probabilities[-1], abs=1e-6)
    patched = ask(bench, readout="patchscope", layers=[1, 2])
    assert patched.layers == [1, 2]
    assert all(len(row.probabilities) == 2 for row in patched.rows)
    assert patched.rows[0].probabilities != patched.rows[2].probabilities


def test_interventions_are_in_force(bench: Bench) -> None:
    zeroed = [{"op": "zero", "site": "mlps_output", "layers": "all", "prompts": [1]}]
    plain, edited = ask(bench), ask(bench, interventions=zeroed)

    changed = [abs(one.top[0][1] - other.top[0][1]) > 1e-4 for one, other in zip(plain.rows, edited.rows, strict=True)]
    assert changed == [False, True, False, False]
    assert any(note.startswith("Active interventions:") for note in SPEC.digest(edited).notes)


def test_a_patchscope_s_target_prompt_runs_without_interventions(bench: Bench) -> None:
    import torch

    from nnterp_mcp.experiments.target_prompts import repeat_prompt

    tripled = [{"op": "scale", "site": "layers_output", "layers": 1, "factor": 3}]
    result = ask(bench, readout="patchscope", layers=[2], interventions=tripled)
    blocks, tokenizer = bench.model.module.model.layers, bench.model.tokenizer
    triple = blocks[1].register_forward_hook(lambda module, args, output: 3 * output)
    kept: list[Any] = []
    keep = blocks[2].register_forward_hook(lambda module, args, output: kept.append(output[0, -1].clone()))
    with torch.no_grad():
        for prompt in PROMPTS:
            bench.model.module(torch.tensor([tokenizer(prompt)["input_ids"]]))
    triple.remove()
    keep.remove()

    for state, row in zip(kept, result.rows, strict=True):

        def put(module: Any, args: Any, output: Any, state: Any = state) -> Any:
            output = output.clone()
            output[0, -1] = state
            return output

        patch = blocks[2].register_forward_hook(put)
        expected = plain_probabilities(bench, repeat_prompt().prompt)
        patch.remove()
        for index, words in enumerate(TARGETS.values()):
            assert abs(row.probabilities[0][index] - float(expected[first_tokens(bench, words)].sum())) < 1e-5
    said = (
        "Active interventions in the prompts, not in the target prompt: "
        "scale by 3 at layers_output, layer 1, all positions, every step."
    )
    assert said in SPEC.digest(result).notes
    assert said in figure(result, {}).notes
    assert any(
        note.startswith("Active interventions: ") for note in SPEC.digest(ask(bench, interventions=tripled)).notes
    )


def test_the_summary_counts_what_the_rows_say(bench: Bench) -> None:
    result = ask(bench)
    table = SPEC.digest(result).categories

    for index, row in enumerate(table.rows):
        values = [prompt.probabilities[-1][index] for prompt in result.rows]
        wins = sum(prompt.probabilities[-1][index] == max(prompt.probabilities[-1]) for prompt in result.rows)
        assert row[1] == pytest.approx(fmean(values))
        assert row[2] == pytest.approx(pstdev(values))
        assert row[3] == f"{100 * wins / len(values):g} %"


def test_progress_and_cancel(bench: Bench) -> None:
    told: list[Progress] = []
    ask(bench, told.append, batch_tokens=16)

    assert [progress.done for progress in told] == sorted(progress.done for progress in told)
    assert len(told) > 1
    assert told[-1].done == told[-1].total == len(PROMPTS)


def test_files(bench: Bench, tmp_path: Path) -> None:
    lines = [json.dumps({"prompt": prompt, "targets": {"capital": "Paris"}}) for prompt in PROMPTS]
    (tmp_path / "set.jsonl").write_text("\n".join(lines) + "\n\n")
    (tmp_path / "set.csv").write_text("prompt,capital\n" + "".join(f"{prompt},Paris\n" for prompt in PROMPTS))
    allowing = Bench(bench.handle, Settings(folders=(tmp_path,), data=bench.settings.data))
    allowing.place(bench.model)
    inline = ask(bench, targets={"capital": "Paris"})

    for name in ("set.jsonl", "set.csv"):
        found = ask(allowing, prompts={"path": str(tmp_path / name)}, targets={})
        assert [row.probabilities for row in found.rows] == [row.probabilities for row in inline.rows]
    with pytest.raises(Forbidden):
        ask(bench, prompts={"path": str(tmp_path / "set.jsonl")})
    with pytest.raises(Forbidden):
        ask(allowing, prompts={"path": str(tmp_path / ".." / "elsewhere.jsonl")})


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("set.txt", "a", "set.txt is no prompt file: give a .jsonl or .csv file."),
        ("set.jsonl", "\n", "set.jsonl: prompts is empty: give at least one prompt."),
        ("set.jsonl", '"a"\n{', "set.jsonl: line 2 is no JSON"),
        ("set.csv", "text\na\n", "set.csv: it has no column 'prompt', but 'text'."),
        ("set.jsonl", '""', "set.jsonl: prompt 0 is empty: give at least one token of text."),
        ("set.jsonl", "[" * 100_000 + "]" * 100_000, "set.jsonl: line 1 is no JSON (recursion limit exceeded"),
        ("set.jsonl", '"a"\n"' + "a" * (1 << 22), "set.jsonl: line 2 is longer than 4194304 characters."),
        ("set.csv", "prompt\n" + "a" * 131_073, "set.csv: line 2 is no CSV (field larger than field limit (131072))"),
        ("set.csv", "prompt,x\na,b,c\n", "set.csv: line 2 has 3 cells, and the header 2."),
        ("set.csv", "prompt,x,x\na,b,c\n", "set.csv: two of its columns have the same name."),
    ],
)
def test_files_that_are_no_prompt_sets(tmp_path: Path, name: str, content: str, reason: str) -> None:
    from nnterp_mcp.request.prompt_sets import read_prompt_file

    (tmp_path / name).write_text(content)
    with pytest.raises(InvalidRequest) as caught:
        read_prompt_file(tmp_path / name)
    assert caught.value.message.startswith(reason)


def test_files_are_read_as_they_were_written(tmp_path: Path) -> None:
    from nnterp_mcp.request.prompt_sets import read_prompt_file

    texts = ["a\u2028b", "c\u0085d", "e\x1ff"]
    (tmp_path / "set.jsonl").write_text(
        "\ufeff" + "\r\n".join(json.dumps({"prompt": one}, ensure_ascii=False) for one in texts), newline=""
    )
    (tmp_path / "set.csv").write_text("\ufeff,Unnamed: 0,prompt,answer\n0,7,a,x\n1,8,b,y\n")
    with collect_remarks() as said:
        lines = read_prompt_file(tmp_path / "set.jsonl")
        rows = read_prompt_file(tmp_path / "set.csv")

    assert [item.prompt for item in lines] == texts
    assert [(item.prompt, dict(item.targets)) for item in rows] == [
        ("a", {"answer": ("x",)}),
        ("b", {"answer": ("y",)}),
    ]
    assert list(said) == [
        "2 columns of the file ('', 'Unnamed: 0') without a name: taken for an index, not for targets."
    ]


def test_of_a_file_no_more_is_read_than_is_allowed(tmp_path: Path) -> None:
    from nnterp_mcp.request.prompt_sets import read_prompt_file

    (tmp_path / "set.jsonl").write_text('"a"\n' * 3 + "[" * 1000)
    with pytest.raises(LimitExceeded, match="holds more than the 2 prompts"):
        read_prompt_file(tmp_path / "set.jsonl", 2)


@pytest.mark.parametrize("prompts", [[], "", [""], 3, [{"text": "a"}], [{"prompt": "a", "targets": 3}], {"path": ""}])
def test_what_is_no_prompt_set(prompts: Any, snapshot: SnapshotAssertion) -> None:
    with pytest.raises(InvalidRequest) as caught:
        SPEC.parse({"prompts": prompts})
    assert caught.value.message == snapshot


def test_prompts_must_share_their_categories(bench: Bench) -> None:
    items = [{"prompt": "a", "targets": {"x": "b"}}, {"prompt": "a", "targets": {"y": "b"}}]
    with pytest.raises(InvalidRequest, match=r"prompt 1 has the target categories \['y'\]"):
        ask(bench, prompts=items, targets={})


@pytest.mark.smollm2
def test_the_answer_through_a_client(
    warm: Caller, count_tokens: Callable[[object], int], snapshot: SnapshotAssertion
) -> None:
    cities = {"France": "Paris", "Italy": "Rome", "England": "London", "Germany": "Berlin", "Japan": "Tokyo"}
    items = [
        {
            "prompt": f"The capital of {country} is",
            "targets": {"right": city, "wrong": [c for c in cities.values() if c != city]},
        }
        for country, city in cities.items()
    ]
    for arguments in ({}, {"readout": "logit_lens"}):
        answer = warm.call("run_prompts", prompts=items, **arguments)
        assert not answer.is_error
        assert text(answer) == snapshot
        assert count_tokens(text(answer)) <= 1000
        assert count_tokens(answer.structured_content) <= 1000


def test_large_answers_stay_small(count_tokens: Callable[[object], int]) -> None:
    from nnterp_mcp.toolset.run_prompts.result import PromptRow

    names = [f"a category with a long name {index}" for index in range(20)]
    row = PromptRow(
        text="word " * 300,
        tokens=300,
        top=[("=" * 60, 0.123456)],
        probabilities=[[0.0123456] * 20] * 80,
        ranks=[[12345] * 20] * 80,
    )
    result = RunPromptsResult(
        model="large",
        readout="logit_lens",
        layers=list(range(80)),
        categories=names,
        shared={f"{name} and another": ["x"] for name in names},
        interventions=[],
        rows=[row] * 500,
        asked=500,
        taken=0,
        seconds=3.0,
    )
    answer: Answer = SPEC.digest(result)
    assert count_tokens(answer.text()) <= 2000
    assert count_tokens(rounded(answer.model_dump(mode="json"))) <= 2000


def test_a_prompt_gets_the_same_whatever_else_is_in_the_call(bench: Bench) -> None:
    mean = {"op": "mean", "site": "mlps_output", "layers": 1, "positions": "last", "over": PROMPTS[:2]}
    whole, alone = ask(bench, interventions=[mean]), ask(bench, prompts=PROMPTS[-1:], interventions=[mean])

    assert whole.rows[-1].probabilities[0] == pytest.approx(alone.rows[0].probabilities[0], abs=1e-6)
    assert whole.rows[-1].probabilities != ask(bench).rows[-1].probabilities


def test_a_mean_names_its_prompts(bench: Bench) -> None:
    mean: dict[str, Any] = {"op": "mean", "site": "mlps_output", "layers": 1}
    with pytest.raises(InvalidRequest, match="mean needs the field 'over'"):
        ask(bench, interventions=[mean])
    with pytest.raises(InvalidRequest, match="as many positions in each prompt"):
        ask(bench, prompts=["a", "a b c d e"], interventions=[mean | {"over": "all"}])


def test_the_depth_at_which_an_answer_appears(bench: Bench) -> None:
    from nnterp_mcp.toolset.logit_lens import SPEC as LENS
    from nnterp_mcp.toolset.logit_lens.run import run

    lens = run(bench, LENS.parse({"prompts": PROMPTS}), Job(1, lambda progress: None))
    result = ask(bench, readout="logit_lens")
    table = SPEC.digest(result).examples

    assert [row.leads_from for row in result.rows] == [reading.leads_from for reading in lens.readings]
    shown = {row[0]: row[table.columns.index("on top from layer")] for row in table.rows}
    assert shown == {number: result.rows[number].leads_from for number in shown}
    assert "on top from layer" not in SPEC.digest(ask(bench)).examples.columns


def test_a_target_longer_than_a_token_is_named(bench: Bench) -> None:
    with collect_remarks() as remarks:
        ask(bench, targets={"answer": ["Abracadabra", "a"]})
    assert any(
        note.startswith('Counted by the first token, with any other text that begins so: "Abracadabra" by ')
        for note in remarks
    )
    assert not any('"a" by' in note for note in remarks)


@pytest.fixture(scope="module")
def lens_file(bench: Bench) -> str:
    from nnterp_mcp import Workload, fit_jacobian, save_lens

    texts = bench.encode(["The mill on the second bend of the river was built"])
    path = bench.settings.folders[0] / "own.safetensors"
    save_lens(fit_jacobian(bench.model, Workload(texts), [0, 1, 2], skip=2).lens(), path)
    return str(path)


def test_lenses_are_compared_with_controls_by_the_ranks_of_the_targets(bench: Bench, lens_file: str) -> None:
    import torch

    from nnterp_mcp import Workload, random_like, read_lens, read_lens_file, shuffled

    found = ask(bench, readout="logit_lens", lens=lens_file)

    own = read_lens_file(Path(lens_file))
    words = [first_tokens(bench, words) for words in TARGETS.values()]
    work, layers = Workload(bench.encode(PROMPTS)), range(bench.model.num_layers)
    ends = [[len(prompt.ids) - 1] for prompt in work.prompts]
    assert [lens.lens for lens in found.lenses if lens.category == "capital"] == [
        "own.safetensors",
        "logit lens",
        "own.safetensors, other layers' maps",
        "own.safetensors, random maps",
    ]
    for at, translation in enumerate((own, None, shuffled(own), random_like(own))):
        plain = read_lens(bench.model, work, ends, layers, categories=[words] * len(PROMPTS), translation=translation)
        ranks = torch.tensor([(row.lens_ranks or [])[at] for row in found.rows])
        assert torch.equal(ranks, plain.readout.target_ranks)
        share = (ranks[..., 0] <= 10).double().mean(0)
        assert [layer.mean for layer in found.lenses[at].in_top] == pytest.approx(share.tolist())
    assert found.rows[0].ranks == (found.rows[0].lens_ranks or [])[0]
    assert found.lenses[1].gain.mean == 0
    answer = SPEC.digest(found)
    assert answer.lenses is not None
    assert "By the Jacobian lens 'own.safetensors' (fitted on 1 prompt)" in answer.finding


def test_of_identities_nothing_is_gained(bench: Bench) -> None:
    import torch

    from nnterp_mcp import LensTranslation, save_lens

    path = bench.settings.folders[0] / "identity.safetensors"
    save_lens(LensTranslation("jacobian", {at: torch.eye(bench.model.hidden_size) for at in range(3)}, {}), path)
    plain = ask(bench, readout="logit_lens")

    found = ask(bench, readout="logit_lens", lens=[str(path)])

    assert [row.probabilities for row in found.rows] == [row.probabilities for row in plain.rows]
    for row in found.rows:
        assert row.lens_ranks is not None
        assert row.lens_ranks[0] == row.lens_ranks[1] == row.lens_ranks[2]
    assert [lens.gain.mean for lens in found.lenses[:3]] == [0, 0, 0]


def test_lenses_that_cannot_be_compared_are_refused(bench: Bench, lens_file: str) -> None:
    with pytest.raises(InvalidRequest, match='lens is for readout="logit_lens"'):
        ask(bench, lens=lens_file)
    with pytest.raises(InvalidRequest, match="the logit lens is read next to them"):
        ask(bench, readout="logit_lens", lens="logit")
    assert ask(bench, readout="logit_lens", lens=lens_file, targets={}).lenses == []
