from __future__ import annotations

import math
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from nnterp_mcp import Laboratory
from nnterp_mcp.engine.hook_points import Place
from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.experiments.comparison.activations import compare_activations, shared_places
from nnterp_mcp.experiments.comparison.exchange_grid import patch_across
from nnterp_mcp.experiments.comparison.mean_difference import read_by_lens, read_by_patchscope, steer_towards
from nnterp_mcp.experiments.comparison.predictions import compare_predictions
from nnterp_mcp.experiments.comparison.random_change import change_at_random
from nnterp_mcp.experiments.comparison.sides import AlignedPrompt, ComparedModel, align_by_text
from nnterp_mcp.experiments.comparison.weights import compare_weights
from nnterp_mcp.model.loading.adapters import adapt
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.text.tokenization import EncodedPrompt, encode_prompts
from nnterp_mcp.toolset.compare_models import SPEC
from nnterp_mcp.toolset.compare_models.result import CompareModelsResult
from nnterp_mcp.verification.tiny import tiny_model, tiny_tokenizer
from tests.adapters import peft, write_adapter
from tests.serving import stdio, text

LAYER = 2
TEXTS = ("The capital of France is", "one two three")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[StandardizedTransformer, StandardizedTransformer, Any]:
    """A base, the base with a rank-one change in the MLP of one layer, and that in PEFT, merged."""
    folder = tmp_path_factory.mktemp("planted") / "one"
    write_adapter(tiny_model("llama"), folder, r=1, target_modules=["down_proj"], layers_to_transform=[LAYER])
    merged = peft.PeftModel.from_pretrained(tiny_model("llama"), folder).merge_and_unload().eval()
    base = StandardizedTransformer(tiny_model("llama"), tokenizer=tiny_tokenizer(), name="base")
    return base, adapt(base, folder, name="changed")[0], merged


def prompts_of(model: StandardizedTransformer) -> list[EncodedPrompt]:
    return encode_prompts(model.tokenizer, TEXTS, "tiny")


def aligned(model: StandardizedTransformer) -> list[AlignedPrompt]:
    return [align_by_text(prompt, prompt) for prompt in prompts_of(model)]


WORK = Workload(())


def outputs(
    model: Any, ids: list[int], replaced: tuple[nn.Module, Tensor] | None = None
) -> tuple[Tensor, list[Tensor]]:
    """The log-probabilities and the output of each layer and MLP of a plain model, by plain hooks."""
    states: list[Tensor] = []
    hooks = [
        module.register_forward_hook(lambda module, args, output: states.append(output))
        for layer in model.model.layers
        for module in (layer.mlp, layer)
    ]
    if replaced is not None:
        hooks.append(replaced[0].register_forward_hook(lambda module, args, output: replaced[1]))
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0]
    for hook in hooks:
        hook.remove()
    return logits.log_softmax(-1), states


def test_what_changed_equals_plain_hooks(
    pair: tuple[StandardizedTransformer, StandardizedTransformer, Any],
) -> None:
    base, model, merged = pair
    plain, prompts = tiny_model("llama").eval(), prompts_of(model)
    sides = ComparedModel(base), ComparedModel(model)
    found = compare_predictions(*sides, aligned(model), WORK)
    changes = {change.place: change for change in compare_activations(*sides, aligned(model), WORK)}
    sums = {place: [0.0, 0.0] for place in changes}
    for prompt, predicted in zip(prompts, found, strict=True):
        (old, before), (new, after) = (outputs(one, prompt.ids) for one in (plain, merged))
        torch.testing.assert_close(predicted.divergence, (new.exp() * (new - old)).sum(-1), rtol=1e-3, atol=1e-5)
        assert predicted.top.tolist() == new.argmax(-1).tolist()
        for place in changes:
            if place.site != "attentions_output":
                at = 2 * (place.layer or 0) + (place.site == "layers_output")
                one, other = before[at][0, 1:], after[at][0, 1:]
                sums[place][0] += float(((other - one).norm(dim=-1) / one.norm(dim=-1)).sum())
                sums[place][1] += float(torch.cosine_similarity(one, other, dim=-1).sum())
    for place, (change, cosine) in sums.items():
        if place.site != "attentions_output":
            assert changes[place].change == pytest.approx(change, rel=1e-4, abs=1e-5), place
            assert changes[place].cosine == pytest.approx(cosine, rel=1e-5), place


