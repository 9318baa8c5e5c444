"""The predictions of two models after every token of the same prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from nnterp_mcp.engine.forward import forward
from nnterp_mcp.engine.readouts.reductions import divergence, log_probabilities
from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.formatting import quoted
from nnterp_mcp.model.standardized import StandardizedTransformer
from nnterp_mcp.model.text.tokenization import Batch, EncodedPrompt


@dataclass(frozen=True)
class PredictionChange:
    """The next-token distributions of two models after each token of a prompt.

    Attributes:
        divergence: KL(model ‖ base), in nats.
        base_top: The base's top tokens.
        base_p: Their probabilities in the base.
        top: The other model's.
        p: Their probabilities in it.
    """

    divergence: Float[Tensor, " position"]
    base_top: Int[Tensor, " position"]
    base_p: Float[Tensor, " position"]
    top: Int[Tensor, " position"]
    p: Float[Tensor, " position"]


def require_same_tokens(
    prompts: Sequence[EncodedPrompt], others: Sequence[EncodedPrompt], names: tuple[str, str]
) -> None:
    """Refuses two models that read the same texts as different tokens, whose positions then do not correspond.

    Args:
        prompts: The prompts as one model reads them.
        others: As the other one does.
        names: The models.

    Raises:
        InvalidRequest: They differ.
    """
    for one, other in zip(prompts, others, strict=True):
        if one.ids != other.ids:
            raise InvalidRequest(
                f"{names[0]} and {names[1]} read {quoted(one.text[:40])} as different tokens ({len(one.ids)} and "
                f"{len(other.ids)}): their positions do not correspond.",
                "Compare models that share a tokenizer.",
            )


def compare_predictions(
    base: StandardizedTransformer, model: StandardizedTransformer, work: Workload
) -> list[PredictionChange]:
    """Runs both models on each prompt.

    Args:
        base: The model that is compared with.
        model: The other one.
        work: The prompts.

    Raises:
        InvalidRequest: The models have different vocabularies.
    """
    if base.vocab_size != model.vocab_size:
        raise InvalidRequest(
            f"{base.name} has {base.vocab_size} logits and {model.name} {model.vocab_size}: no divergence is defined.",
            "Compare models of one vocabulary.",
        )

    def read(batch: Batch, numbers: Sequence[int]) -> list[PredictionChange]:
        at = [(row, position) for row, prompt in enumerate(batch.prompts) for position in range(len(prompt.ids))]
        before, after = (forward(one, batch, logits=at).logits for one in (base, model))
        assert before is not None
        assert after is not None
        old, new = log_probabilities(before), log_probabilities(after)
        (base_p, base_top), (p, top) = old.max(-1), new.max(-1)
        fields = (divergence(new, old), base_top, base_p.exp(), top, p.exp())
        split = [field.cpu().split([len(prompt.ids) for prompt in batch.prompts]) for field in fields]
        return [PredictionChange(*row) for row in zip(*split, strict=True)]

    return work.run(model, read)
