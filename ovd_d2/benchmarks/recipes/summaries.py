"""Summaries of ``ovd benchmark``: the numbers that are kept in ``configs/mini``, and their schema.

A summary is a json of

- ``dataset``: what the rows were evaluated on;
- ``rows``: by name, each with ``title``, ``seeds`` (how many), for each task of
  :data:`~ovd_d2.benchmarks.recipes.summary.REPORTED` that was evaluated {metric: {mean, min, max}}
  in percent, ``command`` and ``ovd_d2`` (what made it, in which version), and ``runs``, a mapping
  per seed: ``seed``, the tasks {metric: percent}, ``seconds``, ``iterations`` and ``command``.

A row whose numbers no run of the command has written has a ``source``, which says where they are
from, and no ``runs`` where those were not kept. ``seconds`` and ``command`` are absent where nobody
has noted them.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ovd_d2.benchmarks.recipes.families import FAMILIES, family_of
from ovd_d2.benchmarks.recipes.seeds import mean_and_spread
from ovd_d2.benchmarks.recipes.summary import REPORTED
from ovd_d2.errors import OVDError
from ovd_d2.files.atomic import write_json

PLACE = "output/benchmark"  # the folder that commands of kept summaries name


def summary_file(family: str, root: Path) -> Path:
    """Where the summary of a family is kept in the checkout ``root``."""
    return root / f"configs/mini/benchmark_{family}.json"


def read_summary(file: Path) -> dict[str, Any]:
    """A summary; one that ``ovd demo`` wrote comes in this module's schema, with ``of_demo``.

    Raises:
        OVDError: it is missing or broken.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        summary = _of_demo(content) if "models" in content else content
        for row in summary["rows"].values():
            runs = row.get("runs", [])
            if not isinstance(row["title"], str) or not isinstance(row["seeds"], int):
                raise TypeError("title and seeds")
            if not isinstance(runs, list) or not all(isinstance(run, Mapping) for run in runs):
                raise TypeError("runs")
        return summary
    except OSError as error:
        raise OVDError(f"The summary {file} cannot be read: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise OVDError(
            f"{file} is no summary of `ovd benchmark` ({error!r}): run the benchmark again, or "
            "take the file from the repository."
        ) from error


def read_summaries(root: Path) -> dict[str, dict[str, Any]]:
    """The kept summary of each family that has one.

    Raises:
        OVDError: one is broken.
    """
    files = {name: summary_file(name, root) for name in FAMILIES}
    return {name: read_summary(file) for name, file in files.items() if file.is_file()}


def row_summary(title: str, runs: Sequence[Mapping[str, Any]], **facts: Any) -> dict[str, Any]:
    """A row: what all its seeds have been evaluated on, and each of them.

    Args:
        title: what tables call it.
        runs: of seeds 1, 2, ..., each as ``runs.collect`` returns it; at least one.
        facts: more to say of it, such as ``command``.
    """
    of_all = {
        task: mean_and_spread([run[task] for run in runs], metrics)
        for task, (_, metrics) in REPORTED.items()
        if all(task in run for run in runs)
    }
    seeds = [
        {"seed": place, **{key: value for key, value in run.items() if key != "title"}}
        for place, run in enumerate(runs, 1)
    ]
    return {"title": title, "seeds": len(runs), **of_all, **facts, "runs": seeds}


def metrics_of(row: Mapping[str, Any], tasks: Sequence[str]) -> dict[str, Any]:
    """{metric: {mean, min, max}} of a row's ``tasks``, one after the other."""
    return {metric: value for task in tasks for metric, value in row.get(task, {}).items()}


def seconds_of(row: Mapping[str, Any]) -> float | None:
    """Mean wall time of a row's runs; None where nobody has noted it."""
    found = [run["seconds"] for run in row.get("runs", ()) if run.get("seconds")]
    return sum(found) / len(found) if found else None


def recorded_seconds(root: Path) -> dict[str, float]:
    """Row to its seconds, of all kept summaries; rows without are left out."""
    return {
        name: seconds
        for summary in read_summaries(root).values()
        for name, row in summary["rows"].items()
        if (seconds := seconds_of(row)) is not None
    }