def test_a_planted_change_is_found_where_it_is(
    pair: tuple[StandardizedTransformer, StandardizedTransformer, Any],
) -> None:
    base, model, merged = pair
    (weight,) = compare_weights(base.module, model.module)
    changed = merged.model.layers[LAYER].mlp.down_proj.weight - base.module.model.layers[LAYER].mlp.down_proj.weight
    assert weight.path == f"model.layers.{LAYER}.mlp.down_proj"
    assert weight.rank == 1
    assert weight.norm == pytest.approx(float(changed.norm()), rel=1e-5)
    (plainly,) = compare_weights(base.module, merged)
    assert (plainly.path, plainly.rank) == (weight.path, 1)
    assert plainly.norm == pytest.approx(weight.norm, rel=1e-5)
    stream = [
        change
        for change in compare_activations(ComparedModel(base), ComparedModel(model), aligned(model), WORK)
        if change.place.site == "layers_output"
    ]
    assert [change.change == 0 for change in stream] == [change.place.layer < LAYER for change in stream]  # pyright: ignore
    assert [change.made > 0 for change in stream] == [change.place.layer == LAYER for change in stream]
    assert stream[LAYER].came == 0
    assert stream[LAYER + 1].came == pytest.approx(stream[LAYER + 1].change)
    assert weight.written is not None
    assert abs(float(torch.cosine_similarity(stream[LAYER].mean_difference, weight.written, dim=0))) > 0.999


def test_activations_of_the_other_model_carry_the_behaviour_over(
    pair: tuple[StandardizedTransformer, StandardizedTransformer, Any],
) -> None:
    base, model, merged = pair
    plain, prompt, places = tiny_model("llama").eval(), prompts_of(model)[0], shared_places(base, model)
    apart, values = patch_across(ComparedModel(model), ComparedModel(base), prompt, places, WORK)
    new, states = outputs(merged, prompt.ids)
    for place, value in zip(places, values.tolist(), strict=True):
        layer = plain.model.layers[place.layer or 0]
        if place.site == "mlps_output":
            patched, _ = outputs(plain, prompt.ids, (layer.mlp, states[2 * (place.layer or 0)]))
            expected = float((new[-1].exp() * (new[-1] - patched[-1])).sum())
            assert value == pytest.approx(expected, rel=1e-3, abs=1e-5)
        carried = (place.layer or 0) >= LAYER if place.site == "layers_output" else place == ("mlps_output", LAYER)
        assert (value < 1e-6) == carried, place
    assert apart > 1e-3


