"""The claims of tools that fit directions to states: vectors, probes, collected states."""

from __future__ import annotations

import numpy as np

from tests.toolset.claims.reading import NUMBER, Facts, claims, shows


def check_make_vector(finding: str, facts: Facts) -> None:
    """The layers and norms, and the layer at which unseen prompts are told apart best."""
    rows = facts["directions"]
    assert f"{len(rows)} layer" in finding
    norms = claims(rf"norm {NUMBER} to {NUMBER}", finding)
    shows(norms[1], min(facts["card"]["norms"]))
    shows(norms[2], max(facts["card"]["norms"]))
    rated = {row["layer"]: row["held_out"] for row in rows if row["held_out"] is not None}
    if not rated:
        return
    said = claims(rf"with probability (?:no better than chance|{NUMBER} \(chance: 0.5\)) at layer (\d+)", finding)
    assert rated[int(said[2])] == max(rated.values())
    if said[1] is None:
        assert max(rated.values()) <= 0.5
    else:
        shows(said[1], max(rated.values()))
        assert max(rated.values()) > 0.5


def check_train_probe(finding: str, facts: Facts) -> None:
    """The best layer and its interval, and the controls above which that lies."""
    layers = facts["layers"]
    where = r"(?:at layer (\d+)|on the embeddings)"
    said = claims(rf"accuracy {where}.*? is {NUMBER} \(95 %: {NUMBER} to {NUMBER}\)", finding)
    named = next(layer for layer in layers if layer["layer"] == (said[1] and int(said[1])))
    assert named["accuracy"] == max(layer["accuracy"] for layer in layers)
    for text, name in zip(said.groups()[1:], ("accuracy", "low", "high"), strict=True):
        shows(text, named[name])
    shuffled = np.array([layer["shuffled"] for layer in layers]).max(0)
    control = claims(rf"{NUMBER}, at most {NUMBER} over (\d+) shuffle", finding)
    shows(control[1], shuffled.mean())
    shows(control[2], shuffled.max())
    assert int(control[3]) == len(shuffled)
    controls = {"the best shuffle": shuffled.max(), "the largest class": facts["majority"]}
    controls["prompt length"] = facts["length"]
    verdict = finding.partition("The interval is ")[2]
    above, _, below = verdict.partition("not above ")
    for name, accuracy in controls.items():
        passed = named["low"] > accuracy
        assert (name in above or "all three" in above) == passed, name
        assert (name in below) == (not passed), name


def check_collect_activations(finding: str, facts: Facts) -> None:
    """How many states are kept, and the layer at which groups lie furthest apart."""
    assert finding.startswith(f"{len(facts['rows'])} state")
    assert f" of {len(facts['prompts'])} prompt" in finding
    gaps = {row["layer"]: np.mean([pair["gap"] for pair in row["pairs"]]) for row in facts["summaries"] if row["pairs"]}
    if not gaps:
        return
    said = claims(rf"lie furthest apart at layer (\d+), by {NUMBER} of a state's mean length", finding)
    assert gaps[int(said[1])] == max(gaps.values())
    shows(said[2], gaps[int(said[1])])
    widest = next(row for row in facts["summaries"] if row["layer"] == int(said[1]))
    chance = np.mean([pair["shuffled_gap"] for pair in widest["pairs"]])
    shows(claims(rf"assigned at random: {NUMBER}", finding)[1], chance)
