"""The claims of tools that change a model: steering, patching, attribution."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.toolset.claims.reading import NUMBER, Facts, claims, mean_of, shows

_CLEARLY = 2


def check_steer(finding: str, facts: Facts) -> None:
    """The cell with the largest change, by the named criterion, and how many cells exceed their control."""
    cells = sorted({(run["layer"], run["factor"]) for run in facts["runs"] if run["layer"] is not None})
    names: dict[str, Callable[[Facts], float]] = {"KL": lambda run: run["kl"]}
    if facts["categories"]:
        names = {f'p of "{next(iter(facts["categories"]))}"': lambda run: run["targets"][0][0], **names}

    def value(cell: tuple[Any, float], of: Callable[[Facts], float], control: int | None = None) -> float:
        chosen = [run for run in facts["runs"] if (run["layer"], run["factor"], run["control"]) == (*cell, control)]
        return float(np.mean([of(run) for run in chosen]))

    def exceeds(cell: tuple[Any, float], of: Callable[[Facts], float]) -> bool:
        if not facts["controls"]:
            return False
        found = [value(cell, of, one) for one in range(facts["controls"])]
        return abs(value(cell, of) - np.mean(found)) > _CLEARLY * np.std(found, ddof=1)

    if all(factor == 0 for _, factor in cells):
        assert "was not steered" in finding
        return
    named = (int(claims(r"layer (\d+) with factor", finding)[1]), float(claims(rf"factor {NUMBER}", finding)[1]))
    assert named in cells
    kl = claims(rf"KL\(steered \|\| baseline\) of the next token is {NUMBER} nats", finding)[1]
    shows(kl, value(named, names["KL"]))
    if len(cells) == 1:
        return
    criterion = claims(r'(KL|p of "[^"]*") changes most at', finding)[1]
    of = names[criterion]
    base = float(np.mean([of(run) for run in facts["runs"] if run["layer"] is None]))
    pool = [cell for cell in cells if cell[1]]
    if facts["controls"]:
        counts = {name: sum(exceeds(cell, one) for cell in cells) for name, one in names.items()}
        first, *others = counts
        assert f"{first} changes more than with {facts['controls']} random directions" in finding
        assert f"in {counts[first] or 'none'} of {len(cells)} cells" in finding
        assert all(f", {name} in {counts[name] or 'none'}" in finding for name in others)
        assert ("of these, " in finding) == bool(counts[criterion])
        pool = [cell for cell in pool if exceeds(cell, of)] if counts[criterion] else pool
    assert abs(value(named, of) - base) == max(abs(value(cell, of) - base) for cell in pool)


def check_patch_activations(finding: str, facts: Facts) -> None:
    """The layers at which positions carry the answer, the largest effect, and the comparison with random sets."""
    cells = facts["cells"]
    shows(claims(rf"clean runs have .*? of {NUMBER}", finding)[1], facts["clean"]["mean"])
    free = [cell for cell in cells if not cell["by_construction"]]
    effects = np.abs([cell["effect"] for cell in free]) if free else np.zeros(1)
    for said in re.finditer(r"The (?:largest effect of (\d+) cells|effect): .*?(?:of|with) (.*)", finding):
        assert said[1] is None or int(said[1]) == len(free)
        if found := re.search(rf"L(\d+)H(\d+).*?, (?:recovery|logit_difference) {NUMBER}", said[2]):
            named = next(c for c in free if (c["layer"], c["head"]) == (int(found[1]), int(found[2])))
            assert abs(named["effect"]) == effects.max()
            shows(found[3], (named["recovery"] or named["metric"])["mean"])
    span = r"(to layer (\d+) \((?:below|above) half at (\d+)\)|from layer (\d+))"
    for said in re.finditer(rf"position (\d+) \([^)]*\) {span}", finding):
        own = [cell for cell in cells if cell["position"] == int(said[1]) and cell["recovery"] is not None]
        noising = facts["direction"] == "noising"
        means = [cell["recovery"]["mean"] for cell in own]
        strong = [
            cell["layer"] for cell, mean in zip(own, means, strict=True) if (mean <= 0.5 if noising else mean >= 0.5)
        ]
        layers = [cell["layer"] for cell in own]
        edge = int(said[3] or said[5])
        assert strong == [layer for layer in layers if (layer <= edge if said[3] else layer >= edge)]
        assert not said[4] or int(said[4]) == layers[layers.index(edge) + 1]
    found = facts["patched_set"]
    if found is None:
        return
    unpatched = facts["clean"] if facts["direction"] == "noising" or not facts["corrupted"] else facts["corrupted"]
    effect = found["metric"]["mean"] - unpatched["mean"]
    reaching = sum(np.sign(effect) * (value - unpatched["mean"]) >= abs(effect) for value in found["controls"])
    if not found["controls"]:
        assert "No control" in finding
        return
    assert len(found["controls"]) == 20
    assert len({*found["cells"]}) == len(found["cells"])
    text = f"{reaching} of 20 random sets" if reaching else "None of 20 random sets"
    assert text in finding
    values = np.array(found["control_recoveries"] or found["controls"])
    spread = claims(rf"\(mean {NUMBER}, sd {NUMBER}\)", finding)
    shows(spread[1], values.mean())
    shows(spread[2], values.std(ddof=1))
    if found["circuit"]:
        circuit, losses = found["circuit"], mean_of(facts["members"], "loss")
        for name in ("faithfulness", "completeness"):
            shows(claims(rf"{name.capitalize()} {NUMBER}", finding)[1], circuit[name]["mean"])
        least = claims(rf"Minimality {NUMBER}: faithfulness lost without (\S+), the least", finding)
        shows(least[1], losses.min())
        assert facts["members"][int(losses.argmin())]["cell"] == least[2]


def check_attribute(finding: str, facts: Facts) -> None:
    """The parts that add and take away most, and that all of them sum to the whole."""
    parts, values = facts["parts"], mean_of(facts["parts"], "value")
    shows(claims(rf" is {NUMBER}", finding)[1], facts["whole"]["mean"])
    for words, at in (("raises", int(values.argmax())), ("lowers", int(values.argmin()))):
        said = re.search(rf"(\S+)(?: \S+)? {words}? it most, by {NUMBER}\.", finding)
        assert (said is not None) == (values[at] > 0 if words == "raises" else values[at] < 0)
        if said:
            shows(said[2], abs(values[at]))
            layer, head = parts[at]["layer"], parts[at]["index"] if parts[at]["kind"] == "head" else None
            name = "" if layer is None else f"L{layer}" if head is None else f"L{layer}H{head}"
            assert name in said[0]
    if facts["method"] == "direct":
        assert f"the sum of {facts['total']} parts" in finding
        assert abs(values.sum() + facts["left"] - facts["whole"]["mean"]) < 1e-3
    assert len(parts) <= facts["total"]
