"""Result and answer of `features`."""

from __future__ import annotations

from nnterp_mcp.contract import DominantToken, Result, ResultPart, TableAnswer


class ActiveToken(ResultPart):
    """A token at which a feature is active.

    Attributes:
        prompt: The prompt's index.
        position: The token's position.
        token: The token.
        activation: The feature there.
    """

    prompt: int
    position: int
    token: str
    activation: float


class LogitEffect(ResultPart):
    """A token, and how far an activation of 1 raises its logit directly, on a stream of root mean square 1."""

    token: str
    effect: float


class NearFeature(ResultPart):
    """Another feature, and the cosine between what both write."""

    feature: int
    cosine: float


class FeatureReading(ResultPart):
    """A feature.

    Attributes:
        feature: Its index.
        means: Its mean activation over the tokens of each group's prompts, averaged over the prompts.
        difference: The first group's mean minus the second's; None without two groups.
        share: The share of tokens at which it is active; None where nothing was read.
        tokens: The tokens at which it is strongest.
        promotes: The tokens whose logits it raises most; empty where it does not write to the residual stream.
        suppresses: The tokens whose logits it lowers most.
        nearest: The features with the most similar decoder rows.
        matched: Random features that were active about as often and as strongly, to compare edits with.
        label: What others call it: third-party text, which nobody checked here; None without one.
    """

    feature: int
    means: list[float]
    difference: float | None
    share: float | None
    tokens: list[ActiveToken]
    promotes: list[LogitEffect]
    suppresses: list[LogitEffect]
    nearest: list[NearFeature]
    matched: list[int]
    label: str | None = None


class ActiveFeature(ResultPart):
    """A feature that is active at a token, with its activation."""

    feature: int
    activation: float


class TokenReading(ResultPart):
    """A token that was read.

    Attributes:
        prompt: The prompt's index.
        position: The token's position.
        token: The token.
        error: The norm of the reconstruction error over that of the state.
        strongest: The features that are strongest at it.
    """

    prompt: int
    position: int
    token: str
    error: float
    strongest: list[ActiveFeature]


class FeaturesResult(Result):
    """The features of a dictionary at some tokens, and the tokens that they promote.

    Attributes:
        model: The model's handle.
        dictionary: The dictionary's name.
        place: The hook point that it reads, and of a transcoder the one that it writes to.
        latents: The number of its features.
        named: The features were named by the caller.
        groups: The groups of prompts.
        prompts: The number of prompts of each group.
        active: The number of features that are active at any token.
        l0: The mean number of active features at a token; None where nothing was read.
        error: The mean norm of the reconstruction error over that of the state.
        shuffled: The largest difference of any feature between shuffled groups, averaged over the shuffles.
        norm: The class of the final norm, through which decoder rows are read; None for a model without one.
        first_left_out: Each prompt's first token is left out, because positions was `all`.
        dominant: The token whose state dominates the means; None where there is none.
        labels: Where the labels come from; None without any.
        unlabelled: Why features may lack a label.
        interventions: The interventions that were active.
        features: The features, the strongest first.
        at_tokens: The tokens that were read, in their order.
    """

    model: str
    dictionary: str
    place: str
    latents: int
    named: bool
    groups: list[str]
    prompts: list[int]
    active: int
    l0: float | None
    error: float | None
    shuffled: float | None
    norm: str | None
    first_left_out: bool
    dominant: DominantToken | None = None
    labels: str | None = None
    unlabelled: str | None = None
    interventions: list[str]
    features: list[FeatureReading]
    at_tokens: list[TokenReading]


class FeaturesAnswer(TableAnswer):
    """The strongest features, or those that were named."""
