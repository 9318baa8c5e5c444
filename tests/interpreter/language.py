"""What each operation does to the states at its place, for one prompt of a request."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tests.interpreter.plain import Edit, Edits, Place, Plain, States
from tests.interpreter.text import Text, as_list, goes_on, numbers, without_first

Operation = Mapping[str, Any]

_DEFAULTS = {"add": "layers_output", "patch": "layers_output", "project_out": "layers_output", "swap": "layers_output"}


@dataclass(frozen=True)
class Kept:
    """States that a run has kept, at a site of every layer and at every position."""

    site: str
    texts: Sequence[Text]
    states: Sequence[States]


@dataclass
class Interpreter:
    """The language on a plain model.

    Attributes:
        plain: The model.
        tokenizer: Its tokenizer.
        vectors: Named vectors, by layer; one under -1 serves all.
        kept: States that runs have kept, by the run's id.
    """

    plain: Plain
    tokenizer: Any
    vectors: dict[str, dict[int, Tensor]] = field(default_factory=dict[str, dict[int, Tensor]])
    kept: dict[str, Kept] = field(default_factory=dict[str, Kept])
    _clean: dict[tuple[int, ...], States] = field(default_factory=dict[tuple[int, ...], States])

    def read(self, text: str) -> Text:
        """A prompt as the model reads it."""
        return Text.read(self.tokenizer, text)

    def edits(self, operations: Sequence[Operation], prompts: Sequence[Text], which: int, length: int) -> Edits:
        """The edits of a pass over one prompt and what was generated after it.

        Args:
            operations: What is in force.
            prompts: The prompts of the request.
            which: The one that runs.
            length: Tokens that run, the new ones included.
        """
        return _Request(self, prompts, which, length).edits(operations)

    def clean(self, text: Text) -> States:
        """The states of a prompt with nothing in force."""
        key = tuple(text.ids)
        if key not in self._clean:
            with torch.no_grad():
                self._clean[key] = self.plain.run(text.ids).states
        return self._clean[key]

    def vector(self, asked: Any, layer: int) -> Tensor:
        """A vector by its name, between tokens, or as its numbers."""
        if isinstance(asked, str):
            by_layer = self.vectors[asked]
            return by_layer.get(layer, by_layer.get(-1, torch.empty(0)))
        if isinstance(asked, dict):
            minus = asked.get("negative")
            return self._rows(asked, asked["positive"]) - (self._rows(asked, minus) if minus else 0)
        return torch.tensor(asked)

    def _rows(self, asked: Operation, text: str) -> Tensor:
        model = self.plain.model
        owner = model.get_output_embeddings() if asked.get("of") == "unembeddings" else model.get_input_embeddings()
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return owner.weight[ids].detach().mean(0)


@dataclass
class _Request:
    """One prompt among those of a request."""

    by: Interpreter
    prompts: Sequence[Text]
    which: int
    length: int

    @property
    def prompt(self) -> Text:
        """The prompt that runs."""
        return self.prompts[self.which]

    def edits(self, operations: Sequence[Operation]) -> Edits:
        """Those of all operations; at one place a skip comes first, knockouts last, the others as they are listed."""
        found: dict[Place, list[Edit]] = {}
        cuts: dict[Place, list[Operation]] = {}
        for operation in sorted(operations, key=lambda operation: operation["op"] != "skip"):
            if self.which not in numbers(operation.get("prompts", "all"), len(self.prompts)):
                continue
            for place in self._places(operation):
                if operation["op"] == "knockout":
                    cuts.setdefault(place, []).append(operation)
                else:
                    found.setdefault(place, []).append(self._edit(operation, place))
        for place, knockouts in cuts.items():
            found.setdefault(place, []).append(self._knock_out(knockouts, place[1]))
        return found

    def _places(self, operation: Operation) -> list[Place]:
        op = operation["op"]
        if op in ("knockout", "set_attention"):
            site = "attention_probabilities"
        elif op == "skip":
            site = "layers_output"
        else:
            site = operation.get("site") or ("heads_output" if "heads" in operation else _DEFAULTS[op])
        layers = [-1] if site == "token_embeddings" else numbers(operation["layers"], self.by.plain.layers)
        return [(site, layer) for layer in layers]

    def _edit(self, operation: Operation, place: Place) -> Edit:
        op = operation["op"]
        if op == "skip":
            at = self._reach(operation, ["all"])
            return lambda states, seen: _put(states, at, seen["layers_input", place[1]][at])
        if op == "set_attention":
            return self._set_attention(operation, place[1])
        return self._change(operation, place)

    def _reach(self, operation: Operation, asked: Any, onward: bool | None = None, stepped: bool = True) -> list[int]:
        """The tokens of the pass that positions mean, at the steps at which the operation acts."""
        old, asked = len(self.prompt.ids), as_list(asked)
        onward = goes_on(asked, last=True) if onward is None else onward
        new = range(old, self.length) if onward else ()
        steps = operation.get("steps", "all") if stepped else "all"
        acting = set(numbers(steps, self.length - old + 1) if isinstance(steps, str) else as_list(steps))
        return [at for at in [*self.prompt.at(asked), *new] if max(0, at - old + 1) in acting]

    def _change(self, operation: Operation, place: Place) -> Edit:
        op = operation["op"]
        ends = op == "patch" or ("over" in operation and "over_positions" not in operation)
        asked = operation.get("positions", "all")
        asked = without_first(asked, self.prompt) if op in ("project_out", "swap") else asked
        at = self._reach(operation, asked, False if ends else None)
        new = self._patch(operation, place, at) if op == "patch" else self._new(operation, place, at)

        def edit(states: Tensor, seen: States) -> Tensor:
            block = states[at]
            chosen = torch.ones_like(block, dtype=torch.bool)
            if "heads" in operation:
                chosen &= _marks(numbers(operation["heads"], block.shape[1]), block.shape[1])[None, :, None]
            if "neurons" in operation:
                chosen &= _marks(numbers(operation["neurons"], block.shape[-1]), block.shape[-1])
            return _put(states, at, torch.where(chosen, new(block), block))

        return edit

    def _new(self, operation: Operation, place: Place, at: Sequence[int]) -> Callable[[Tensor], Tensor]:
        op = operation["op"]
        if op == "zero":
            return torch.zeros_like
        if op == "scale":
            return lambda block: block * operation["factor"]
        if op == "mean":
            mean = self._mean(operation, place, at)
            return lambda block: mean.expand_as(block)
        vector = self.by.vector(operation["vector"], place[1])
        if op == "add":
            return lambda block: block + operation.get("factor", 1.0) * vector
        if op == "swap":
            pair = torch.stack([vector, self.by.vector(operation["other"], place[1])], dim=-1)
            exchange = pair @ (torch.eye(2).flip(0) - torch.eye(2)).to(pair) @ torch.linalg.pinv(pair)
            return lambda block: block + operation.get("factor", 1.0) * block @ exchange.T
        unit = vector / vector.norm()
        if "over" in operation:
            mean = self._mean(operation, place, at)
            return lambda block: block + ((mean - block) * unit).sum(-1, keepdim=True) * unit
        return lambda block: block - (block * unit).sum(-1, keepdim=True) * unit

    def _mean(self, operation: Operation, place: Place, at: Sequence[int]) -> Tensor:
        """The mean of all those positions together, or for each of the positions that are reached."""
        over = range(len(self.prompts)) if operation["over"] == "all" else as_list(operation["over"])
        texts = [self.prompts[one] if isinstance(one, int) else self.by.read(one) for one in over]
        asked = operation.get("positions", "all")
        if "over_positions" in operation:
            together = operation["over_positions"]
            return torch.cat(
                [self.by.clean(text)[place][text.at(without_first(together, text))] for text in texts]
            ).mean(0)
        spared = operation["op"] == "project_out"
        taken = [self.by.clean(text)[place][text.at(without_first(asked, text) if spared else asked)] for text in texts]
        into = self.prompt.at(without_first(asked, self.prompt) if spared else asked)
        return torch.stack(taken).mean(0)[[into.index(one) for one in at]]

    def _patch(self, operation: Operation, place: Place, at: Sequence[int]) -> Callable[[Tensor], Tensor]:
        source, asked = operation["from"], operation.get("positions", "all")
        text, found = self._source(source)
        origin = (place[0], source["layer"] if source.get("layer") is not None else place[1])
        positions = text.at(source["position"] if source.get("position") is not None else asked)
        states = found[origin][positions]
        into = self.prompt.at(asked)
        rows = [min(into.index(one), len(positions) - 1) for one in at]

        along = self.by.vector(operation["along"], place[1]) if "along" in operation else None

        def new(block: Tensor) -> Tensor:
            taken = states[rows]
            if along is not None:
                unit = along / along.norm()
                return block + ((taken - block) * unit).sum(-1, keepdim=True) * unit
            missing = block.shape[-1] - taken.shape[-1]
            return torch.nn.functional.pad(taken, (0, missing)) if missing else taken

        return new

    def _source(self, source: Operation) -> tuple[Text, States]:
        """Where a patch comes from: a clean pass, or what a run has kept."""
        asked = source.get("prompt")
        if "run" in source:
            kept, number = self.by.kept[source["run"]], self.which if asked is None else asked
            return kept.texts[number], kept.states[number]
        text = self.prompt if asked is None else self.prompts[asked] if isinstance(asked, int) else self.by.read(asked)
        return text, self.by.clean(text)

    def _knock_out(self, knockouts: Sequence[Operation], layer: int) -> Edit:
        """All knockouts of a layer: those that renormalise are one mask over the scores, the others come after it."""
        masks = [operation for operation in knockouts if operation.get("renormalise", True)]
        zeros = [operation for operation in knockouts if not operation.get("renormalise", True)]

        def edit(pattern: Tensor, seen: States) -> Tensor:
            own, readable = seen["own_attention", layer], seen["readable", layer]
            cut = self._cut(masks, pattern) & (readable[:, None, :] | (pattern != 0))
            left = own.masked_fill(cut, 0).sum(-1, keepdim=True)
            total = own.sum(-1, keepdim=True)
            sink = torch.where(total < 1 - 1e-5, 1 - total, 0)
            kept = pattern.masked_fill(cut, 0)
            there = kept.sum(-1, keepdim=True)
            share = sink / (sink + left).clamp_min(1e-30)
            # No division by zero, which has no gradient either.
            masked = kept * (1 - share) / torch.where(there == 0, 1, there)
            pattern = torch.where(cut.any(-1, keepdim=True), masked, pattern)
            return pattern.masked_fill(self._cut(zeros, pattern), 0)

        return edit

    def _cut(self, knockouts: Sequence[Operation], pattern: Tensor) -> Tensor:
        """What knockouts cut, (query, head, key)."""
        cut = torch.zeros_like(pattern, dtype=torch.bool)
        for operation in knockouts:
            queries = self._reach(operation, operation.get("query_positions", "all"))
            asked = as_list(operation.get("key_positions", "all"))
            keys = self._reach(operation, asked, goes_on(asked, last=False), stepped=False)
            rows = _grid(pattern, queries, numbers(operation.get("heads", "all"), pattern.shape[1]))
            cut |= rows & _marks(keys, pattern.shape[2])
        return cut

    def _set_attention(self, operation: Operation, layer: int) -> Edit:
        pattern = operation["pattern"]
        onward = None if isinstance(pattern, str) else False
        queries = self._reach(operation, operation.get("query_positions", "all"), onward)

        def edit(came: Tensor, seen: States) -> Tensor:
            chosen = _grid(came, queries, numbers(operation.get("heads", "all"), came.shape[1]))
            return torch.where(chosen, _pattern(pattern, seen["readable", layer])[:, None, :], came)

        return edit


def _pattern(asked: Any, readable: Tensor) -> Tensor:
    """What each query reads of the keys that its layer lets it read."""
    count = len(readable)
    if not isinstance(asked, str):
        found = torch.zeros(count, count)
        found[: len(asked), : len(asked)] = torch.tensor(asked)
        return found
    if asked == "uniform":
        return readable / readable.sum(-1, keepdim=True)
    query = torch.arange(count)
    before = torch.where(readable[query, query - 1] & (query > 0), query - 1, query)
    key = {"first": readable.int().argmax(-1), "previous": before, "self": query}[asked]
    return torch.nn.functional.one_hot(key, count).float()


def _put(states: Tensor, at: Sequence[int], block: Tensor) -> Tensor:
    """The states with some rows replaced."""
    changed = states.clone()
    changed[list(at)] = block
    return changed


def _marks(chosen: Sequence[int], count: int) -> Tensor:
    marked = torch.zeros(count, dtype=torch.bool)
    marked[list(chosen)] = True
    return marked


def _grid(pattern: Tensor, queries: Sequence[int], heads: Sequence[int]) -> Tensor:
    """Marks the rows of some queries of some heads, (query, head, key)."""
    rows = _marks(queries, pattern.shape[0])[:, None, None] & _marks(heads, pattern.shape[1])[None, :, None]
    return rows.expand_as(pattern).clone()
