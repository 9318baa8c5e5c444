"""A value requested too late, under the name that whoever wrote the trace knows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from nnsight.intervention.interleaver import OutOfOrderError

from tests.model.families import standardized

HIDDEN = ["layers_input", "layers_output", "attentions_input", "attentions_output", "attentions_contribution"]
HIDDEN += ["heads_output", "mlps_input", "neurons", "mlps_output", "mlps_contribution"]
INSIDE_ATTENTION = ["queries", "keys", "values", "attention_probabilities"]


def requested_late(model: Any, request: Callable[[Any], Any]) -> None:
    with model.trace("The capital"):
        model.logits.save()
        request(model).save()


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma2"])
def test_each_accessor_is_named(model_type: str) -> None:
    model = standardized(model_type)
    model.set_attention("eager")
    for accessor in HIDDEN + INSIDE_ATTENTION:
        with pytest.raises(OutOfOrderError) as caught:
            requested_late(model, lambda model, accessor=accessor: getattr(model, accessor)[1])
        place = str(caught.value).partition(" was requested, but the model already ran past it")[0]
        plain = accessor.replace("contribution", "output")
        assert place.partition(" (")[0] in (f"{accessor}[1]", f"{plain}[1]")
        assert place.endswith("]" if accessor in INSIDE_ATTENTION else "put)")


def test_modules_are_named_by_the_path_that_was_written() -> None:
    model = standardized("gpt2")
    with pytest.raises(OutOfOrderError, match=r"^layers\[1\]\.self_attn\.c_attn\.output was"):
        requested_late(model, lambda model: model.layers[1].self_attn.c_attn.output)
    with pytest.raises(OutOfOrderError, match=r"^ln_final\.output was"):
        requested_late(model, lambda model: model.ln_final.output)
