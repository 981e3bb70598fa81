"""ODinW in one number: the plain mean of the AP of 13 or 35 data sets."""

import logging
import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ovd_d2.data.datasets.odinw import SUITES, odinw_suite
from ovd_d2.evaluation.splits import results_table

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ODinWSummary:
    """AP of the data sets of a suite.

    Attributes:
        suite: "odinw_13" or "odinw_35".
        ap: data set -> box AP (COCO, 0.50:0.95), percent; those that have one.
        splits: data set -> the split it is of, all of the suite.
        missing: data sets without an AP: not evaluated, or nan.
    """

    suite: str
    ap: dict[str, float]
    splits: dict[str, str]
    missing: tuple[str, ...]

    @property
    def mean(self) -> float:
        """Mean AP over the whole suite; nan if a data set is missing."""
        return math.nan if self.missing else self.mean_of_evaluated

    @property
    def median(self) -> float:
        """Median AP over the whole suite; nan if a data set is missing."""
        return math.nan if self.missing else statistics.median(self.ap.values())

    @property
    def mean_of_evaluated(self) -> float:
        """Mean AP over those data sets that have one, however few; nan for none. Not comparable
        with the mean of the suite."""
        return statistics.fmean(self.ap.values()) if self.ap else math.nan

    def table(self) -> str:
        """A line for each data set with its split and AP, and the means."""
        rows: dict[str, dict[str, Any]] = {
            f"{name} ({split})": {"AP": self.ap.get(name)} for name, split in self.splits.items()
        }
        rows[f"mean of {len(self.splits)}"] = {"AP": self.mean}
        rows[f"median of {len(self.splits)}"] = {"AP": self.median}
        if self.missing:
            rows[f"mean of the {len(self.ap)} evaluated"] = {"AP": self.mean_of_evaluated}
        return results_table(rows, ["AP"], of="data set (split)")


def odinw_test_names(suite: str = "odinw_13", split: str = "val") -> tuple[str, ...]:
    """The registered names of a suite, for ``DATASETS.TEST``.

    Args:
        suite: "odinw_13" or "odinw_35".
        split: "val", "test", or "default": what GLIP's configs evaluate, minival where there is
            one, else val.

    Raises:
        OVDError: there is no such suite or split.
    """
    return tuple(dataset.registered(split) for dataset in odinw_suite(suite).values())


def summarize_odinw(
    results: Mapping[str, Mapping[str, Mapping[str, float]]],
    suite: str = "odinw_13",
    split: str = "val",
) -> ODinWSummary:
    """Averages the results of a suite and logs the table.

    Args:
        results: registered name -> {"bbox": {"AP": percent}}, as Detectron2's trainers return
            them; other data sets and splits are passed over.
        suite: "odinw_13" or "odinw_35".
        split: "val", "test" or "default", see :func:`odinw_test_names`. Published numbers are of
            either, and small test splits make them differ much.

    Raises:
        OVDError: there is no such suite or split.
    """
    ap, splits = {}, {}
    for name, dataset in odinw_suite(suite).items():
        registered = dataset.registered(split)
        splits[name] = registered.rpartition("_")[2]
        if splits[name] == "test" and dataset.test_is_val:
            splits[name] = "test, which is val"
        value = results.get(registered, {}).get("bbox", {}).get("AP", math.nan)
        if not math.isnan(value):
            ap[name] = float(value)
    missing = tuple(name for name in splits if name not in ap)
    summary = ODinWSummary(suite, ap, splits, missing)
    logger.info("%s:\n%s", suite, summary.table())
    if missing:
        logger.warning(
            "%s has no AP of %d of %d data sets (split %s), so it has no mean: %s.",
            *(suite, len(missing), len(splits), split, ", ".join(missing)),
        )
    return summary


def summarize_what_was_evaluated(results: Mapping[str, Mapping[str, Any]]) -> ODinWSummary | None:
    """:func:`summarize_odinw` of the suite and split that most of the evaluated data sets belong
    to; None, and nothing is logged, unless several data sets of ODinW are among them.

    Args:
        results: registered name -> results.
    """
    evaluated = {name for name in results if name.startswith("odinw_")}
    if len(evaluated) < 2:
        return None

    def fit(choice: tuple[str, str]) -> tuple[int, int]:
        names = odinw_test_names(*choice)
        return len(evaluated & set(names)), -len(names)

    choices = [(suite, split) for suite in SUITES for split in ("default", "val", "test")]
    return summarize_odinw(results, *max(choices, key=fit))