def take(file: Path, root: Path, order: Sequence[str] = ()) -> dict[str, list[str]]:
    """Puts the rows of a run's ``summary.json`` into the kept summaries of their families.

    Rows that were there are replaced, others stay. Folders of the machine it ran on are not kept.
    A file of ``ovd demo --seed 2`` adds to the rows of seed 1, and so on.

    Args:
        file: as ``ovd benchmark`` or ``ovd demo`` wrote it.
        root: the checkout.
        order: of rows in a summary; others come last.

    Returns:
        family -> the rows that it got.

    Raises:
        OVDError: it is no such file or has no rows, a row is of no family, or of another data set,
            or seeds before it are missing.
    """
    found = read_summary(file)
    taken: dict[str, dict[str, Any]] = {}
    rows = _without_folder(found)
    if not rows:
        raise OVDError(f"{file} has no rows; take what `ovd benchmark` wrote.")
    for name, row in rows.items():
        if not row.get("runs") or not all(run.get("dataset") for run in row["runs"]):
            raise OVDError(
                f"{file}: row {name} has no runs that name their data set; take what "
                "`ovd benchmark` wrote."
            )
        family = family_of(name, of_demo=found.get("of_demo", False))
        if (seed := found.get("seed", 1)) > 1:
            row = _with_seeds_before(name, row, seed, summary_file(family, root))
        taken.setdefault(family, {})[name] = row
    for family, new in taken.items():
        if (name := FAMILIES[family].beside) in rows:
            facts = {key: rows[name][key] for key in ("command", "ovd_d2") if key in rows[name]}
            new[name] = row_summary(rows[name]["title"], rows[name]["runs"][:1], **facts)
        _merge(new, summary_file(family, root), file, list(order))
    return {family: list(new) for family, new in taken.items()}


def _with_seeds_before(name: str, row: Mapping[str, Any], seed: int, kept: Path) -> dict[str, Any]:
    """A row of one run, its ``seed`` above 1, with the runs of the seeds before that are kept."""
    rows = read_summary(kept)["rows"] if kept.is_file() else {}
    before = rows.get(name, {}).get("runs", [])[: seed - 1]
    if len(before) < seed - 1:
        raise OVDError(
            f"{kept} has {len(before)} seeds of {name}: take the summary of seed {len(before) + 1} "
            f"before that of seed {seed}."
        )
    facts = {key: row[key] for key in ("command", "ovd_d2")}
    return row_summary(row["title"], [*before, {**row["runs"][0], "seed": seed}], **facts)


def _merge(new: Mapping[str, Any], kept: Path, file: Path, order: list[str]) -> None:
    datasets = {row["runs"][0]["dataset"] for row in new.values()}
    summary = read_summary(kept) if kept.is_file() else {"dataset": min(datasets), "rows": {}}
    if wrong := datasets - {summary["dataset"]}:
        raise OVDError(
            f"{file} has rows that were evaluated on {', '.join(sorted(wrong))}, {kept} those of "
            f"{summary['dataset']}: evaluate on the same."
        )
    rows = {**summary["rows"], **new}
    place = {name: order.index(name) if name in order else len(order) for name in rows}
    rows = {name: rows[name] for name in sorted(rows, key=place.__getitem__)}
    write_json(kept, {"dataset": summary["dataset"], "rows": rows})


def _of_demo(content: Mapping[str, Any]) -> dict[str, Any]:
    """A summary of ``ovd demo`` in the schema of this module."""
    facts = {"command": "ovd demo", "ovd_d2": content.get("ovd_d2")}
    rows = {
        name: row_summary(run["title"], [run], **facts) for name, run in content["models"].items()
    }
    return {"rows": rows, "of_demo": True, "seed": int(content.get("seed", 1))}


def _without_folder(found: Mapping[str, Any]) -> dict[str, Any]:
    """The rows of ``found``, its folder replaced by :data:`PLACE`, absolute ones with it."""
    text = json.dumps(found["rows"])
    if folder := found.get("out"):
        text = text.replace(folder.rstrip("/") + "/", PLACE + "/")
    return json.loads(text)
