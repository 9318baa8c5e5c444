"""The closed form of a tuned lens against scikit-learn's ridge regression on states that plain hooks took."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch import Tensor

from nnterp_mcp.engine.workload import Workload
from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.experiments.translated_lens.tuned import RIDGE, fit_tuned
from tests.engine.test_executors import Subject, build
from tests.experiments.translated_lens.test_jacobian import prompts

LAYER = 1


@pytest.fixture(scope="module")
def subject() -> Subject:
    return build("gemma2", Path)


def plain_states(subject: Subject, layer: int, *lengths: int) -> Tensor:
    read = [subject.plain.read(prompt.ids, "layers_output", layer)[1:] for prompt in prompts(subject, *lengths)]
    return torch.cat(read).double()


def test_it_is_ridge_regression_of_what_later_layers_add(subject: Subject) -> None:
    lengths = [30, 50, 40, 9]
    read, last = (plain_states(subject, layer, *lengths) for layer in (LAYER, subject.model.num_layers - 1))
    alpha = RIDGE * float(read.var(0, correction=0).mean()) * len(read)
    fitted = Ridge(alpha=alpha).fit(read.numpy(), (last - read).numpy())

    lens = fit_tuned(subject.model, Workload(prompts(subject, *lengths)), [LAYER]).lens()

    wanted = read.numpy() + fitted.predict(read.numpy())
    np.testing.assert_allclose(lens.translate(read.float(), LAYER), wanted, atol=2e-4)
    plain, tuned = ((found - last).square().mean() for found in (read, lens.translate(read.float(), LAYER)))
    assert tuned < 0.5 * plain


def test_merged_fits_are_one_fit(subject: Subject) -> None:
    texts = prompts(subject, 80, 90, 70)
    whole = fit_tuned(subject.model, Workload(texts), [0, 2])
    merged = fit_tuned(subject.model, Workload(texts[:2]), [0, 2]) + fit_tuned(
        subject.model, Workload(texts[2:]), [0, 2]
    )

    assert (merged.tokens, merged.prompts) == (whole.tokens, whole.prompts) == (237, 3)
    torch.testing.assert_close(merged.lens().matrices[2], whole.lens().matrices[2], atol=1e-5, rtol=0)
    with pytest.raises(InvalidRequest, match="same model and the same layers"):
        _ = whole + fit_tuned(subject.model, Workload(texts[:1]), [1])


def test_short_prompts_are_refused(subject: Subject) -> None:
    with pytest.raises(InvalidRequest, match="no prompt has more than 1 tokens"):
        fit_tuned(subject.model, Workload(prompts(subject, 1)), [0])
