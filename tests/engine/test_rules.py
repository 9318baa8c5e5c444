"""The rules of the page on interventions, each against plain transformers with plain hooks."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import nnsight
import pytest
import torch
from torch import Tensor

from nnterp_mcp.engine.forward import Capture, forward
from nnterp_mcp.engine.generation import Generation, generate
from nnterp_mcp.engine.hook_points import Place
from nnterp_mcp.engine.planning.plan import check, plan
from nnterp_mcp.engine.readouts.reductions import take_all
from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.experiments.attribution.gradients import multiply_gradients
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.text.tokenization import EncodedPrompt, encode_prompts, pad_batch
from nnterp_mcp.request.operations import Operation, parse_operation
from nnterp_mcp.request.sites import FACTS
from nnterp_mcp.verification.tiny import tiny_model, tiny_tokenizer
from tests.engine.plain import LLAMA, SANDWICHED, Edit, Edits, Plain

SHORT = "cat dog sun"
LONG = "cat sea red blue old, and the capital of France is near the sea of dogs"
"""Longer than the windows of the tiny models."""
NEW = 4
LAYER = 1


@cache
def standardized(family: str) -> StandardizedTransformer:
    return StandardizedTransformer(tiny_model(family), tokenizer=tiny_tokenizer(), name=family)


@cache
def plain(family: str) -> Plain:
    return Plain(tiny_model(family), SANDWICHED.get(family, LLAMA))


def encode(family: str, *texts: str) -> list[EncodedPrompt]:
    return encode_prompts(standardized(family).tokenizer, texts, family)


def operations(*asked: dict[str, Any]) -> list[Operation]:
    return [parse_operation(operation) for operation in asked]


def read(family: str, prompt: EncodedPrompt, place: Place, *asked: dict[str, Any]) -> Tensor:
    """What is at a place with operations in force."""
    model = standardized(family)
    batch = pad_batch([prompt], model.pad_id, model.device)
    in_force = plan(model, operations(*asked), [prompt])
    (found,) = forward(model, batch, in_force, [Capture(place, take_all)]).values
    return found[0].transpose(0, 1) if FACTS[place.site].heads_first else found[0]


def agrees_in_generation(
    family: str, texts: list[str], asked: list[dict[str, Any]], edits_of: Callable[[int], Edits]
) -> None:
    """Every step of a generation, batched and cached, says what one plain pass over prompt and new tokens says."""
    prompts = encode(family, *texts)
    model = standardized(family)
    said = generate(model, Workload(prompts, plan(model, operations(*asked), prompts)), max_new_tokens=NEW)
    effect = 0.0
    for prompt, generation in zip(prompts, said, strict=True):
        ids, begin = prompt.ids + generation.ids[:-1], len(prompt.ids) - 1
        expected, clean = (
            plain(family).logits(ids, edits)[begin:].log_softmax(-1) for edits in (edits_of(begin + 1), {})
        )
        picked = expected.gather(1, torch.tensor(generation.ids)[:, None])[:, 0]
        assert generation.log_probs == pytest.approx(picked.tolist(), abs=2e-5), asked
        effect = max(effect, float((expected - clean).abs().max()))
    assert effect > 1e-3, f"{asked} does nothing here"


@pytest.mark.parametrize("family", ["llama", "mistral"])
@pytest.mark.parametrize("site", ["queries", "keys", "values"])
def test_heads_that_share_keys_are_edited_one_by_one_at_every_step(family: str, site: str) -> None:
    """With prompts of different lengths, and in layers with a window, a step of one token has a mask."""

    def turned(states: Tensor) -> None:
        states[:, [0, 3]] *= -1

    asked = {"op": "scale", "site": site, "layers": LAYER, "factor": -1, "heads": [0, 3]}
    agrees_in_generation(family, [SHORT, LONG], [asked], lambda length: {(site, LAYER): turned})


GROUPED = ["cohere2", "falcon", "gemma3_text", "glm4", "gpt_oss", "llama4_text", "olmo3", "phi3", "qwen2", "qwen4_exp"]
"""Families whose heads share keys: with windows, chunks, sinks, one key for all, or keys of an indexer's choice."""