def test_another_fine_tune_is_patched_towards_the_model(
    pair: tuple[StandardizedTransformer, StandardizedTransformer, Any], tmp_path: Path
) -> None:
    base, model, merged = pair
    write_adapter(tiny_model("llama"), tmp_path / "two", r=1, target_modules=["o_proj"], layers_to_transform=[LAYER])
    other = adapt(base, tmp_path / "two", name="other")[0]
    plainly = peft.PeftModel.from_pretrained(tiny_model("llama"), tmp_path / "two").merge_and_unload().eval()
    plain, prompt = tiny_model("llama").eval(), prompts_of(model)[0]
    places = [Place("mlps_output", layer) for layer in range(base.num_layers)]
    _, values = patch_across(ComparedModel(other), ComparedModel(base), prompt, places, WORK, ComparedModel(model))
    new, _ = outputs(merged, prompt.ids)
    _, states = outputs(plainly, prompt.ids)
    for layer, value in enumerate(values.tolist()):
        patched, _ = outputs(plain, prompt.ids, (plain.model.layers[layer].mlp, states[2 * layer]))
        expected = float((new[-1].exp() * (new[-1] - patched[-1])).sum())
        assert value == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_a_mean_difference_is_read_and_steered_as_by_plain_hooks(
    pair: tuple[StandardizedTransformer, StandardizedTransformer, Any],
) -> None:
    base, model, merged = pair
    plain, prompts = tiny_model("llama").eval(), prompts_of(model)
    states = [(outputs(plain, prompt.ids)[1], outputs(merged, prompt.ids)[1]) for prompt in prompts]
    moved = [new[2 * LAYER + 1][0] - old[2 * LAYER + 1][0] for old, new in states]
    found = {
        change.place: change
        for change in compare_activations(ComparedModel(base), ComparedModel(model), aligned(model), WORK)
    }
    change = found[Place("layers_output", LAYER)]
    torch.testing.assert_close(change.mean_difference, torch.cat([rows[1:] for rows in moved]).mean(0))
    torch.testing.assert_close(change.early_difference, torch.cat([rows[1:5] for rows in moved]).mean(0))
    vector = change.mean_difference

    ((token, p), *_) = read_by_lens(model, vector[None], 3)[0]
    expected = merged.lm_head(merged.model.norm(vector)).softmax(-1)
    assert (token, p) == (int(expected.argmax()), pytest.approx(float(expected.max()), rel=1e-4))

    repeat = model.tokenizer("king king\n1135 1135\nhello hello\n?")["input_ids"]
    _, replaced = outputs(merged, repeat)
    put = replaced[2 * LAYER + 1].clone()
    put[0, -1] = vector * put[0, -1].norm() / vector.norm()
    said = outputs(merged, repeat, (merged.model.layers[LAYER], put))[0][-1].exp()
    (((token, p), *_),), ((alone, _), *_) = read_by_patchscope(model, vector[None], [LAYER], 3, 256)
    assert (token, p) == (int(said.argmax()), pytest.approx(float(said.max()), rel=1e-4))
    assert alone == int(outputs(merged, repeat)[0][-1].argmax())

    nothing, (effect,) = steer_towards(
        ComparedModel(base), ComparedModel(model), prompts, change.place, vector, [2.0], 1, WORK
    )
    expected_kl = [[], []]
    for prompt, (old, _) in zip(prompts, states, strict=True):
        wanted = outputs(merged, prompt.ids)[0][-1]
        for kept, added in zip(expected_kl, (0 * vector, 2 * vector), strict=True):
            steered = (plain.model.layers[LAYER], old[2 * LAYER + 1] + added)
            kept.append(float((wanted.exp() * (wanted - outputs(plain, prompt.ids, steered)[0][-1])).sum()))
    assert nothing == pytest.approx(sum(expected_kl[0]) / 2, rel=1e-3)
    assert effect.kl == pytest.approx(sum(expected_kl[1]) / 2, rel=1e-3)
    assert effect.kl != effect.random > 0


def test_the_random_change_has_the_norm_and_the_rank(
    pair: tuple[StandardizedTransformer, StandardizedTransformer, Any],
) -> None:
    base, model, _ = pair
    (weight,) = compare_weights(base.module, model.module)
    control, left = change_at_random(base, [weight])
    inner: Any = base.module.get_submodule(weight.path)
    unit = torch.eye(inner.in_features)
    with torch.no_grad():
        drawn = control.module.get_submodule(weight.path)(unit) - inner(unit)
    assert left == 0
    assert float(drawn.norm()) == pytest.approx(weight.norm, rel=1e-3)
    assert int((torch.linalg.svdvals(drawn) > 1e-3 * weight.norm).sum()) == 1
    assert inner is base.module.get_submodule(weight.path)


def test_models_that_do_not_correspond_are_refused(
    pair: tuple[StandardizedTransformer, StandardizedTransformer, Any],
) -> None:
    base, model, _ = pair
    shorter = tiny_model("llama")
    shorter.model.layers = shorter.model.layers[:3]
    other = StandardizedTransformer(shorter, tokenizer=tiny_tokenizer(), name="other")
    with pytest.raises(
        InvalidRequest,
        match="base is a LlamaForCausalLM with 4 layers of width 64 and other is a LlamaForCausalLM with 3",
    ):
        compare_activations(ComparedModel(base), ComparedModel(other), aligned(model), WORK)


