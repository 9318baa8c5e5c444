"""The tool `inspect_model`: both names, shapes, sites and code, against the model itself."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest
from syrupy.assertion import SnapshotAssertion

from nnterp_mcp.errors import InvalidRequest, NnterpError, Unsupported
from nnterp_mcp.formatting import magnitude, ranges, rounded
from nnterp_mcp.request.sites import SITES
from nnterp_mcp.settings import Settings
from nnterp_mcp.toolset.inspect_model import SPEC
from nnterp_mcp.toolset.inspect_model.result import InspectModelAnswer, InspectModelResult
from nnterp_mcp.worker.job import Job
from nnterp_mcp.worker.workbench import Bench
from tests import serving

# What brings nnsight in is imported where it is used: pydantic models that are defined after it break.

FAMILIES = ("gpt2", "llama", "gemma2", "gpt_neox", "bloom", "gpt_oss", "qwen3_next", "nemotron_h", "mixtral", "opt")


def tiny_bench(family: str) -> Bench:
    from nnterp_mcp.model.standardized import StandardizedTransformer
    from nnterp_mcp.verification.tiny import tiny_model, tiny_tokenizer

    return Bench(
        family, Settings(), StandardizedTransformer(tiny_model(family), tokenizer=tiny_tokenizer(), name=family)
    )


@pytest.fixture(scope="module", params=FAMILIES)
def bench(request: pytest.FixtureRequest) -> Bench:
    return tiny_bench(request.param)


@pytest.fixture(scope="module")
def llama() -> Bench:
    return tiny_bench("llama")


@pytest.fixture(scope="module")
def hybrid() -> Bench:
    return tiny_bench("qwen3_next")


def ask(bench: Bench, **arguments: Any) -> InspectModelResult:
    from nnterp_mcp.toolset.inspect_model.run import run

    result = run(bench, SPEC.parse(arguments), Job(1, lambda progress: None))
    return InspectModelResult.model_validate_json(result.model_dump_json())


def channels(answer: InspectModelAnswer) -> tuple[str, str]:
    return answer.text(), json.dumps(rounded(answer.structured()), ensure_ascii=False)


def test_the_tree_counts_every_parameter_once_per_layer(bench: Bench):
    module, result = bench.model.module, ask(bench)

    assert result.parameters == sum(parameter.numel() for parameter in module.parameters())
    top = [line for line in result.tree if line.depth == 0]
    assert {line.path for line in top} == {name for name, child in module.named_children() if list(child.parameters())}
    for line in result.tree:
        path = line.path
        if not path.startswith(".") and path in dict(module.named_modules()):
            found = module.get_submodule(path)
            assert line.kind == type(found).__name__
            assert line.parameters == sum(parameter.numel() for parameter in found.parameters())


def test_both_names_lead_to_one_module(bench: Bench):
    model = bench.model
    standard = {"embed_tokens": model.anatomy.embed_tokens, "ln_final": model.anatomy.ln_final}
    standard |= {"lm_head": model.anatomy.lm_head, "layers": model.anatomy.layers_module}
    for layer in model.anatomy.layers:
        standard |= {
            f"layers[{layer.index}]": layer.block,
            f"layers[{layer.index}].self_attn": layer.attention,
            f"layers[{layer.index}].mlp": layer.mlp,
        }
    for name, site in standard.items():
        if site is None:
            continue
        by_name, by_path = ask(bench, path=name), ask(bench, path=site.path)
        assert by_name == by_path
        assert by_name.path == site.path
        assert by_name.standard in (name, None if name == site.path else name)
        assert by_name.kind == type(site.module).__name__
        for child, _ in site.module.named_children():
            assert ask(bench, path=f"{name}.{child}").path == f"{site.path}.{child}"


def test_every_layer_is_in_one_group_with_its_sites(bench: Bench):
    from nnterp_mcp.engine.hook_points import Place, require_place

    model, groups = bench.model, ask(bench).layers
    assert sorted(layer for group in groups for layer in group.layers) == list(range(model.num_layers))
    for group in groups:
        assert sorted([*group.sites, *group.lacking], key=SITES.index) == list(SITES[1:])
        for layer in group.layers:
            facts = model.anatomy.layers[layer]
            assert (group.kind, group.heads) == (facts.kind, facts.num_heads)
            assert (group.product is None) == (facts.product is None)
            for site in group.lacking:
                with pytest.raises(Unsupported):
                    require_place(model, Place(site, layer))


def test_probabilities_multiply_values_in_the_line_that_is_named(bench: Bench):
    result = ask(bench, source=True)
    assert result.source is not None
    assert result.source.product is not None
    line = result.source.lines[result.source.product - result.source.first]
    code, number = next(layer.product for layer in bench.model.anatomy.layers if layer.product)

    assert number == result.source.product
    assert Path(code.co_filename).read_text().splitlines()[number - 1].strip() == line.strip()
    assert any(word in line for word in ("matmul", "bmm", "einsum", "@"))
    assert f"{number}>" in SPEC.digest(result).text()


def test_forward_code_is_the_class_s_own(bench: Bench):
    result = ask(bench, path="layers[-1]", source=True)
    block = bench.model.anatomy.layers[-1].block.module
    lines, first = inspect.getsourcelines(inspect.unwrap(type(block).forward))

    assert result.source is not None
    assert [line.strip() for line in result.source.lines] == [line.strip() for line in lines]
    assert result.source.first == first
    assert result.source.function == f"{type(block).__name__}.forward"


def test_code_is_paged_without_loss(llama: Bench):
    whole = ask(llama, path="model", source=True).source
    assert whole is not None
    seen: dict[int, str] = {}
    start: int | None = None
    while True:
        answer = SPEC.digest(ask(llama, path="model", source=True, **({"start": start} if start else {})))
        assert answer.source is not None
        for text in answer.source.splitlines():
            number = int("".join(character for character in text[:6] if character.isdigit()))
            seen[number] = text[len(str(number)) + 1 :]
        following = [note for note in answer.notes if "ask with start=" in note]
        if not following:
            break
        start = int(following[0].rpartition("start=")[2].rstrip("."))
    assert list(seen.values()) == [line.rstrip() for line in whole.lines]
    assert list(seen) == list(range(whole.first, whole.first + len(whole.lines)))


def test_what_is_shared_is_said(llama: Bench):
    head = ask(tiny_bench("gpt2"), path="lm_head")
    assert head.tensors == {"weight": "320×64 (that of embed_tokens)"}
    assert ask(llama, path="lm_head").tensors == {"weight": "320×64"}


@pytest.mark.parametrize(
    "path", ["layers[1, 3].self_attn", "layers[1].self_attn", "layers.1.self_attn", "layers[-3].self_attn"]
)
def test_layers_are_named_as_the_tree_names_them(hybrid: Bench, path: str):
    assert ask(hybrid, path=path).path == "model.layers.1.self_attn"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"path": "layers[3].attn"},
            "the module 'layers[3].attn' does not exist in llama: layers[3] has self_attn, mlp, input_layernorm, "
            "post_attention_layernorm.",
        ),
        ({"path": "layers[9]"}, "the module 'layers[9]' does not exist in llama: layers has 0 to 3."),
        ({"path": "transformer.h"}, "the module 'transformer.h' does not exist in llama: llama has model, lm_head."),
        (
            {"path": "ln_final.weight"},
            "the module 'ln_final.weight' does not exist in llama: ln_final has no modules below it.",
        ),
        ({"path": "layers[0]", "start": 1}, "line 1 is not in LlamaDecoderLayer.forward, which has lines"),
        ({"path": ""}, "path: string should have at least 1 character, not ''."),
    ],
)
def test_refusals(llama: Bench, arguments: dict[str, Any], message: str):
    with pytest.raises(InvalidRequest) as raised:
        ask(llama, **arguments)
    assert raised.value.message.startswith(message)


def test_a_model_without_attention():
    bench = tiny_bench("mamba")
    answer = SPEC.digest(ask(bench))

    assert any(note.startswith("Refused: mamba: no layer forms attention probabilities") for note in answer.notes)
    with pytest.raises(NnterpError, match="no layer of mamba forms attention probabilities"):
        ask(bench, source=True)


def test_numbers_in_short():
    assert ranges([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"
    assert ranges(range(0, 60, 2)) == "0, 2, 4, 6, … 58 (30)"
    assert [magnitude(count) for count in (576, 36_864, 134_515_008, 7_241_732_096)] == [
        "576",
        "36.86 k",
        "134.5 M",
        "7.242 G",
    ]


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3_next", "nemotron_h", "mixtral"])
def test_says(family: str, snapshot: SnapshotAssertion):
    said = SPEC.digest(ask(tiny_bench(family))).text()

    # Lines move with every version of transformers; that the right ones are named is tested above.
    assert re.sub(r"(\.py line )\d+", r"\1N", said) == snapshot


def test_says_of_a_module(llama: Bench, snapshot: SnapshotAssertion):
    assert SPEC.digest(ask(llama, path="layers[2].self_attn")).text() == snapshot


@pytest.mark.smollm2
def test_a_client_looks_around(smollm2_folder: Path, warm: serving.Caller):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2_folder)
    for arguments in ({}, {"path": "layers[3].self_attn"}, {"source": True}, {"path": "model", "source": True}):
        result = warm.call("inspect_model", **arguments)
        said, facts = serving.text(result), json.dumps(result.structured_content, ensure_ascii=False)

        assert not result.is_error, said
        assert len(tokenizer(said)["input_ids"]) <= 1000
        assert len(tokenizer(facts)["input_ids"]) <= 1000
    assert "layers[0-29] | model.layers.0-29 | LlamaDecoderLayer" in serving.text(warm.call("inspect_model"))
