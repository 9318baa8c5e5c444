"""Linear probes: how well, and along which direction, states tell groups of prompts apart.

A probe shows that something can be read from states linearly, not that the model uses it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.feature_selection import SelectKBest
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from nnterp_mcp.cancellation import check_cancelled
from nnterp_mcp.errors import InvalidRequest

ProbeMethod = Literal["logistic", "ridge", "difference_of_means"]
Fold = tuple[Int[np.ndarray, " train"], Int[np.ndarray, " test"]]
"""The rows that a probe learns from, and those that it is judged on."""

_STEPS = 5000


def make_probe(method: ProbeMethod, regularization: float = 1.0) -> Any:
    """An untrained probe.

    - `logistic`: logistic regression with an L2 penalty, on standardised states.
    - `ridge`: least squares on labels of ±1 with an L2 penalty, on standardised states.
    - `difference_of_means`: the nearest class mean. With two classes that is a threshold half-way along the difference
      of the means, without any regularization; it does not standardise.

    Args:
        method: Which one.
        regularization: The weight of the penalty: `alpha` of ridge, `1 / C` of logistic regression.

    Source: Alain and Bengio, "Understanding intermediate layers using linear classifier probes" (2016); Marks and
    Tegmark, "The Geometry of Truth" (2023).
    """
    if method == "difference_of_means":
        return NearestCentroid()
    if method == "ridge":
        return make_pipeline(StandardScaler(), RidgeClassifier(alpha=regularization))
    return make_pipeline(StandardScaler(), LogisticRegression(C=1 / regularization, max_iter=_STEPS))


def make_sparse_probe(method: ProbeMethod, count: int) -> Any:
    """An untrained probe that reads few features: those whose means differ most between classes of the training rows.

    Args:
        method: The probe that is trained on them.
        count: How many features.

    Source: Gurnee et al., "Finding Neurons in a Haystack: Case Studies with Sparse Probing" (2023).
    """
    return make_pipeline(SelectKBest(differ_in_mean, k=count), make_probe(method))


def differ_in_mean(
    features: Float[np.ndarray, "row latent"], labels: Int[np.ndarray, " row"]
) -> Float[np.ndarray, " latent"]:
    """The distance from the mean of a feature over a class to its mean over the others; of the classes the largest."""
    apart = [abs(features[labels == label].mean(0) - features[labels != label].mean(0)) for label in np.unique(labels)]
    return np.max(apart, axis=0)


def join_pairs(labels: Int[np.ndarray, " prompt"], texts: Int[np.ndarray, " prompt"]) -> Int[np.ndarray, " prompt"]:
    """Numbers for prompts that belong into one fold: equal texts, and the i-th prompts of all classes.

    The i-th prompts of classes of equal size are often minimal pairs. A probe that has learnt from one of a pair takes
    the other, which differs in a word, for the same class, and falls below chance.

    Args:
        labels: The class of each prompt.
        texts: The text of each prompt, by number.

    Returns:
        The same number for prompts that stay together; the texts themselves where the classes differ in size, or
        where pairs that share texts would leave a single fold.
    """
    if len(set(np.bincount(labels))) > 1:
        return texts
    place = np.empty_like(texts)
    for label in np.unique(labels):
        place[labels == label] = np.arange((labels == label).sum())
    links = coo_array((np.ones(len(texts)), (texts, texts.max() + 1 + place)), shape=(2 * len(texts), 2 * len(texts)))
    together = connected_components(links, directed=False)[1][texts]
    return together if len(np.unique(together)) > 1 else texts


def deal_folds(labels: Int[np.ndarray, " row"], texts: Int[np.ndarray, " row"], folds: int, seed: int) -> list[Fold]:
    """Deals rows into folds of like shares of each class, all rows of one text into one fold.

    Rows of one text resemble one another: a probe that has seen one of them would know the others.

    Args:
        labels: The class of each row.
        texts: The text of each row, or the texts that stay together, by number.
        folds: How many folds; fewer where a class has fewer texts.
        seed: By which they are dealt.

    Raises:
        InvalidRequest: A class has fewer than two texts, so that none can be left out for testing.
    """
    fewest = fewest_texts(labels, texts)
    if fewest < 2:
        raise InvalidRequest(
            "a group has one distinct prompt: none is left to judge a probe on that has learned from it.",
            "Give several prompts in each group, ten or more if you can.",
        )
    dealer = StratifiedGroupKFold(min(folds, fewest), shuffle=True, random_state=seed)
    return list(dealer.split(labels, labels, texts))


def fewest_texts(labels: Int[np.ndarray, " row"], texts: Int[np.ndarray, " row"]) -> int:
    """The number of different texts of the class with the fewest."""
    return min(len(np.unique(texts[labels == label])) for label in np.unique(labels))


def predict_held_out(
    states: Float[np.ndarray, "row width"], labels: Int[np.ndarray, " row"], folds: Sequence[Fold], probe: Any
) -> Int[np.ndarray, " row"]:
    """The class that each row is given by a probe that was trained on the other folds; scaling included.

    Where the other folds hold one class only, or states that do not differ, there is nothing to learn but the largest
    class.

    Args:
        states: The states.
        labels: The class of each row.
        folds: The folds, which hold every row once.
        probe: The probe, trained anew for each fold.
    """
    predicted = np.empty_like(labels)
    for train, test in folds:
        check_cancelled()
        classes, counts = np.unique(labels[train], return_counts=True)
        if len(classes) == 1 or not np.ptp(states[train], axis=0).any():
            predicted[test] = classes[counts.argmax()]
        else:
            predicted[test] = probe.fit(states[train], labels[train]).predict(states[test])
    return predicted


def shuffle_labels(
    labels: Int[np.ndarray, " row"], prompts: Int[np.ndarray, " row"], generator: np.random.Generator
) -> Int[np.ndarray, " row"]:
    """Labels dealt anew among prompts, every row of a prompt with the same one."""
    numbers, first, of_row = np.unique(prompts, return_index=True, return_inverse=True)
    return generator.permutation(labels[first])[of_row] if len(numbers) else labels


@dataclass(frozen=True)
class Boundary:
    """The plane along which a probe divides two classes.

    Attributes:
        direction: Perpendicular to the plane, towards class 0, and as long as the means of the classes are apart along
            it: adding it once to a state of class 1 takes the state as far as class 0 lies, so that a factor means as
            much as for a difference of means.
        threshold: A state belongs to class 0 where its projection on the unit direction exceeds this.
    """

    direction: Float[np.ndarray, " width"]
    threshold: float


def probe_boundary(states: Float[np.ndarray, "row width"], labels: Int[np.ndarray, " row"], probe: Any) -> Boundary:
    """Trains a probe on all rows and finds the plane that divides class 0 from class 1.

    Args:
        states: The states.
        labels: 0 or 1 for each row.
        probe: The probe.

    Raises:
        InvalidRequest: The classes have the same states, so that there is no direction.
    """
    means = [states[labels == label].mean(0, dtype=np.float64) for label in (0, 1)]
    apart = means[0] - means[1]
    if apart.any() and not isinstance(probe, NearestCentroid):
        scaler, fitted = probe.fit(states, labels)
        # Ridge gives a vector or a matrix of one row, by scikit-learn's version.
        normal = -np.ravel(fitted.coef_) / scaler.scale_
        offset = float(np.ravel(fitted.intercept_)[0] + normal @ scaler.mean_)
    else:
        normal = apart
        offset = float(apart @ (means[0] + means[1]) / 2)
    length = float(np.linalg.norm(normal))
    if length == 0.0 or not math.isfinite(length):
        raise InvalidRequest("the groups have the same states, so that a probe has no direction.")
    unit = normal / length
    return Boundary((unit * abs(apart @ unit)).astype(np.float32), offset / length)


def project_states(
    states: Float[np.ndarray, "row width"], direction: Float[np.ndarray, " width"]
) -> Float[np.ndarray, " row"]:
    """The projections of states on the unit vector of a direction."""
    long = direction.astype(np.float64)
    return states @ (long / np.linalg.norm(long))