def test_the_tool_over_a_server(tiny: Callable[..., Path], tmp_path: Path) -> None:
    write_adapter(tiny_model("llama"), tmp_path / "persona", r=1, target_modules=["down_proj"], layers_to_transform=[1])
    with stdio() as client:
        client.call("load_model", model=str(tiny("llama")), adapter=str(tmp_path / "persona"))
        compared = client.call("compare_models", model="tiny-llama+persona", prompts=list(TEXTS))
        itself = client.call("compare_models", model="tiny-llama", prompts=TEXTS[0])
        client.call("load_model", model=str(tiny("llama", seed=1)))
        others = client.call("compare_models", model="tiny-llama", base="tiny-llama-seed-1", parts=["predictions"])
        missing = client.call("compare_models", model="tiny-llama", base="nothing")
    assert not compared.is_error, text(compared)
    said = text(compared)
    assert "activations differ from layer 1 on, and layer 1 makes most of it" in said
    assert "1 weight differs, most model.layers.1.mlp.down_proj" in said
    assert "its mlps_output of layer 1 in the base recovers 100 % of its predictions" in said
    assert "mean KL 0 nats, the top token changes at 0 % of positions; no activation differs; 0 weights differ" in text(
        itself
    )
    assert not others.is_error, text(others)
    assert "tiny-llama against " in text(others)
    assert text(missing).startswith("no_model: no loaded model has the handle 'nothing'")


def test_another_fine_tune_stands_next_to_the_model(tiny: Callable[..., Path]) -> None:
    lab = Laboratory(tiny("llama"))
    asked = {"base": str(tiny("llama", seed=1)), "prompts": TEXTS[0], "parts": ["predictions", "activations"]}
    result = lab.call("compare_models", **asked, other=str(tiny("llama", seed=2)))
    assert isinstance(result, CompareModelsResult)
    ids = tiny_tokenizer()(TEXTS[0])["input_ids"]
    (old, before), (new, after) = (outputs(tiny_model("llama", seed=seed).eval(), ids) for seed in (1, 2))
    expected = (new.exp() * (new - old)).sum(-1).tolist()
    assert [one.other for one in result.positions] == pytest.approx(expected, rel=1e-3)
    for place in (one for one in result.places if one.site == "layers_output"):
        one, other = (states[2 * place.layer + 1][0, 1:] for states in (before, after))
        change = float(((other - one).norm(dim=-1) / one.norm(dim=-1)).mean())
        assert place.other == pytest.approx(change, rel=1e-4)
    with pytest.raises(InvalidRequest, match="one of the two models"):
        lab.call("compare_models", **asked, other=asked["base"])


@pytest.mark.slow
def test_the_tool_names_another_fine_tune_and_takes_it_as_a_control(tiny: Callable[..., Path], tmp_path: Path) -> None:
    for name, target in (("one", "down_proj"), ("two", "o_proj")):
        write_adapter(tiny_model("llama"), tmp_path / name, r=1, target_modules=[target], layers_to_transform=[1])
    asked: dict[str, Any] = {"model": "tiny-llama+one", "prompts": list(TEXTS)}
    with stdio() as client:
        for name in ("one", "two"):
            client.call("load_model", model=str(tiny("llama")), adapter=str(tmp_path / name))
        alone = client.call("compare_models", **asked, parts="predictions")
        beside = client.call("compare_models", **asked, other="tiny-llama+two")
        base = client.call("compare_models", **asked, other="tiny-llama")
    assert "As a control, other could name tiny-llama+two." in text(alone)
    assert not beside.is_error, text(beside)
    said = text(beside)
    assert "As a control" not in said
    for header in ("KL | random | other", "random | other", "cosine to other", "other into base", "| other\n"):
        assert header in said, header
    assert ", tiny-llama+two: " in said
    assert text(base).startswith("invalid_request: other is tiny-llama, the base itself.")


def test_a_laboratory_compares_with_its_base(tmp_path: Path) -> None:
    folder = write_adapter(tiny_model("llama"), tmp_path / "one", r=1, target_modules=["o_proj"], use_dora=True)
    tiny_model("llama").save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    lab = Laboratory(tmp_path / "base", adapter=folder)
    result = lab.call("compare_models", prompts=TEXTS[0], parts=["weights", "activations"])
    assert isinstance(result, CompareModelsResult)
    assert {module.module for module in result.modules} == {f"model.layers.{at}.self_attn.o_proj" for at in range(4)}
    lab.figure(result).save(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 1000


def other_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer that merges other letters, and begins no text with a token of its own."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    special, alphabet = ["<pad>", "<bos>", "<eos>"], pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=280, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(["The capital of Italy is in Spain is one two"], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")