@pytest.mark.slow
@pytest.mark.parametrize("family", GROUPED)
@pytest.mark.parametrize("site", ["queries", "keys", "values"])
def test_heads_are_edited_alike_in_batches_and_under_each_implementation(family: str, site: str) -> None:
    model = standardized(family)
    layer = max(model.anatomy.attention_layers)
    head = model.anatomy.layers[layer].num_heads - 1
    asked = operations({"op": "scale", "site": site, "layers": layer, "factor": -1, "heads": head})
    before: Any = model.attention
    said: list[list[Generation]] = []
    for implementation in dict.fromkeys((before, "eager")):
        model.set_attention(implementation)
        for group in ([SHORT, LONG], [SHORT], [LONG]):
            prompts = encode(family, *group)
            said.append(generate(model, Workload(prompts, plan(model, asked, prompts)), max_new_tokens=NEW))
    model.set_attention(before)
    clean = generate(model, Workload(encode(family, SHORT)), max_new_tokens=NEW)[0].log_probs
    together, *others = [[found.log_probs for found in one] for one in said]
    alone = [[*others[0], *others[1]], *([others[2], [*others[3], *others[4]]] if len(others) > 2 else [])]
    for found in alone:
        for one, other in zip(found, together, strict=True):
            assert one == pytest.approx(other, abs=1e-4)
    assert together[0] != pytest.approx(clean, abs=1e-4)


