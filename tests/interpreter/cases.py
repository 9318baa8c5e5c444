"""Random calls: prompts, and lists of operations that fit them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from random import Random
from typing import Any

from nnterp_mcp.toolset import specs
from tests.dictionaries import write
from tests.interpreter.checks import CHECKS
from tests.interpreter.prompts import MARK, WORDS, anywhere, draw_pair, draw_prompts
from tests.interpreter.reading_tools import DICTIONARY_LAYER, dictionary_of
from tests.interpreter.subject import Subject
from tests.interpreter.text import Text

Call = tuple[str, dict[str, Any]]

_NOT_PATCHED = ("token_embeddings", "mlps_input", "neurons")
"""Sites that patch_activations does not patch."""

_STATE_SITES = (
    "token_embeddings",
    "layers_input",
    "queries",
    "keys",
    "values",
    "heads_output",
    "attentions_output",
    "attentions_raw_output",
    "mlps_input",
    "neurons",
    "mlps_output",
    "mlps_raw_output",
    "layers_output",
)
_HEAD_SITES = ("queries", "keys", "values", "heads_output")
_OPERATIONS = (
    *("add", "scale", "zero", "mean", "patch", "patch", "project_out", "swap"),
    *("skip", "knockout", "knockout", "set_attention", "attention"),
)
_TOOLS = {
    "generate": 5,
    "steer": 3,
    "logit_lens": 6,
    "run_prompts": 6,
    "collect_activations": 7,
    "attention_probs": 5,
    "patchscope": 3,
    "patch_activations": 4,
    "attribute": 5,
    "make_vector": 1,
    "features": 3,
    "find_circuit": 1,
    "verify_claim": 1,
    "compare_models": 1,
}
"""How often each tool is drawn."""
_EDGES = ("llama", "gpt2")
"""Families whose edges are told apart, of those that are drawn."""

_WRITTEN = ("queries", "keys", "values", "heads_output", "neurons", "mlps_output")
"""Sites at which operations change what heads and MLPs write, and not the stream itself."""

_RARE = 3
"""How often one that is drawn from its examples."""


@dataclass
class Cases:
    """Draws calls for one model.

    Attributes:
        subject: The model.
        dice: Where chance comes from.
        names: Vectors that were made, and whether each serves every layer.
        dictionary: The dictionary of features is loaded.
    """

    subject: Subject
    dice: Random
    names: dict[str, bool] = field(default_factory=dict[str, bool])
    dictionary: bool = False

    @property
    def sites(self) -> list[str]:
        """The sites of states that the model has."""
        return [site for site in _STATE_SITES if site not in self.subject.plain.family.lacks]

    def draw(self, without: Collection[str] = ()) -> Call:
        """One call."""
        every = _TOOLS | {tool: _RARE for tool in CHECKS if tool not in _TOOLS}
        tools = {tool: weight for tool, weight in every.items() if tool not in without}
        if self.subject.family not in _EDGES:
            tools.pop("find_circuit", None)
        tool = self.dice.choices(list(tools), list(tools.values()))[0]
        return tool, getattr(self, f"_{tool}")() if tool in _TOOLS else self._example(tool)

    def _example(self, tool: str) -> dict[str, Any]:
        """An example of a tool, with prompts and operations that are drawn."""
        return {**self.dice.choice(specs()[tool].examples), **self._call(self.prompts())}

    def lasting(self) -> list[dict[str, Any]]:
        """Operations that fit every call."""
        shortest = self.subject.by.read(MARK)
        drawn = [self._operation([shortest]) for _ in range(self.dice.choice((0, 1, 2)))]
        return [one for one in drawn if "prompts" not in one and "from" not in one and MARK not in str(one)]

    def prompts(self, most: int = 3) -> list[str]:
        return draw_prompts(self.dice, most)

    def _call(self, prompts: list[str], extra: list[str] | None = None) -> dict[str, Any]:
        """The prompts, and operations that fit them and a further prompt."""
        texts = [self.subject.by.read(text) for text in [*prompts, *(extra or [])]]
        operations = [self._operation(texts) for _ in range(self.dice.choice((0, 1, 1, 2, 2, 3)))]
        return {"prompts": prompts, "interventions": operations}

    def _targets(self) -> dict[str, Any]:
        return {"one": self.dice.choice(WORDS), "other": self.dice.sample(WORDS, 2)}

    def _generate(self) -> dict[str, Any]:
        call = self._call(self.prompts(2))
        call["interventions"] = call["interventions"] or [self._operation(self._read(call))]
        return call | {"max_new_tokens": 12}

    def _read(self, call: dict[str, Any]) -> list[Text]:
        return [self.subject.by.read(text) for text in call["prompts"]]

    def _logit_lens(self) -> dict[str, Any]:
        call = self._call(self.prompts())
        lens = self.dice.choice(("logit", "logit", "inverse"))
        positions = self._positions(self._read(call))
        return call | {"positions": positions, "targets": self._targets(), "lens": lens, "layers": self._layers()}

    def _collect_activations(self) -> dict[str, Any]:
        call = self._call(self.prompts())
        site = self.dice.choice(self.sites)
        found = call | {"site": site, "positions": self._positions(self._read(call))}
        found["pool"] = self.dice.choice(("none", "mean", "last"))
        return found if site == "token_embeddings" else found | {"layers": self._layers()}

    def _attention_probs(self) -> dict[str, Any]:
        call = self._call(self.prompts())
        queries = {"query_positions": self._positions(self._read(call))} if self.dice.random() < 0.5 else {}
        return call | queries | {"layers": self._layers(), "heads": self._heads(), "kinds": False}

    def _run_prompts(self) -> dict[str, Any]:
        call = self._call(self.prompts(4))
        readout = self.dice.choice(("next_token", "logit_lens", "patchscope"))
        return call | {"targets": self._targets(), "readout": readout, "layers": self._layers()}

    def _steer(self) -> dict[str, Any]:
        call = self._call(self.prompts(2))
        layers = self.dice.sample(range(self.subject.plain.layers), 2)
        factors = self.dice.sample((-2.0, -0.5, 0.25, 1, 3), 2)
        found = call | {"vector": self._vector("layers_output"), "layers": layers, "factors": factors}
        found |= {"positions": self._positions(self._read(call)), "targets": self._targets()}
        return found | ({"max_new_tokens": 12} if self.dice.random() < 0.3 else {})

    def _patchscope(self) -> dict[str, Any]:
        target = self.dice.choice((None, f"dog dog {MARK} {MARK} x", f"cat is {MARK} x"))
        shown = "king king\n1135 1135\nhello hello\n?" if target is None else target
        call = self._call(self.prompts(2), [shown])
        if target is None:  # which has no such word
            call["interventions"] = [one for one in call["interventions"] if MARK not in str(one)]
        found: dict[str, Any] = {
            "source_prompts": call["prompts"],
            "interventions": call["interventions"],
            "source_positions": self.dice.choice(("last", 1, [0, -1])),
            "source_layers": self.dice.sample(range(self.subject.plain.layers), 2),
            "targets": self._targets(),
        }
        if self.names and self.dice.random() < 0.3:
            del found["source_prompts"], found["source_positions"]
            found |= {"source_vectors": self.dice.choice(list(self.names)), "factor": self.dice.choice((1.0, 3.0))}
            found["interventions"] = [one for one in found["interventions"] if not _counts(one)]
        if target is not None:
            found |= {"target_prompt": target, "target_position": self.dice.choice(("last", 2, {"text": "x"}))}
        found["target_layers"] = self.dice.choice(("same", "same", 1, "all"))
        return found | ({"max_new_tokens": 12} if self.dice.random() < 0.15 else {})

    def _patch_activations(self) -> dict[str, Any]:
        by_head = self.dice.random() < 0.3
        pairs = [self._pair() for _ in range(1 if by_head else self.dice.randint(1, 2))]
        clean, corrupted = [one for one, _ in pairs], [other for _, other in pairs]
        call = self._call(clean)
        found: dict[str, Any] = {"clean": clean, "corrupted": corrupted, "interventions": call["interventions"]}
        sites = [site for site in self.sites if site not in _NOT_PATCHED and "raw" not in site]
        found["sites"] = self.dice.sample([site for site in sites if site in _HEAD_SITES] if by_head else sites, 1)
        found |= {"heads": [0, 2]} if by_head else {"positions": sorted({1, self.dice.randrange(2, 4)})}
        found["layers"] = self.dice.sample(range(self.subject.plain.layers), 2)
        targets = self.dice.choice(({}, {"one": "cat"}, {"one": "cat", "other": "sea"}))
        return found | {"targets": targets, "direction": self.dice.choice(("denoising", "noising"))}

    def _find_circuit(self) -> dict[str, Any]:
        clean, corrupted = self._pair()
        return {
            "clean": [clean],
            "corrupted": [corrupted],
            "interventions": [one for one in self._call([clean])["interventions"] if one.get("site") in _WRITTEN],
            "targets": {"one": "cat", "other": "sea"},
            "steps": 1,
            "draws": 0,
        }

    def _verify_claim(self) -> dict[str, Any]:
        clean, corrupted = (list(side) for side in zip(*(self._pair() for _ in range(4)), strict=True))
        return {
            "claim": ["L1H0"],
            "clean": clean,
            "corrupted": corrupted,
            "interventions": anywhere(self._call(clean)["interventions"]),
            "targets": {"one": "cat", "other": "sea"},
            "found_on": ["theory"],
        }

    def _compare_models(self) -> dict[str, Any]:
        parts = self.dice.sample(("predictions", "activations", "difference", "patching", "texts"), 3)
        return self._call(self.prompts()) | {"base": str(self.subject.second.folder), "parts": parts}

    def _pair(self) -> tuple[str, str]:
        return draw_pair(self.dice, self.subject)

    def _attribute(self) -> dict[str, Any]:
        call = self._call(self.prompts(2))
        targets = self.dice.choice(({"one": "cat"}, {"one": "cat", "other": ["sea", "dog"]}))
        method = self.dice.choice(({"method": "gradient"}, {"by": "layer"}, {"by": "sublayer"}))
        return call | {"targets": targets, "method": "direct"} | method

    def _make_vector(self) -> dict[str, Any]:
        method = self.dice.choice(("mean_difference", "activation", "embedding_difference", "alignment_search"))
        if method == "alignment_search":
            return {"name": "aligned", "method": method, **self._alignment()}
        name = f"v{len(self.names)}"
        self.names[name] = method == "embedding_difference"
        if method == "embedding_difference":
            return {"name": name, "method": method, "positive": " cat sun", "negative": " dog"}
        found: dict[str, Any] = {"name": name, "method": method, "positive": self.prompts(1)}
        if method == "mean_difference":
            found |= {"positive": self.prompts(), "negative": self.prompts()}
        prompts = [*found["positive"], *found.get("negative", [])]
        found["interventions"] = anywhere(self._call(prompts)["interventions"])
        return found | {"positions": self.dice.choice(("last", "all", {"text": MARK}))}

    def _alignment(self) -> dict[str, Any]:
        """Pairs of prompts for an alignment search."""
        pairs = [self._pair() for _ in range(8)]
        return {
            "positive": [base for base, _ in pairs],
            "negative": [source for _, source in pairs],
            "answers": self.dice.sample(("cat", "sea") * 4, 8),
            "layers": self.dice.randrange(self.subject.plain.layers - 1),
            "positions": self.dice.choice(("last", {"text": MARK})),
            "interventions": anywhere(self._call([text for pair in pairs for text in pair])["interventions"]),
        }

    def _features(self) -> dict[str, Any]:
        if not self.dictionary:
            folder, width = dictionary_of(self.subject), self.subject.widths["layers_output"]
            write(folder, f"blocks.{DICTIONARY_LAYER}.hook_resid_post", width, 24)
            self.subject.lab.call("load_features", name="d", source=str(folder))
            self.dictionary = True
        return self._call(self.prompts()) | {"dictionary": "d"}

    def _layers(self) -> Any:
        count = self.subject.plain.layers
        return self.dice.choice(("all", self.dice.randrange(count), -1, "1:3", self.dice.sample(range(count), 2)))

    def _heads(self) -> Any:
        count = self.subject.plain.heads
        return self.dice.choice(("all", self.dice.randrange(count), -1, "::2", self.dice.sample(range(count), 2)))

    def _positions(self, texts: list[Text]) -> Any:
        least = min(len(text.ids) for text in texts)
        one = self.dice.randrange(least)
        return self.dice.choice(
            (
                "all",
                "last",
                one,
                one - least,
                f"{one}:",
                f"{one - least}:",
                f"{one}::2",
                ":",
                f":{one + 1}",
                sorted({one, self.dice.randrange(least)}),
                [one, "last"],
                {"text": MARK},
            )
        )

    def _vector(self, site: str) -> Any:
        width = self._width(site)
        serving = [name for name, anywhere in self.names.items() if anywhere or site == "layers_output"]
        in_stream = site not in _HEAD_SITES and site != "neurons"
        if serving and in_stream and self.dice.random() < 0.4:
            return self.dice.choice(serving)
        if self.dice.random() < 0.3 and in_stream:
            of = self.dice.choice(("embeddings", "unembeddings"))
            return {"positive": " cat", "negative": self.dice.choice((" dog sun", None)), "of": of}
        return [round(self.dice.gauss(0, 1), 3) for _ in range(width)]

    def _width(self, site: str) -> int:
        return self.subject.widths[site]

    def _operation(self, texts: list[Text]) -> dict[str, Any]:
        """One operation."""
        op = self.dice.choice(_OPERATIONS)
        if op in ("skip", "knockout", "set_attention", "attention"):
            made = getattr(self, f"_op_{op}")(texts)
        else:
            made = self._op_state(op, texts)
        if len(texts) > 1 and self.dice.random() < 0.25 and made.get("prompts") is None:
            made["prompts"] = self.dice.choice((0, -1, [0], "1:"))
        if self.dice.random() < 0.2:
            made["steps"] = self.dice.choice((0, 1, [0, 3], "1:", "2:6", "::2", "all"))
        return made

    def _op_state(self, op: str, texts: list[Text]) -> dict[str, Any]:
        site = self.dice.choice(self.sites)
        made: dict[str, Any] = {"op": op, "site": site, "positions": self._positions(texts)}
        if site != "token_embeddings":
            made["layers"] = self._layers()
        if site in _HEAD_SITES and self.dice.random() < 0.6:
            made["heads"] = self._heads()
        if self.dice.random() < 0.2:
            made["neurons"] = self.dice.choice(("all", 3, "1:9", [0, -1, 5], "::3"))
        if op in ("add", "project_out", "swap"):
            made["vector"] = self._vector(site)
        if op == "swap":
            made["other"] = [round(self.dice.gauss(0, 1), 3) for _ in range(self._width(site))]
        if op == "project_out" and self.dice.random() < 0.3:
            made |= {"over": self.dice.choice(("all", 0)), "positions": self.dice.choice(("last", [0, -1], 0))}
        if op in ("add", "scale", "swap"):
            made["factor"] = self.dice.choice((-1, 0.1, 0.5, 2, 1.5))
        if op == "mean" and self.dice.random() < 0.5:
            made |= {"over": self.prompts(2), "over_positions": self.dice.choice(("all", "last", 0, {"text": MARK}))}
        elif op == "mean":
            made |= {"over": self.dice.choice(("all", 0)), "positions": self.dice.choice(("last", [0, -1], 0))}
        if op == "patch":
            made["from"] = self._source(site, texts)
            if self.dice.random() < 0.2:
                made["along"] = self._vector(site)
            if self.dice.random() < 0.2:
                made |= {"positions": [0, -1], "from": made["from"] | {"position": [1, 0]}}
            elif "position" not in made["from"]:
                made["positions"] = self.dice.choice(("last", 0, [0, -1], {"text": MARK}, "1:3"))
        return made

    def _source(self, site: str, texts: list[Text]) -> dict[str, Any]:
        source: dict[str, Any] = {}
        fitting = [(run, kept) for run, kept in self.subject.by.kept.items() if kept.site == site]
        if fitting and self.dice.random() < 0.7:
            run, kept = self.dice.choice(fitting)
            source |= {"run": run, "prompt": self.dice.randrange(len(kept.texts))}
        elif self.dice.random() < 0.7:
            source["prompt"] = self.dice.choice((0, len(texts) - 1, self.prompts(1)[0]))
        if self.dice.random() < 0.5:
            source["position"] = self.dice.choice(("last", 0, -2, 1))
        if self.dice.random() < 0.3 and site != "token_embeddings":
            source["layer"] = self.dice.randrange(self.subject.plain.layers)
        return source

    def _op_skip(self, texts: list[Text]) -> dict[str, Any]:
        return {"op": "skip", "layers": self.dice.choice((0, 1, 2, "1:3", -1))}

    def _op_knockout(self, texts: list[Text]) -> dict[str, Any]:
        made = {"op": "knockout", "layers": self._layers(), "heads": self._heads()}
        made |= {"query_positions": self._positions(texts), "key_positions": self._positions(texts)}
        return made | ({"renormalise": False} if self.dice.random() < 0.3 else {})

    def _op_set_attention(self, texts: list[Text]) -> dict[str, Any]:
        made = {"op": "set_attention", "layers": self._layers(), "heads": self._heads()}
        made["query_positions"] = self._positions(texts)
        made["pattern"] = self.dice.choice(("uniform", "first", "previous", "self"))
        if self.dice.random() < 0.25:
            which = self.dice.randrange(len(texts))
            count = len(texts[which].ids)
            made["prompts"] = which
            made["pattern"] = [[round(self.dice.random(), 2) for _ in range(count)] for _ in range(count)]
            made["query_positions"] = self.dice.choice(("all", "last", 0))
        return made

    def _op_attention(self, texts: list[Text]) -> dict[str, Any]:
        """A state operation at the attention probabilities."""
        op = self.dice.choice(("scale", "zero", "patch"))
        made: dict[str, Any] = {"op": op, "site": "attention_probabilities", "layers": self._layers()}
        made |= {"positions": self._positions(texts), "heads": self._heads()}
        if op == "scale":
            made["factor"] = self.dice.choice((0.5, 2, -1))
        if op == "patch":
            made["from"] = self.dice.choice(({}, {"layer": self.dice.randrange(self.subject.plain.layers)}))
        return made


def _counts(operation: dict[str, Any]) -> bool:
    """Whether an operation names prompts by their number."""
    return "prompts" in operation or isinstance(operation.get("from", {}).get("prompt"), int)
