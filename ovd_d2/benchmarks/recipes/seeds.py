"""Mean and spread of a recipe's metrics over its seeds."""

from collections.abc import Mapping, Sequence
from typing import Any

from ovd_d2.benchmarks.recipes.summary import METRICS

Metrics = Mapping[str, float | None]


def mean_and_spread(
    runs: Sequence[Metrics], metrics: Sequence[str] = METRICS
) -> dict[str, dict[str, float | None]]:
    """Summarises the same metrics of several runs.

    Args:
        runs: per seed {metric: percent or None}, as ``summarise(...)["box"]``; at least one.
        metrics: which.

    Returns:
        {metric: {"mean": percent, "min": percent, "max": percent}} for every one of
        ``metrics``; None where some run has no value.
    """
    result: dict[str, dict[str, float | None]] = {}
    for metric in metrics:
        values = [run.get(metric) for run in runs]
        if not values or any(value is None for value in values):
            result[metric] = {"mean": None, "min": None, "max": None}
        else:
            mean = sum(values) / len(values)
            result[metric] = {"mean": mean, "min": min(values), "max": max(values)}
    return result


def columns(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The metrics that any row has, in order."""
    return list(dict.fromkeys(metric for metrics in rows.values() for metric in metrics))


def markdown_table(rows: Mapping[str, Mapping[str, Mapping[str, float | None] | str]]) -> str:
    """A README table: title to :func:`mean_and_spread`; "mean (min-max)" with one decimal, "-" for
    what a row has not. Texts stand there as they are."""
    names = columns(rows)
    lines = ["| model | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for title, metrics in rows.items():
        cells = [cell(metrics.get(name)) for name in names]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def cell(value: Mapping[str, float | None] | str | None) -> str:
    """ "17.9 (17.2-18.4)"; the range only where there is one; "-" without a mean."""
    if isinstance(value, str):
        return value
    if value is None or value["mean"] is None:
        return "-"
    text = f"{value['mean']:.1f}"
    if value["max"] - value["min"] >= 0.05:
        text += f" ({value['min']:.1f}-{value['max']:.1f})"
    return text