def test_models_with_other_tokens_are_compared_by_text() -> None:
    plain, tokenizers = (
        [tiny_model("llama", seed=seed).eval() for seed in (0, 1)],
        (tiny_tokenizer(), other_tokenizer()),
    )
    base, model = (
        StandardizedTransformer(tiny_model("llama", seed=seed), tokenizer=tokenizer, name="tiny")
        for seed, tokenizer in enumerate(tokenizers)
    )
    ids = [tokenizer(TEXTS[0])["input_ids"] for tokenizer in tokenizers]
    prompt = align_by_text(*(encode_prompts(one, TEXTS[:1], "tiny")[0] for one in tokenizers))
    read = [
        [one.decode(tokens[: at + 1], skip_special_tokens=True) for at in positions]
        for one, tokens, positions in zip(tokenizers, ids, zip(*prompt.pairs, strict=True), strict=True)
    ]
    ahead = [
        {str(one.decode(tokens[: at + 1], skip_special_tokens=True)) for at in range(len(tokens))}
        for one, tokens in zip(tokenizers, ids, strict=True)
    ]
    assert read[0] == read[1] == sorted((ahead[0] & ahead[1]) - {""}, key=len)
    assert len(read[0]) < len(ids[0]) != len(ids[1])

    (found,) = compare_predictions(ComparedModel(base), ComparedModel(model), [prompt], WORK)
    logs = [outputs(one, tokens)[0] for one, tokens in zip(plain, ids, strict=True)]
    pieces = [one.get_vocab() for one in tokenizers]
    shared = sorted(pieces[0].keys() & pieces[1].keys() - {"<pad>", "<bos>"})
    for row, pair in enumerate(prompt.pairs):
        old, new = (
            log[at][[piece[name] for name in shared]] for log, at, piece in zip(logs, pair, pieces, strict=True)
        )
        assert float(found.base_shared[row]) == pytest.approx(float(old.exp().sum()), rel=1e-4)
        assert float(found.shared[row]) == pytest.approx(float(new.exp().sum()), rel=1e-4)
        expected = float((new.softmax(-1) * (new.log_softmax(-1) - old.log_softmax(-1))).sum())
        assert float(found.divergence[row]) == pytest.approx(expected, rel=1e-3, abs=1e-5)
    bits = [
        [float(-log[at, tokens[at + 1]]) / math.log(2) for at in range(len(tokens) - 1)]
        for log, tokens in zip(logs, ids, strict=True)
    ]
    for row, ((begin, other_begin), (end, other_end)) in enumerate(pairwise(prompt.pairs)):
        assert float(found.base_surprise[row]) == pytest.approx(sum(bits[0][begin:end]), rel=1e-4)
        assert float(found.surprise[row]) == pytest.approx(sum(bits[1][other_begin:other_end]), rel=1e-4)

    states = [outputs(one, tokens)[1] for one, tokens in zip(plain, ids, strict=True)]
    changes = {one.place: one for one in compare_activations(ComparedModel(base), ComparedModel(model), [prompt], WORK)}
    for layer in range(base.num_layers):
        old, new = (
            rows[2 * layer + 1][0, list(at)] for rows, at in zip(states, zip(*prompt.pairs, strict=True), strict=True)
        )
        change = changes[Place("layers_output", layer)]
        assert change.mean(change.change) == pytest.approx(
            float(((new - old).norm(dim=-1) / old.norm(dim=-1))[int(prompt.pairs[0][1] == 0) :].mean()), rel=1e-4
        )
        assert not change.split


def test_the_tool_compares_models_with_other_tokens(tiny: Callable[..., Path], tmp_path: Path) -> None:
    tiny_model("gpt2").save_pretrained(tmp_path / "gpt2")
    other_tokenizer().save_pretrained(tmp_path / "gpt2")
    lab = Laboratory(tiny("llama"))
    result = lab.call("compare_models", base=str(tmp_path / "gpt2"), prompts=list(TEXTS))
    assert isinstance(result, CompareModelsResult)
    assert (result.by_text, result.parts) == (True, ["predictions", "texts"])
    assert result.left_out == ["activations", "weights", "difference", "patching"]
    said = SPEC.summarize(result).text()
    assert re.search(r"bits per character against [\d.]+, the top token contradicts the base's at", said)
    assert "The models are built otherwise: activations, weights, difference, patching are not compared." in said
    with pytest.raises(InvalidRequest, match="their activations and weights do not correspond"):
        lab.call("compare_models", base=str(tmp_path / "gpt2"), parts="patching")
    lab.figure(result).save(tmp_path / "figure.png")