@pytest.mark.parametrize("family", SANDWICHED)
def test_outputs_are_what_is_added_to_the_residual_stream(family: str) -> None:
    (prompt,) = encode(family, LONG)
    model, own = standardized(family), plain(family)
    multiplier = getattr(own.model.config, "residual_multiplier", 1.0)
    for layer in range(model.num_layers):
        at: dict[str, Tensor] = {}
        for site in ("layers_input", "attentions_output", "mlps_output", "layers_output"):
            at[site] = read(family, prompt, Place(site, layer))  # pyright: ignore[reportArgumentType]
        total = at["layers_input"] + at["attentions_output"] + at["mlps_output"]
        torch.testing.assert_close(total, at["layers_output"], atol=1e-4, rtol=1e-4)
        for site in ("attentions", "mlps"):
            behind = own.read(prompt.ids, f"{site}_output", layer)
            torch.testing.assert_close(at[f"{site}_output"], multiplier * behind, atol=1e-4, rtol=1e-4)
            raw = own.read(prompt.ids, f"{site}_raw_output", layer)
            found = read(family, prompt, Place(f"{site}_raw_output", layer))  # pyright: ignore[reportArgumentType]
            torch.testing.assert_close(found, raw, atol=1e-4, rtol=1e-4)
    with torch.no_grad(), model.trace(LONG):
        modules = nnsight.save(model.mlps_output[LAYER].clone())
        added = nnsight.save(model.mlps_contribution[LAYER].clone())
    torch.testing.assert_close(modules[0], own.read(prompt.ids, "mlps_raw_output", LAYER), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(added[0], read(family, prompt, Place("mlps_output", LAYER)))


@pytest.mark.parametrize("family", SANDWICHED)
@pytest.mark.parametrize("site", ["attentions", "mlps"])
def test_what_is_added_and_what_is_computed_are_edited_apart(family: str, site: str) -> None:
    multiplier = getattr(plain(family).model.config, "residual_multiplier", 1.0)

    def lowered(states: Tensor) -> None:
        states[..., :9] *= 0.1

    def pushed(states: Tensor) -> None:
        states += 0.5 / multiplier

    lower: dict[str, Any] = {"op": "scale", "factor": 0.1, "neurons": "0:9", "layers": LAYER}
    push: dict[str, Any] = {"op": "add", "vector": [0.5] * 64, "layers": LAYER}
    for asked, change, place in (
        (lower, lowered, f"{site}_output"),
        (lower, lowered, f"{site}_raw_output"),
        (push, pushed, f"{site}_output"),
    ):
        agrees_in_generation(
            family, [SHORT], [asked | {"site": place}], lambda length, at=place, do=change: {(at, LAYER): do}
        )


def pattern_within(pattern: str, window: int) -> Edit:
    """A pattern over what a window lets each query read, written out query by query."""

    def edit(states: Tensor) -> None:
        for query in range(len(states)):
            first = max(0, query - window + 1)
            keys = {
                "uniform": list(range(first, query + 1)),
                "first": [first],
                "previous": [max(query - 1, 0)],
                "self": [query],
            }[pattern]
            states[query, :2] = 0
            states[query, :2, keys] = 1 / len(keys)

    return edit


@pytest.mark.parametrize("pattern", ["uniform", "first", "previous", "self"])
def test_patterns_lie_in_the_window_at_the_prompt_as_at_later_steps(pattern: str) -> None:
    window = plain("mistral").model.config.sliding_window
    assert len(encode("mistral", LONG)[0].ids) > window
    asked = {"op": "set_attention", "layers": LAYER, "heads": [0, 1], "pattern": pattern}
    edit = pattern_within(pattern, window)
    agrees_in_generation("mistral", [LONG, SHORT], [asked], lambda length: {("attention_probabilities", LAYER): edit})


CUT: dict[str, Any] = {"op": "knockout", "layers": LAYER, "heads": [0], "key_positions": [1, 2]}
HALVED: dict[str, Any] = {"op": "scale", "site": "attention_probabilities", "layers": LAYER, "factor": 0.5, "heads": 0}
EVEN: dict[str, Any] = {"op": "set_attention", "layers": LAYER, "heads": 0, "pattern": "uniform"}
REMOVED = CUT | {"key_positions": 3, "renormalise": False}
PATTERNS = Place("attention_probabilities", LAYER)


def own_row(family: str, prompt: EncodedPrompt) -> Tensor:
    """What transformers itself says that head 0 reads."""
    model: Any = tiny_model(family, attn_implementation="eager")
    with torch.no_grad():
        return model(torch.tensor([prompt.ids]), output_attentions=True).attentions[LAYER][0, 0]


def masked(row: Tensor, keys: list[int]) -> Tensor:
    """Rows whose scores at some keys were masked: what is left shares the row with a sink, if there is one."""
    sink = (1 - row.sum(-1, keepdim=True)).clamp_min(0)
    kept = row.clone()
    kept[:, keys] = 0
    left = kept.sum(-1, keepdim=True)
    return torch.where(left > 0, kept / (left + sink), 0)


@pytest.mark.parametrize("family", ["llama", "gpt_oss"])
@pytest.mark.parametrize("others", [[], [HALVED], [HALVED, REMOVED], [HALVED, HALVED]])
def test_a_knockout_masks_scores_whatever_else_is_done_and_in_whichever_order(family: str, others: list[Any]) -> None:
    (prompt,) = encode(family, LONG)
    expected = masked(own_row(family, prompt), [1, 2])
    untouched = torch.arange(len(prompt.ids)) < 1  # they read neither key
    expected[untouched] *= 0.5 ** others.count(HALVED)
    if REMOVED in others:
        expected[:, 3] = 0
    for listed in ([CUT, *others], [*others, CUT]):
        found = read(family, prompt, PATTERNS, *listed)[0]
        torch.testing.assert_close(found, expected, atol=2e-6, rtol=0)
    if family == "llama" and REMOVED not in others:
        assert found[1:].sum(-1).tolist() == pytest.approx([1.0] * (len(found) - 1), abs=1e-5)


def test_a_key_that_is_cut_is_not_read_in_a_pattern_either() -> None:
    (prompt,) = encode("llama", LONG)
    even = torch.ones(len(prompt.ids), len(prompt.ids)).tril()
    even[1:, [1, 2]] = 0
    expected = even / even.sum(-1, keepdim=True)
    for listed in ([CUT, EVEN], [EVEN, CUT]):
        torch.testing.assert_close(read("llama", prompt, PATTERNS, *listed)[0], expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("family", ["llama", "gpt_oss"])
def test_a_query_without_keys_reads_nothing(family: str) -> None:
    (prompt,) = encode(family, SHORT)
    found = read(family, prompt, PATTERNS, {"op": "knockout", "layers": LAYER, "heads": 0})
    assert not found[0].any()
    assert found[1].any()
    assert not read(family, prompt, PATTERNS, CUT | {"key_positions": 0})[0, 0].any(), "the first query's only key"


def test_a_row_of_zeros_has_no_slope_and_leaves_the_others_theirs() -> None:
    (prompt,) = encode("llama", SHORT)
    model = standardized("llama")
    cut = plan(model, operations({"op": "knockout", "layers": LAYER, "query_positions": [0, 2]}), [prompt])
    (found,) = multiply_gradients(model, Workload([prompt], cut), [[[7], [9]]])

    def nothing(states: Tensor) -> None:
        states[[0, 2]] = 0

    embedded, slope = plain("llama").slopes(
        prompt.ids,
        [("token_embeddings", -1)],
        lambda logits: logits[7] - logits[9],
        {("attention_probabilities", LAYER): nothing},
    )["token_embeddings", -1]
    assert found.values.tolist() == pytest.approx((embedded * slope).sum(-1).tolist(), abs=1e-5)


GOING_ON = ["all", "last", "1:", ":", ["1:", 0], [0, "last"]]
ENDING = [-1, "-2:", "0::2", "::1", "1:3", [0, -1], {"text": "dog"}]


@pytest.mark.parametrize(
    ("positions", "steps"),
    [*((at, "all") for at in [*GOING_ON, *ENDING]), ("1:", 0), ("last", 0), ("1:", "2:")],
    ids=str,
)
def test_which_positions_go_on_to_new_tokens(positions: Any, steps: Any) -> None:
    """They go on to all new tokens or to none, and a token is reached at its step alone."""
    (prompt,) = encode("llama", SHORT)
    length = len(prompt.ids)
    dog = [at for at, (start, end) in enumerate(prompt.spans) if start < SHORT.index("dog") + 3 and end > 4]
    parts = positions if isinstance(positions, list) else [positions]
    reached = {
        "all": range(length),
        "last": [length - 1],
        "1:": range(1, length),
        ":": range(length),
        "-2:": range(length - 2, length),
        "0::2": range(0, length, 2),
        "::1": range(length),
        "1:3": [1, 2],
        -1: [length - 1],
        0: [0],
    }
    at = [token for part in parts for token in (dog if isinstance(part, dict) else reached[part])]

    def edit(states: Tensor) -> None:
        chosen = set(at if steps != "2:" else [])
        if positions in GOING_ON and steps != 0:
            chosen |= {token for token in range(length, len(states)) if steps == "all" or token - length + 1 >= 2}
        states[sorted(chosen)] *= -0.5

    asked = {"op": "scale", "site": "values", "layers": LAYER, "factor": -0.5, "positions": positions, "steps": steps}
    agrees_in_generation("llama", [SHORT], [asked], lambda length: {("values", LAYER): edit})


@pytest.mark.parametrize(("keys", "new"), [("all", True), ("1:", True), ("last", False), ("-3:", False)])
def test_which_keys_are_cut_during_generation(keys: str, new: bool) -> None:
    """The last key is the prompt's, not the newest token's, which a query would then not read itself."""

    def edits_of(length: int) -> Edits:
        first = {"all": 0, "1:": 1, "last": length - 1, "-3:": length - 3}[keys]

        def edit(states: Tensor) -> None:
            states[:, 0] = masked(states[:, 0], list(range(first, states.shape[-1] if new else length)))

        return {("attention_probabilities", LAYER): edit}

    asked = {"op": "knockout", "layers": LAYER, "heads": 0, "key_positions": keys}
    agrees_in_generation("llama", [SHORT], [asked], edits_of)


def test_at_one_place_a_skip_comes_first_and_the_others_as_they_are_listed() -> None:
    (prompt,) = encode("llama", SHORT)
    entered, after = (read("llama", prompt, Place(site, LAYER)) for site in ("layers_input", "layers_output"))  # pyright: ignore[reportArgumentType]
    add: dict[str, Any] = {"op": "add", "layers": LAYER, "vector": [1.0] * 64}
    scale: dict[str, Any] = {"op": "scale", "site": "layers_output", "layers": LAYER, "factor": 2}
    skip: dict[str, Any] = {"op": "skip", "layers": LAYER}
    inside: dict[str, Any] = {"op": "zero", "layers": LAYER, "heads": 0}
    for listed, expected in (
        ([add, scale], 2 * (after + 1)),
        ([scale, add], 2 * after + 1),
        ([add, skip, scale], 2 * (entered + 1)),
        ([inside, scale, skip], 2 * entered),
        ([scale | {"site": "layers_input"}, skip], 2 * entered),
    ):
        torch.testing.assert_close(read("llama", prompt, Place("layers_output", LAYER), *listed), expected)


def test_edits_can_be_checked_before_there_is_a_prompt() -> None:
    """Positions, prompts and matrices are of requests to come; layers, heads and vectors are of the model."""
    model = standardized("llama")
    check(
        model,
        operations(
            {"op": "zero", "site": "mlps_output", "layers": 1, "prompts": 1, "positions": 40},
            {"op": "mean", "layers": 1, "heads": 0, "over": "all"},
            {"op": "patch", "layers": 1, "from": {"prompt": 3, "position": 7}},
            {"op": "set_attention", "layers": 1, "pattern": [[1.0, 0.0], [0.5, 0.5]]},
        ),
    )
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"op": "skip", "layers": 40}, "layer 40 does not exist"),
        ({"op": "zero", "layers": 1, "heads": 9}, "head 9 does not exist"),
        ({"op": "add", "layers": 1, "vector": [1.0]}, "has 1 numbers"),
        ({"op": "patch", "layers": 1, "from": {"layer": 9}}, "layer 9 does not exist"),
    ]
    for asked, reason in wrong:
        with pytest.raises(Exception, match=reason):
            check(model, operations(asked))
