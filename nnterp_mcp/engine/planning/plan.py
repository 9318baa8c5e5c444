"""From what a request says to what a pass does: layers, heads, positions and vectors resolved against one model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from nnterp_mcp.engine.attention_edits import KnockedOut, KnockoutEdit, PatternEdit, fitting_matrix
from nnterp_mcp.engine.edits import (
    Added,
    Averaged,
    Change,
    Edit,
    PassedOn,
    Patched,
    PatchedPatterns,
    Projected,
    Scaled,
    StateEdit,
    Swapped,
)
from nnterp_mcp.engine.forward import NOTHING, Plan
from nnterp_mcp.engine.hook_points import Place, known_width, require_place
from nnterp_mcp.engine.planning.clean_states import Gathered, Known, Request, gather
from nnterp_mcp.engine.planning.correspondence import Destination, mean_by_position, require_match
from nnterp_mcp.engine.planning.features import FindFeatures, find_bases, rewritten
from nnterp_mcp.engine.planning.recorded_states import FindStates, KeptStates
from nnterp_mcp.engine.planning.vectors import Vectors, resolve_projection, resolve_vector
from nnterp_mcp.engine.token_spans import Reach
from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.structure.attention_span import Horizon
from nnterp_mcp.model.text.positions import resolve_averaged, resolve_positions
from nnterp_mcp.model.text.tokenization import EncodedPrompt, encode_prompts
from nnterp_mcp.request.operations import (
    Add,
    EditFeatures,
    IndexSpec,
    Knockout,
    Mean,
    Operation,
    Patch,
    ProjectOut,
    Scale,
    SetAttention,
    Skip,
    StateOperation,
    Swap,
    describe,
    label_of,
    site_of,
)
from nnterp_mcp.request.positions import goes_on
from nnterp_mcp.request.prompts import Prompt
from nnterp_mcp.request.selectors import in_step, resolve_indices, resolve_layers

Draft = Callable[[Gathered], Edit]
"""An edit that waits for states of clean runs."""

Making = Callable[[Gathered], Change]
"""A change that waits for them."""


def plan(
    model: StandardizedTransformer,
    operations: Sequence[Operation],
    prompts: Sequence[EncodedPrompt],
    vectors: Vectors | None = None,
    *,
    states: FindStates | None = None,
    features: FindFeatures | None = None,
    known: Known | None = None,
    batch_tokens: int = 4096,
) -> Plan:
    """Resolves operations against a model and the prompts of a request.

    What patches and means take from clean runs is computed here, in as few passes as its prompts need.

    Args:
        operations: The operations; the order counts only among those at one place.
        prompts: The prompts of the request, by which positions and prompt indices are meant.
        vectors: Finds a vector by its name.
        states: Finds the states of an earlier run.
        features: Finds loaded dictionaries of features.
        known: States of clean runs, shared among plans of one request: none of its sources runs twice.
        batch_tokens: Padded tokens in a forward pass over sources, at most.

    Returns:
        The plan, for `forward` and `generate` on any of these prompts.

    Raises:
        InvalidRequest: A layer, head, position, prompt or vector does not exist or fit.
        Unsupported: The model cannot do it; by name.
    """
    if not operations:
        return NOTHING
    planner = _Planner(model, prompts, vectors, states, features)
    drafts = [draft for operation in operations for draft in planner.draft(operation)]
    gathered = gather(model, planner.requests, batch_tokens, {} if known is None else known)
    edits: dict[Place, list[Edit]] = {}
    for edit in sorted((draft(gathered) for draft in drafts), key=_is_no_skip):
        edits.setdefault(edit.place, []).append(edit)
    ordered = {place: _knock_out_last(place, listed) for place, listed in edits.items()}
    return Plan(ordered, [describe(operation) for operation in operations])


def check(
    model: StandardizedTransformer,
    operations: Sequence[Operation],
    vectors: Vectors | None = None,
    *,
    states: FindStates | None = None,
    features: FindFeatures | None = None,
) -> None:
    """Refuses operations that no request could make, before there is one; what they mean of prompts is left open.

    Args:
        vectors: Finds a vector by its name.
        states: Finds the states of an earlier run.
        features: Finds loaded dictionaries of features.

    Raises:
        InvalidRequest: A layer, head or vector does not exist or fit.
        Unsupported: The model cannot do it; by name.
    """
    planner = _Planner(model, (), vectors, states, features)
    for operation in operations:
        list(planner.draft(operation))


def _knock_out_last(place: Place, listed: Sequence[Edit]) -> Sequence[Edit]:
    """The edits at a hook point, with all knockouts merged into one that comes last."""
    knockouts = [edit for edit in listed if isinstance(edit, KnockoutEdit)]
    others = [edit for edit in listed if not isinstance(edit, KnockoutEdit)]
    needs = [needed for edit in others for needed in edit.needs]
    return [KnockedOut(place, others, knockouts, needs)] if knockouts else others


def _is_no_skip(edit: Edit) -> bool:
    """For sorting: a layer is skipped before anything else is done to its output."""
    return not (isinstance(edit, StateEdit) and isinstance(edit.change, PassedOn))


class _Planner:
    """Turns operations into drafts, and notes what they need of clean runs."""

    def __init__(
        self,
        model: StandardizedTransformer,
        prompts: Sequence[EncodedPrompt],
        vectors: Vectors | None,
        states: FindStates | None,
        features: FindFeatures | None,
    ) -> None:
        self.requests: list[Request] = []
        self._model = model
        self._prompts = prompts
        self._vectors = vectors
        self._states = states
        self._features = features
        self._encoded: dict[Any, EncodedPrompt] = {}

    def draft(self, operation: Operation) -> Iterator[Draft]:
        """The edits of one operation."""
        chosen = self._chosen(operation.prompts)
        if isinstance(operation, Skip):
            yield from self._skip(operation, chosen)
        elif isinstance(operation, Knockout):
            yield from self._knock_out(operation, chosen)
        elif isinstance(operation, SetAttention):
            yield from self._set_attention(operation, chosen)
        elif isinstance(operation, EditFeatures):
            yield from self._edit_features(operation, chosen)
        else:
            for place in self._places(operation, site_of(operation)):
                yield self._change_states(operation, place, chosen)

    def _chosen(self, asked: IndexSpec) -> list[EncodedPrompt]:
        if not self._prompts:
            return []
        found = resolve_indices(asked, len(self._prompts), "prompt", "the request")
        return [self._prompts[index] for index in found]

    def _places(self, operation: Operation, site: Any) -> list[Place]:
        model = self._model
        layers = [None] if operation.layers is None else resolve_layers(operation.layers, model.num_layers, model.name)
        places = [Place(site, layer) for layer in layers]
        for place in places:
            require_place(model, place)
        return places

    def _heads(self, asked: IndexSpec, place: Place) -> list[int]:
        assert place.layer is not None
        count = self._model.anatomy.layers[place.layer].num_heads
        return resolve_indices(asked, count, "head", f"layer {place.layer} of {self._model.name}")

    def _horizon(self, place: Place) -> Horizon:
        assert place.layer is not None
        return self._model.anatomy.layers[place.layer].horizon

    def _reach(self, asked: Sequence[Any], chosen: Sequence[EncodedPrompt], steps: IndexSpec, onward: bool) -> Reach:
        return Reach({prompt.index: resolve_positions(asked, prompt) for prompt in chosen}, onward, in_step(steps))

    def _skip(self, operation: Skip, chosen: Sequence[EncodedPrompt]) -> Iterator[Draft]:
        reach = self._reach(["all"], chosen, operation.steps, True)
        for place in self._places(operation, "layers_output"):
            entrance = Place("layers_input", place.layer)
            edit = StateEdit(place, reach, PassedOn(entrance), needs=(entrance,))
            yield lambda gathered, edit=edit: edit

    def _edit_features(self, operation: EditFeatures, chosen: Sequence[EncodedPrompt]) -> Iterator[Draft]:
        model = self._model
        layers = [None] if operation.layers is None else resolve_layers(operation.layers, model.num_layers, model.name)
        positions = {prompt.index: resolve_averaged(operation.positions, prompt) for prompt in chosen}
        reach = Reach(positions, goes_on(operation.positions), in_step(operation.steps))
        for basis in find_bases(model, operation, layers, self._features):
            change = rewritten(operation, basis)
            edit = StateEdit(basis.writes, reach, change, needs=change.reads)
            yield lambda gathered, edit=edit: edit

    def _knock_out(self, operation: Knockout, chosen: Sequence[EncodedPrompt]) -> Iterator[Draft]:
        asked, read = operation.query_positions, operation.key_positions
        queries = self._reach(asked, chosen, operation.steps, goes_on(asked))
        keys = self._reach(read, chosen, "all", goes_on(read, last=False))
        for place in self._places(operation, "attention_probabilities"):
            heads, horizon = self._heads(operation.heads, place), self._horizon(place)
            edit = KnockoutEdit(place, queries, keys, heads, operation.renormalise, horizon)
            yield lambda gathered, edit=edit: edit

    def _set_attention(self, operation: SetAttention, chosen: Sequence[EncodedPrompt]) -> Iterator[Draft]:
        pattern = operation.pattern
        onward = isinstance(pattern, str) and goes_on(operation.query_positions)
        queries = self._reach(operation.query_positions, chosen, operation.steps, onward)
        content = pattern if isinstance(pattern, str) else fitting_matrix(pattern, chosen)
        for place in self._places(operation, "attention_probabilities"):
            edit = PatternEdit(place, queries, self._heads(operation.heads, place), content, self._horizon(place))
            yield lambda gathered, edit=edit: edit

    def _change_states(self, operation: StateOperation, place: Place, chosen: Sequence[EncodedPrompt]) -> Draft:
        by_position = (
            isinstance(operation, Patch)
            or (isinstance(operation, Mean) and operation.over_positions is None)
            or (isinstance(operation, ProjectOut) and operation.over is not None)
        )
        onward = not by_position and goes_on(operation.positions)
        resolve = resolve_averaged if isinstance(operation, ProjectOut | Swap) else resolve_positions
        positions = {prompt.index: resolve(operation.positions, prompt) for prompt in chosen}
        reach = Reach(positions, onward, in_step(operation.steps))
        heads = None if operation.heads is None else self._heads(operation.heads, place)
        width = known_width(self._model, place)
        if operation.neurons is not None and width is not None:
            resolve_indices(operation.neurons, width, "neuron", f"a state at {place}")
        change = self._change(operation, Destination(place, reach, chosen, heads))
        return lambda gathered: StateEdit(place, reach, change(gathered), heads, operation.neurons)

    def _change(self, operation: StateOperation, to: Destination) -> Making:
        if isinstance(operation, Patch):
            make = self._patch if operation.source.run is None else self._patch_from_run
            return make(operation, to)
        if isinstance(operation, Mean):
            return self._average(operation, to)
        if isinstance(operation, ProjectOut):
            return self._project_out(operation, to)
        change = self._swap(operation, to.place) if isinstance(operation, Swap) else self._simple(operation, to.place)
        return lambda gathered: change

    def _simple(self, operation: StateOperation, place: Place) -> Change:
        if isinstance(operation, Add):
            vector = resolve_vector(self._model, operation.vector, place, self._vectors)
            return Added(vector * operation.factor, label_of(operation.vector), place)
        return Scaled(operation.factor if isinstance(operation, Scale) else 0.0)

    def _project_out(self, operation: ProjectOut, to: Destination) -> Making:
        vector = resolve_projection(self._model, operation.vector, to.place, self._vectors)
        label = label_of(operation.vector)
        if operation.over is None:
            return lambda gathered: Projected(vector, label, to.place)
        prompts = self._averaged_prompts(operation.over)
        requests = [Request(prompt, to.place, resolve_averaged(operation.positions, prompt)) for prompt in prompts]
        self.requests += requests
        mean = mean_by_position(requests, to)
        return lambda gathered: Projected(vector, label, to.place, mean(gathered))

    def _patched(self, operation: Patch, states: Patched, place: Place) -> Change:
        """The states that a patch puts in: whole, or their part along a vector."""
        if operation.along is None:
            return states
        along = resolve_projection(self._model, operation.along, place, self._vectors)
        return Projected(along, label_of(operation.along), place, states)

    def _swap(self, operation: Swap, place: Place) -> Change:
        pair = [resolve_vector(self._model, one, place, self._vectors) for one in (operation.vector, operation.other)]
        label = f"{label_of(operation.vector)} and {label_of(operation.other)}"
        return Swapped.along(pair, operation.factor, label, place)

    def _average(self, operation: Mean, to: Destination) -> Making:
        prompts = self._averaged_prompts(operation.over)
        if operation.over_positions is None:
            requests = [Request(prompt, to.place, resolve_positions(operation.positions, prompt)) for prompt in prompts]
            self.requests += requests
            return mean_by_position(requests, to)
        together = [
            Request(prompt, to.place, resolve_averaged(operation.over_positions, prompt), summed=True)
            for prompt in prompts
        ]
        self.requests += together
        count = sum(len(request.positions) for request in together)
        return lambda gathered: Averaged(torch.stack([gathered[r] for r in together]).sum(0) / count, to.heads)

    def _averaged_prompts(self, over: str | Sequence[int | Prompt]) -> list[EncodedPrompt]:
        named = range(len(self._prompts)) if isinstance(over, str) else over
        return [self._named_prompt(one) for one in named if self._prompts or not isinstance(one, int)]

    def _patch(self, operation: Patch, to: Destination) -> Making:
        origin = self._origin(operation, to.place)
        requests: dict[int, Request] = {}
        index: dict[tuple[int, int], int] = {}
        for prompt in to.prompts:
            source = self._source_prompt(operation, prompt)
            positions = resolve_positions(operation.source.position or operation.positions, source)
            into = to.reach.positions[prompt.index]
            require_match(positions, into, prompt, source, to.place)
            requests[prompt.index] = Request(source, origin, positions)
            index |= {(prompt.index, at): min(i, len(positions) - 1) for i, at in enumerate(into)}
        self.requests += requests.values()
        if to.place.site == "attention_probabilities":
            return lambda gathered: PatchedPatterns({p: gathered[r] for p, r in requests.items()}, index, to.heads)
        return lambda gathered: self._patched(
            operation, Patched({p: gathered[r] for p, r in requests.items()}, index, to.heads), to.place
        )

    def _patch_from_run(self, operation: Patch, to: Destination) -> Making:
        kept = self._kept(operation, to.place)
        origin = self._origin(operation, to.place)
        states: dict[int, torch.Tensor] = {}
        index: dict[tuple[int, int], int] = {}
        for prompt in to.prompts:
            source = self._prompt_of(kept, operation, prompt)
            asked = operation.source.position
            where = None
            if asked is not None or not kept.sole(source.index):
                where = resolve_positions(asked or operation.positions, source)
            taken, into = kept.take(origin.layer, source.index, where), to.reach.positions[prompt.index]
            require_match(range(len(taken)), into, prompt, source, to.place)
            states[prompt.index] = taken.to(self._model.device)
            index |= {(prompt.index, at): min(i, len(taken) - 1) for i, at in enumerate(into)}
        change = self._patched(operation, Patched(states, index, to.heads), to.place)
        return lambda gathered: change

    def _kept(self, operation: Patch, place: Place) -> KeptStates:
        run_id = operation.source.run
        assert run_id is not None
        if self._states is None:
            raise InvalidRequest(
                f"a patch cannot take the states of {run_id!r} here.", "Give from as {prompt, position, layer}."
            )
        kept = self._states(run_id)
        if kept.site != place.site:
            raise InvalidRequest(f"{run_id} kept states at {kept.site}, and the patch goes to the {place}.")
        return kept

    def _prompt_of(self, kept: KeptStates, operation: Patch, prompt: EncodedPrompt) -> EncodedPrompt:
        """The prompt of a run that a patch comes from: the one of the same number, unless another one is named."""
        asked = operation.source.prompt
        number = prompt.index if asked is None else asked
        if not isinstance(number, int):
            raise InvalidRequest("from.prompt must be the index of a prompt of from.run, and not a text.")
        (index,) = resolve_indices(number, len(kept.prompts), "prompt", kept.run_id)
        return replace(self._encode(kept.prompts[index]), index=index)

    def _origin(self, operation: Patch, place: Place) -> Place:
        layer = operation.source.layer
        if layer is None:
            return place
        if place.layer is None:
            raise InvalidRequest("a patch at token_embeddings has no layer to come from: leave out from.layer.")
        (found,) = resolve_layers(layer, self._model.num_layers, self._model.name)
        origin = Place(place.site, found)
        require_place(self._model, origin)
        return origin

    def _source_prompt(self, operation: Patch, prompt: EncodedPrompt) -> EncodedPrompt:
        return prompt if operation.source.prompt is None else self._named_prompt(operation.source.prompt)

    def _named_prompt(self, asked: Any) -> EncodedPrompt:
        if isinstance(asked, int):
            (index,) = resolve_indices(asked, len(self._prompts), "prompt", "the request")
            return self._prompts[index]
        return self._encode(asked)

    def _encode(self, prompt: Any) -> EncodedPrompt:
        key = prompt if isinstance(prompt, str) else tuple(prompt)
        if key not in self._encoded:
            (self._encoded[key],) = encode_prompts(
                self._model.tokenizer, [prompt], self._model.name, self._model.context, self._model.embedded
            )
        return self._encoded[key]
