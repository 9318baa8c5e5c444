"""The claims of tools that read what a model says: lens, patchscope, prompt sets, attention, generation."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np

from tests.toolset.claims.reading import NUMBER, Facts, claims, shows


def _start(tops: list[str], layers: list[int]) -> int:
    """The first layer from which on every top token is the last one."""
    start = len(tops)
    while start and tops[start - 1] == tops[-1]:
        start -= 1
    return layers[start]


def check_logit_lens(finding: str, facts: Facts) -> None:
    """The top token with its probability, and the layer from which on it is on top."""
    readings = facts["readings"]
    layers = [layer["layer"] for layer in readings[0]["layers"]]
    tops = [[layer["top"][0][0] for layer in reading["layers"]] for reading in readings]
    whole = layers[-1] == facts["last_layer"]
    if len(readings) > 1:
        prompts = len({reading["prompt"] for reading in readings})
        assert f"{len(readings)} readings of {prompts} prompt" in finding
        if whole and len(layers) > 1:
            starts = sorted(_start(top, layers) for top in tops)
            said = claims(r"leads from layer (\d+) on in the median \(earliest (\d+), latest (\d+)\)", finding)
            assert [int(one) for one in said.groups()] == [starts[(len(starts) - 1) // 2], starts[0], starts[-1]]
        return
    shows(claims(rf"\({NUMBER}\)[,.]", finding)[1], readings[0]["layers"][-1]["top"][0][1])
    if not whole or len(layers) == 1:
        return
    start = _start(tops[0], layers)
    if start == layers[0]:
        assert f"the top token at all {len(layers)} layers read" in finding
        return
    before = layers[layers.index(start) - 1]
    assert f"(layer {before}: " in finding
    said = "the top token at no earlier layer read" if start == layers[-1] else f"layer read from {start} on"
    assert said in finding


def check_patchscope(finding: str, facts: Facts) -> None:
    """The layers at which the target says a category, and where that is most probable."""
    if len(facts["sources"]) > 1:
        for name, index in zip(facts["categories"], range(9), strict=False):
            count = sum(any(patch["says"][index] for patch in source["patches"]) for source in facts["sources"])
            assert f"{count} as {name}" in finding
        return
    (source,) = facts["sources"]
    shows(claims(rf"Unpatched, the target says .* \({NUMBER}\)\.$", finding)[1], source["unpatched"]["top"][0][1])
    read = [patch["source_layer"] for patch in source["patches"]]
    for index, name in enumerate(facts["categories"]):
        on_top = [patch["source_layer"] for patch in source["patches"] if patch["tracked"][index][1] == 1]
        best = max(patch["tracked"][index][0] for patch in source["patches"])
        said = claims(rf"reads as {name} ([^(]*) \(p up to {NUMBER}, layer (\d+)\)", finding)
        shows(said[2], best)
        assert source["patches"][read.index(int(said[3]))]["tracked"][index][0] == best
        assert _layers(said[1], read) == on_top


def _layers(words: str, read: list[int]) -> list[int]:
    """Layers as words name them."""
    if words == "at no layer":
        return []
    if words == "at every layer read":
        return read
    if found := re.fullmatch(r"from layer (\d+) on", words):
        return [layer for layer in read if layer >= int(found[1])]
    spans = [tuple(map(int, span.split(" to "))) for span in words.removeprefix("at layer").lstrip("s ").split(", ")]
    return [layer for layer in read if any(span[0] <= layer <= span[-1] for span in spans)]


def check_run_prompts(finding: str, facts: Facts) -> None:
    """The category that is most likely most often, its mean probability, its share of top tokens; the depth."""
    rows, names = facts["rows"], facts["categories"]
    last = np.array([row["probabilities"][-1] for row in rows])
    wins = np.bincount(last.argmax(1), minlength=len(names)) / len(rows)
    said = claims(rf'"([^"]+)"(.*?) has a mean probability of {NUMBER} and is the top token in {NUMBER} %', finding)
    best = names.index(said[1])
    assert wins[best] == wins.max()
    shows(said[3], last[:, best].mean())
    shows(said[4], 100 * np.mean([row["ranks"][-1][best] == 1 for row in rows]))
    if len(names) > 1:
        shows(claims(rf"in {NUMBER} % of them", said[2])[1], 100 * wins[best])
    else:
        assert not said[2], "a single category is always the most likely one"
    depths = sorted(row["leads_from"] for row in rows if row["leads_from"] is not None)
    if depths:
        depth = claims(r"from layer (\d+) on in the median \(earliest (\d+), latest (\d+)\)", finding)
        assert [int(one) for one in depth.groups()] == [depths[(len(depths) - 1) // 2], depths[0], depths[-1]]


def check_attention_probs(finding: str, facts: Facts) -> None:
    """The heads of each kind on random tokens, and what a query attends to."""
    heads = facts["heads"]
    for query in facts["queries"][:2]:
        said = claims(
            rf"\(position {query['position']}[^)]*\) attends most to .*? at (\d+), in L(\d+)H(\d+) \({NUMBER}\); "
            rf"past the first token, which gets {NUMBER} on average, the strongest key is .*? at (\d+) in (\d+) of "
            r"(\d+) head",
            finding,
        )
        most = [head["keys"][0] for head in query["heads"] if head["keys"]]
        strongest = max(key[2] for key in most)
        named = next(h for h in query["heads"] if (h["layer"], h["head"]) == (int(said[2]), int(said[3])))
        assert named["keys"][0][1:] == [int(said[1]), strongest]
        shows(said[4], strongest)
        shows(said[5], float(np.mean([head["first"] for head in query["heads"]])))
        counts = Counter(key[1] for key in most)
        assert [counts[int(said[6])], int(said[8])] == [int(said[7]), len(query["heads"])]
        assert int(said[7]) == max(counts.values())
    if facts["copying"] is None:
        return
    assert f"of the {len(heads)} heads read" in finding
    for kind, words in {"induction": "induction", "previous": "previous-token", "duplicate": "duplicate-token"}.items():
        scores = np.array([head["kinds"][kind] for head in heads])
        said = claims(rf"{words} (?:none reaches {NUMBER}|L(\d+)H(\d+) \({NUMBER}\))", finding)
        if said[1]:
            assert scores.max() < float(said[1])
            continue
        named = next(at for at, h in enumerate(heads) if (h["layer"], h["head"]) == (int(said[2]), int(said[3])))
        assert scores[named] == scores.max()
        shows(said[4], scores.max())
    shows(claims(rf"mean probability of {NUMBER}", finding)[1], facts["copying"]["probability"])


def check_generate(finding: str, facts: Facts) -> None:
    """Tokens and mean log-probabilities, or how many texts change and from which token on."""
    texts = facts["texts"]
    own = [value for one in texts for value in one["baseline"]["log_probs"]]
    if facts["scored"]:
        unedited = rf"unedited {NUMBER} nats a token \(perplexity {NUMBER}\)"
        said = claims(rf"of (\d+) tokens? after the first: {unedited}", finding)
        assert int(said[1]) == sum(len(one["baseline"]["tokens"]) for one in texts)
        shows(said[2], np.mean(own))
        shows(said[3], np.exp(-np.mean(own)))
        return
    if not facts["interventions"]:
        said = claims(rf"continued {len(texts)} prompts? by (\d+) tokens?, mean log-prob {NUMBER} nats", finding)
        assert int(said[1]) == sum(len(one["baseline"]["tokens"]) for one in texts)
        shows(said[2], np.mean(own))
        return
    pairs = [(one["baseline"]["tokens"], one["edited"]["tokens"]) for one in texts]
    changed = sorted(
        next(at for at, (a, b) in enumerate(zip([*one, None], [*other, None], strict=False)) if a != b)
        for one, other in pairs
        if one != other
    )
    if not changed:
        assert "change nothing in the text" in finding
    elif len(texts) == 1:
        assert f"from new token {changed[0]} on" in finding
    else:
        median = changed[(len(changed) - 1) // 2]
        assert f"change {len(changed)} of {len(texts)} texts, in the median from token {median} on" in finding
