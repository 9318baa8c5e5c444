"""The operations: what each says and what fits together, before any model is known."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AliasChoices, BeforeValidator, Field, model_validator

from nnterp_mcp.request.arguments import LONGEST_NAME, Given
from nnterp_mcp.request.operations.operands import (
    AttentionPattern,
    AveragedPrompts,
    FeatureIndices,
    Heads,
    Neurons,
    PromptIndices,
    Source,
    Steps,
    Vector,
)
from nnterp_mcp.request.positions import Layers, Positions
from nnterp_mcp.request.sites import HEAD_SITES, SITES, Site


def _no_truth_value(given: Any) -> Any:
    if isinstance(given, bool):
        raise ValueError("input should be a number, not true or false")
    return given


Real = Annotated[float, BeforeValidator(_no_truth_value)]
"""A number."""


class BaseOperation(Given):
    """The fields of all operations.

    Attributes:
        layers: The layers that it acts on.
        prompts: The prompts of the request that it acts on.
        steps: The steps of a generation at which it acts: 0 is the pass over the prompt, 1 the one over the first
            new token, and so on.
    """

    layers: Layers | None = None
    prompts: PromptIndices = "all"
    steps: Steps = "all"

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        _check(self)  # pyright: ignore[reportArgumentType]
        return self


class BaseStateOperation(BaseOperation):
    """The fields of operations on states.

    Attributes:
        site: Where in the layer; `heads_output` when heads are named.
        positions: The positions of the prompt. `all`, `last` and ranges such as `1:` reach on to new tokens; those with
            an end, a negative start or a step do not.
        heads: The heads, at sites that have them.
        neurons: The components of the states.
    """

    site: Site | None = None
    positions: Positions = ("all",)
    heads: Heads | None = None
    neurons: Neurons | None = None


class Add(BaseStateOperation):
    """Adds `factor` times a vector to the states: steering."""

    op: Literal["add"] = "add"
    vector: Vector
    factor: Real = 1.0


class Scale(BaseStateOperation):
    """Multiplies the states by `factor`."""

    op: Literal["scale"] = "scale"
    factor: Real


class Zero(BaseStateOperation):
    """Sets the states to zero: zero ablation."""

    op: Literal["zero"] = "zero"


class Mean(BaseStateOperation):
    """Replaces the states by their mean over the clean runs of named prompts: mean ablation.

    The mean is taken position by position: the state at each of `positions` becomes the mean over the prompts of `over`
    of the state at the position that the same words name there, so all of them have as many. It reaches positions of
    the prompt only: new tokens of a generation have no counterpart.

    Attributes:
        over: The prompts: others by their texts, those of the request by their indices, or `all` of the request.
        over_positions: Averages over these positions of all those prompts together, for one state that goes to every
            position, new tokens included. Here `all` leaves out each prompt's first token, as in `ProjectOut`.
    """

    op: Literal["mean"] = "mean"
    over: AveragedPrompts
    over_positions: Positions | None = None


class Patch(BaseStateOperation):
    """Replaces the states by those of a clean run, possibly of another prompt, position or layer.

    It reaches positions of the prompt only: new tokens of a generation have no counterpart.

    Attributes:
        source: Where the states come from.
        along: Replaces only the component along this vector, or in this named subspace: an interchange intervention.
    """

    op: Literal["patch"] = "patch"
    source: Source = Field(validation_alias=AliasChoices("from", "source"), serialization_alias="from")
    along: Vector | None = None


class ProjectOut(BaseStateOperation):
    """Removes the component along a vector: directional ablation.

    Among the positions, `all` leaves out the first token of a prompt that has others: it is often an attention sink,
    whose state is hundreds of times longer than any other. The range `0:` includes it.

    Attributes:
        over: Sets the component to its mean over the clean runs of these prompts, position by position, in place of
            zero: others by their texts, those of the request by their indices, or `all` of the request.
    """

    op: Literal["project_out"] = "project_out"
    vector: Vector
    over: AveragedPrompts | None = None


class Swap(BaseStateOperation):
    """Exchanges the coordinates of the states along two vectors: of two concepts, one takes the other's place.

    With V the matrix of the two vectors and c = V⁺ h, the state h becomes h + factor · V (σ(c) - c), σ exchanging the
    two coordinates; what is orthogonal to both vectors stays as it is. Among the positions, `all` leaves out the first
    token, as in `ProjectOut`.

    Attributes:
        vector: One vector.
        other: The other, of another direction.
        factor: 1 exchanges; 2 is the "double-strength" swap of the Jacobian lens's paper.
    """

    op: Literal["swap"] = "swap"
    vector: Vector
    other: Vector
    factor: Real = 1.0


class Skip(BaseOperation):
    """Lets the named layers pass on what came in, each of them, the first and the last included."""

    op: Literal["skip"] = "skip"


class Knockout(BaseOperation):
    """Cuts what queries read from keys, in the attention probabilities.

    Attributes:
        heads: The heads.
        query_positions: The positions that read. They reach on to new tokens as `positions` do.
        key_positions: The positions that are not read any more. They reach on to new tokens as `positions` do, but for
            `last`, which is the prompt's last token.
        renormalise: True if the other keys share what was cut, as if the scores had been masked. Where none is left the
            query reads nothing.
    """

    op: Literal["knockout"] = "knockout"
    heads: Heads = "all"
    query_positions: Positions = ("all",)
    key_positions: Positions = ("all",)
    renormalise: bool = True


class SetAttention(BaseOperation):
    """Replaces attention probabilities by a fixed pattern.

    Attributes:
        heads: The heads.
        query_positions: The positions that read. They reach on to new tokens as `positions` do.
        pattern: The tokens that each of them reads, of those that its layer lets it read: all tokens up to itself
            evenly, the first, the one before it (itself where it cannot read that), itself; or a matrix (query × key)
            over the prompt.
    """

    op: Literal["set_attention"] = "set_attention"
    heads: Heads = "all"
    query_positions: Positions = ("all",)
    pattern: AttentionPattern


class EditFeatures(BaseOperation):
    """Changes features of a loaded dictionary in the states that it reconstructs.

    The state moves by the decoder rows of the features times the change of their activations. So the reconstruction
    error stays as it is, and activations that do not change leave the state as it is, to the last bit.

    Among the positions, `all` leaves out the first token, as in `ProjectOut`.

    Attributes:
        op: `scale` and `zero` multiply the activations, `add` adds to them, `set` replaces them.
        dictionary: The name of the dictionary.
        features: The features.
        factor: What `scale` multiplies by.
        value: What `add` adds, or `set` sets.
        random: A control: states move as far along a random direction, drawn with this seed, in place of decoder rows.
        positions: The positions of the prompt; they reach on to new tokens as in other operations.
    """

    op: Literal["scale", "zero", "add", "set"]
    site: Literal["features"] = "features"
    dictionary: Annotated[str, Field(min_length=1, max_length=LONGEST_NAME)]
    features: FeatureIndices
    factor: Real | None = None
    value: Real | None = None
    random: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    positions: Positions = ("all",)

    @model_validator(mode="after")
    def _has_its_number(self) -> Self:
        needed = {"scale": "factor", "zero": "", "add": "value", "set": "value"}[self.op]
        for name in ("factor", "value"):
            if (name == needed) != (getattr(self, name) is not None):
                raise ValueError(f"{self.op} at features {'needs' if name == needed else 'takes no'} {name}")
        return self


StateOperation = Add | Scale | Zero | Mean | Patch | ProjectOut | Swap
"""An operation on the states of a site."""

Operation = StateOperation | Skip | Knockout | SetAttention | EditFeatures
"""One intervention."""

OPERATIONS: dict[str, type[Operation]] = {
    cls.model_fields["op"].default: cls
    for cls in (Add, Scale, Zero, Mean, Patch, ProjectOut, Swap, Skip, Knockout, SetAttention)
}
"""Every operation on states and attention under its name."""

FEATURE_OPERATIONS = get_args(EditFeatures.model_fields["op"].annotation)
"""The operations on features."""

_DEFAULT_SITES: dict[str, Site] = dict.fromkeys(("add", "patch", "project_out", "swap"), "layers_output")


def site_of(operation: StateOperation) -> Site:
    """Where a state operation acts, its default applied.

    Raises:
        ValueError: There is no sensible default.
    """
    if operation.site is not None:
        return operation.site
    if operation.heads is not None:
        return "heads_output"
    if operation.op not in _DEFAULT_SITES:
        raise ValueError(f"{operation.op} needs a site: one of {', '.join(SITES)}")
    return _DEFAULT_SITES[operation.op]


def _check(operation: Operation) -> None:
    if isinstance(operation, EditFeatures):
        return  # its dictionary says where it acts
    site = site_of(operation) if isinstance(operation, StateOperation) else None
    if site == "token_embeddings" and operation.layers is not None:
        raise ValueError(f"{operation.op} takes no layers at token_embeddings, which come before the first layer")
    if site != "token_embeddings" and operation.layers is None:
        raise ValueError(
            f"{operation.op} needs layers: an integer, a list of integers, a range such as '4:20' or 'all'"
        )
    if isinstance(operation, StateOperation):
        _check_site(operation, site_of(operation))


def _check_site(operation: StateOperation, site: Site) -> None:
    if operation.heads is not None and site not in HEAD_SITES:
        sites = ", ".join(other for other in SITES if other in HEAD_SITES)
        raise ValueError(f"{operation.op} can choose heads at {sites}, not at {site}")
    if site == "attention_probabilities" and not isinstance(operation, Scale | Zero | Patch):
        raise ValueError(
            f"{operation.op} cannot act at attention_probabilities: scale, zero, patch, knockout and set_attention can"
        )
    if site == "attention_probabilities" and isinstance(operation, Patch) and operation.along is not None:
        raise ValueError("patch takes no along at attention_probabilities")
    if site == "attention_probabilities" and operation.neurons is not None:
        raise ValueError(f"{operation.op} cannot choose neurons at attention_probabilities: knockout chooses keys")
