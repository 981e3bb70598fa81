"""Linear probe and few-shot protocol of CLIP (Radford et al. 2021, sections 3.1.3 and 3.2).

Letters: N images, F feature width, K classes.

A logistic regression by L-BFGS (scikit-learn, at most 1000 iterations) on frozen features. Its
strength C is searched on a validation split: 1e-6, 1e-4, ... 1e6, then the interval around the
best is halved until there are 8 steps per decade.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ovd_d2.errors import OVDError

SHOTS = (1, 2, 4, 8, 16)
_COARSE = tuple(float(exponent) for exponent in range(-6, 7, 2))  # log10 of C
_FINEST = 1 / 8
# Of one probe, at most: the coarse grid, two for each of four halvings, the final classifier.
MOST_FITS = len(_COARSE) + 2 * 4 + 1


def fit_logistic_regression(features: np.ndarray, labels: np.ndarray, strength: float) -> Any:
    """The classifier of the probe.

    Args:
        features: (N, F) float.
        labels: (N,) int; at least two different ones.
        strength: C, inverse of the L2 penalty.

    Raises:
        OVDError: scikit-learn is missing, or there is one class alone.
    """
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise OVDError(
            f"scikit-learn cannot be imported ({error}); run: pip install scikit-learn"
        ) from error
    if len(np.unique(labels)) < 2:
        raise OVDError("a linear probe needs training images of at least two classes.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 1000 iterations are the protocol
        return LogisticRegression(C=strength, max_iter=1000).fit(features, labels)


def search_strength(score: Callable[[float], float]) -> tuple[float, float]:
    """The best C and its score.

    Args:
        score: C -> validation accuracy; asked once for each C.

    Returns:
        (C, score); of equal scores the smallest C, the simplest classifier.
    """
    scores = {exponent: score(10.0**exponent) for exponent in _COARSE}
    step = (_COARSE[1] - _COARSE[0]) / 2
    while step >= _FINEST:
        best = _best(scores)
        for exponent in (best - step, best + step):
            if _COARSE[0] <= exponent <= _COARSE[-1] and exponent not in scores:
                scores[exponent] = score(10.0**exponent)
        step /= 2
    best = _best(scores)
    return 10.0**best, scores[best]


def _best(scores: dict[float, float]) -> float:
    return max(scores, key=lambda exponent: (scores[exponent], -exponent))


def linear_probe(
    train: tuple[np.ndarray, np.ndarray],
    validation: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    *,
    refit_on_both: bool = True,
    note_fit: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Accuracy on ``test`` with the C that is best on ``validation``.

    Args:
        train: features (N, F) and labels (N,).
        validation: the same of other images.
        test: the same of yet other ones.
        refit_on_both: the final classifier sees ``validation`` too (CLIP's probe; not few-shot).
        note_fit: called after every fit, for a progress bar.

    Returns:
        ``top1`` in percent, ``validation_top1`` in percent, ``C``.
    """
    # One scale for all features keeps the range of C meaningful; a linear classifier is else free.
    scale = max(float(np.abs(train[0]).mean()), 1e-12)

    def score(strength: float) -> float:
        model = fit_logistic_regression(train[0] / scale, train[1], strength)
        note_fit()
        return float((model.predict(validation[0] / scale) == validation[1]).mean())

    strength, found = search_strength(score)
    features, labels = train
    if refit_on_both:
        features = np.concatenate([features, validation[0]])
        labels = np.concatenate([labels, validation[1]])
    model = fit_logistic_regression(features / scale, labels, strength)
    note_fit()
    accuracy = float((model.predict(test[0] / scale) == test[1]).mean())
    return {"top1": accuracy * 100, "validation_top1": found * 100, "C": strength}


def few_shot_rows(labels: np.ndarray, shots: int, seed: int) -> np.ndarray:
    """Rows of ``shots`` images per class, drawn without replacement, sorted.

    Raises:
        OVDError: a class has fewer images.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for label in np.unique(labels):
        of_class = np.flatnonzero(labels == label)
        if len(of_class) < shots:
            raise OVDError(
                f"class number {label} has {len(of_class)} training images, fewer than the "
                f"{shots} shots asked for; ask for fewer (--shots)."
            )
        rows.append(rng.choice(of_class, shots, replace=False))
    return np.sort(np.concatenate(rows))


def few_shot_probe(
    train: tuple[np.ndarray, np.ndarray],
    validation: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    *,
    shots: Sequence[int] = SHOTS,
    seeds: Sequence[int] = (0, 1, 2),
    note_fit: Callable[[], None] = lambda: None,
) -> dict[int, dict[str, Any]]:
    """:func:`linear_probe` on few images per class, for every number of shots.

    Returns:
        {shots: ``top1`` (mean over the seeds), ``spread`` (largest - smallest), ``runs``}.

    Raises:
        OVDError: a class has fewer images than shots.
    """
    results = {}
    for count in shots:
        runs = []
        for seed in seeds:
            rows = few_shot_rows(train[1], count, seed)
            few = (train[0][rows], train[1][rows])
            runs.append(linear_probe(few, validation, test, refit_on_both=False, note_fit=note_fit))
        accuracies = [run["top1"] for run in runs]
        results[count] = {
            "top1": float(np.mean(accuracies)),
            "spread": max(accuracies) - min(accuracies),
            "runs": runs,
        }
    return results
