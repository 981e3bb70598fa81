"""``ovd benchmark``: the paper's comparison on mini, every row with several seeds.

It runs nothing but commands a user could type, and prints them. A row that is finished is not
repeated; one that was interrupted goes on from its last checkpoint. ``ovd benchmark tables`` writes
the numbers that are kept into the pages.
"""

import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ovd_d2 import __version__
from ovd_d2.benchmarks.recipes.commands import (
    build_regions,
    device_settings,
    ground_captions,
    label_captions,
    learn_examples,
    ovd_script,
    say,
)
from ovd_d2.benchmarks.recipes.families import FAMILIES, family_of, select
from ovd_d2.cli import benchmark_tables

if TYPE_CHECKING:
    from ovd_d2.benchmarks.recipes.runs import Run


@dataclass(frozen=True)
class Row:
    """A row of the table: configs/mini/NAME.yaml.

    Attributes:
        title: what the table calls it.
        start: the row whose weights it goes on from.
        evaluates: the row whose weights it only evaluates.
        regions: the row whose RPN proposes the regions it learns from.
        per_image: how many of them.
        labels: the row whose RPN proposes the pseudo boxes of the captions' names.
        captions: the row that finds the phrases of the captions.
        examples: of how many examples each class is made; its seeds are choices of examples, all
            for the weights of seed 1.
        classes: which classes are made of examples, "novel" or "all".
        yaml: another NAME of configs/mini.
        settings: KEY value pairs on top of it.
        curve: the line of the picture of AP against iterations that it is a point of. Such rows
            are trained on request only, and every seed of theirs goes on from seed 1 of its base.
        iterations: of its point: how many the detector has seen since the base, all stages.
    """

    title: str
    start: str = ""
    evaluates: str = ""
    regions: str = ""
    per_image: int = 0
    labels: str = ""
    captions: str = ""
    examples: int = 0
    classes: str = "novel"
    yaml: str = ""
    settings: tuple[str, ...] = ()
    curve: str = ""
    iterations: int = 0

    @property
    def parents(self) -> set[str]:
        """The rows that have to be finished before."""
        return {self.start, self.evaluates, self.regions, self.labels, self.captions} - {""}


_VILD = {"regions": "vild_text", "per_image": 60}
_RKD = {"regions": "rkd_base", "per_image": 5}
ROWS = {
    "supervised_all": Row("supervised on all (oracle)"),
    "vild_text": Row("ViLD-text"),
    "two_heads_no_distillation": Row("two heads, no distillation (control)"),
    "vild_image": Row("ViLD-image", **_VILD),
    "vild": Row("ViLD", **_VILD),
    "vild_ensemble": Row("ViLD-ensemble", **_VILD),
    "vild_ensemble_long": Row("ViLD-ensemble, four times as long, novel by objectness", **_VILD),
    **{
        f"vild_ensemble_{classes}_by_{count}": Row(
            f"ViLD-ensemble, {classes} classes by {count} example{'s' * (count > 1)}",
            evaluates="vild_ensemble",
            examples=count,
            classes=classes,
            yaml="vild_ensemble_examples",
        )
        for classes in ("novel", "all")
        for count in (1, 5, 10)
    },
    "vild_text_clip": Row("ViLD-text + CLIP on crops", evaluates="vild_text"),
    "clip_on_crops": Row("CLIP on crops", evaluates="vild_text"),
    "rkd_base": Row("RKD base (sigmoid)"),
    "rkd_base_longer": Row("RKD base, as long as the next three", start="rkd_base"),
    "rkd_l1": Row("RKD base + L1", start="rkd_base", **_RKD),
    "rkd_l1_relation": Row("RKD base + L1 + relation", start="rkd_base", **_RKD),
    "rkd_image_labels": Row("RKD base + image labels", start="rkd_base", labels="rkd_base"),
    "rkd_all_naive_third_stage": Row(
        "RKD all, one projection", "rkd_l1_relation", labels="rkd_base", **_RKD
    ),
    "rkd_weight_transfer": Row(
        "RKD all, weight transfer", "rkd_l1_relation", labels="rkd_base", **_RKD
    ),
    "glip_late_fusion": Row("GLIP, late fusion"),
    "glip": Row("GLIP"),
    "glip_longer": Row("GLIP, as long as the next", start="glip"),
    "glip_self_training": Row("GLIP + self-training on captions", start="glip", captions="glip"),
    "detclip_boxes": Row("DetCLIPv2, boxes alone"),
    "detclip_pairs": Row("DetCLIPv2 + pairs, best match"),
    "detclip_pairs_softmax": Row("DetCLIPv2 + pairs, softmax match"),
    "detclip_pairs_enriched": Row("DetCLIPv2 + pairs + definitions"),
    "lseg": Row("LSeg"),
    "lseg_all": Row("LSeg, all label maps (oracle)"),
    "groupvit": Row("GroupViT, captions alone"),
    "mavl": Row("MAVL, four questions"),
    "mavl_all_objects": Row('MAVL, "all objects" alone', evaluates="mavl"),
    "mavl_minus_language": Row("MAVL minus language (control)"),
    "mavl_vild_text": Row("ViLD-text's boxes (for comparison)", evaluates="vild_text"),
    "mavl_rpn": Row("ViLD-text's RPN (for comparison)", evaluates="vild_text"),
}


def _rkd_curves() -> dict[str, Row]:
    """Points of RKD's picture of AP against iterations. Box head and projection train; backbone and
    RPN stay as the base has left them, which keeps the longest of these trainings affordable."""
    heads = ("MODEL.TUNE.ONLY", "['roi_heads.']")
    stage_2 = "rkd_heads_l1_relation"
    rows = {
        stage_2: Row(
            "RKD heads: L1 + relation", "rkd_base", yaml="rkd_l1_relation", settings=heads,
            curve="L1 + relation (stage 2)", iterations=180, **_RKD,
        ),
    }  # fmt: skip
    for key, title, start, yaml in (
        ("naive", "one projection, from the base", "rkd_base", "rkd_all_naive"),
        ("control", "one projection, from stage 2", stage_2, "rkd_all_naive_third_stage"),
        ("released", "weight transfer, from stage 2", stage_2, "rkd_weight_transfer"),
        ("distilled", "weight transfer, distilled start", stage_2, "rkd_weight_transfer_distilled"),
        ("taught", "weight transfer, taught", stage_2, "rkd_weight_transfer_taught"),
    ):
        before = 180 if start == stage_2 else 0
        for own in (180, 360, 540, 720, 900):
            length = f"{before} + {own}" if before else str(own)
            rows[f"rkd_heads_{key}_{own}"] = Row(
                f"RKD heads: {title}, {length} iterations", start, labels="rkd_base", yaml=yaml,
                settings=(*heads, "SOLVER.MAX_ITER", str(own)), curve=title,
                iterations=before + own, **_RKD,
            )  # fmt: skip
    return rows


# Trained on request only: what no table needs.
ON_REQUEST = {
    "rkd_all_naive": Row(
        "RKD all, one projection, from the base", "rkd_base", labels="rkd_base", **_RKD
    ),
    **_rkd_curves(),
}
KNOWN = {**ROWS, **ON_REQUEST}
_BASES = {"rkd_base"}  # of rows with a curve
_FAMILIES = ", ".join(name for name, family in FAMILIES.items() if not family.of_demo)

app = typer.Typer()
app.command("tables")(benchmark_tables.command)


@app.callback(invoke_without_command=True)
def command(
    context: typer.Context,
    out: Path = typer.Option(Path("output/benchmark"), help="Folder of the results."),
    seeds: int = typer.Option(3, min=1, help="Trainings per row."),
    minutes: float = typer.Option(60, help="No seed is begun that would end later than this."),
    rows: str = typer.Option(
        "",
        help="Which rows, separated by commas; default: all but those on request "
        "(rkd_all_naive, rkd_heads_...). What they need is "
        "trained, too.",
    ),
    families: str = typer.Option("", help=f"Only the rows of these, of {_FAMILIES}."),
    jobs: int = typer.Option(0, min=0, help="Trainings at once; 0: as many as there are cores."),
) -> None:
    """Train and evaluate every row of every system on mini; write their means and ranges.

    It says before it starts how long that takes. The same command again goes on where it was
    interrupted, and repeats no row that is finished.
    """
    if context.invoked_subcommand is None:
        _run(out, seeds, minutes, select(ROWS, rows, families, ON_REQUEST), jobs)


def _run(out: Path, seeds: int, minutes: float, names: list[str], jobs: int) -> None:
    """Trains and evaluates the rows ``names``, seed after seed, and reports after each."""
    from ovd_d2.benchmarks.recipes import runs as recipe_runs
    from ovd_d2.benchmarks.recipes.summaries import recorded_seconds
    from ovd_d2.cli.benchmark_progress import Estimate
    from ovd_d2.files.atomic import check_output_folder

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leave no training behind
    root = recipe_runs.find_checkout("ovd benchmark")
    out = recipe_runs.seen_from(out, root)
    check_output_folder("--out", root / out)
    of_seeds = range(1, seeds + 1)
    todo = [(name, seed) for seed in of_seeds for wave in waves(names, seed) for name in wave]
    estimate = Estimate(recorded_seconds(root), todo, jobs or recipe_runs.cores())
    say(estimate.plan())
    started = time.monotonic()
    recipe_runs.run_in_foreground([*ovd_script(), "mini", "build"], root, say)
    done: dict[str, list[Run]] = {name: [] for name in names}
    longest = 0.0

    def ended(run: "Run", seconds: float) -> None:
        name, _, seed = run.name.rpartition("-seed")
        estimate.ended(name, int(seed), seconds)
        say(estimate.line(time.monotonic() - started))

    for seed in of_seeds:
        elapsed = time.monotonic() - started
        if seed > 1 and elapsed + longest > 60 * minutes:
            say(f"Stopping after {seed - 1} seeds: another would not end within {minutes:g} min.")
            break
        for name, run in _one_seed(names, seed, out, root, jobs, ended).items():
            done[name].append(run)
        longest = max(longest, time.monotonic() - started - elapsed)
        _report(done, out, root, time.monotonic() - started)


def _one_seed(
    names: Sequence[str],
    seed: int,
    out: Path,
    root: Path,
    jobs: int,
    ended: "Callable[[Run, float], None]",
) -> "dict[str, Run]":
    """Trains and evaluates every row with one seed, parents before their children."""
    from ovd_d2.benchmarks.recipes import runs as recipe_runs
    from ovd_d2.cli.training_progress import watch

    finished: dict[str, Run] = {}
    stores: dict[str, Path] = {}
    labels: dict[str, Path] = {}
    for wave in waves(names, seed):
        runs = {name: _prepared(name, seed, finished, stores, labels, out, root) for name in wave}
        recipe_runs.perform(
            list(runs.values()),
            at_once=jobs,
            root=root,
            logs=out / "logs",
            say=say,
            watch=watch,
            ended=ended,
        )
        finished |= runs
    return {name: finished[name] for name in names}


def waves(names: Iterable[str], seed: int = 1) -> list[list[str]]:
    """``names`` and all they depend on, in groups: each needs only rows of the groups before. After
    seed 1, rows of examples depend on nothing any more."""

    def parents(name: str) -> set[str]:
        row = KNOWN[name]
        if seed == 1:
            return row.parents
        if row.examples:
            return set()
        return row.parents - (_BASES if row.curve else set())

    wanted = set(names)
    while more := {parent for name in wanted for parent in parents(name)} - wanted:
        wanted |= more

    def depth(name: str) -> int:
        return 1 + max(map(depth, parents(name)), default=-1)

    result: list[list[str]] = [[] for _ in range(1 + max(map(depth, wanted)))]
    for name in KNOWN:
        if name in wanted:
            result[depth(name)].append(name)
    return result


def _prepared(
    name: str,
    seed: int,
    finished: "Mapping[str, Run]",
    stores: dict[str, Path],
    labels: dict[str, Path],
    out: Path,
    root: Path,
) -> "Run":
    """The run of a row, after its region store and labels, those of seed 1, have been made; both
    are kept in ``stores`` and ``labels`` by the row they come from."""
    from ovd_d2.benchmarks.recipes import runs as recipe_runs

    row, settings = KNOWN[name], ["SEED", str(seed), *KNOWN[name].settings]

    def of_seed_1(parent: str) -> "Run":
        run = recipe_runs.Run(f"{parent}-seed1", "", "", out / f"{parent}-seed1")
        return replace(run, digest=run.record(root).get("digest", ""))

    if row.curve:
        finished = {**{base: of_seed_1(base) for base in _BASES}, **finished}
    if row.start:
        settings += ["MODEL.WEIGHTS", f"{finished[row.start].folder}/model_final.pth"]
    if row.regions:
        if row.regions not in stores:
            proposer = of_seed_1(row.regions)
            stores[row.regions] = build_regions(proposer, out, root, row.per_image)
        settings += ["DATASETS.REGION_STORE", str(stores[row.regions])]
    if row.labels:
        if row.labels not in labels:
            labels[row.labels] = label_captions(of_seed_1(row.labels), out, root)
        settings += ["DATASETS.SOURCES", str(_boxes_and(labels[row.labels]))]
    if row.captions:
        if row.captions not in labels:
            labels[row.captions] = ground_captions(of_seed_1(row.captions), out, root)
        settings += ["DATASETS.SOURCES", str(_boxes_captions_and(labels[row.captions]))]
    evaluated = finished.get(row.evaluates)
    if row.examples:
        evaluated = of_seed_1(row.evaluates)
        chosen = {"count": row.examples, "classes": row.classes, "seed": seed}
        rows = learn_examples(evaluated, out, root, **chosen)
        settings += ["MODEL.OPEN_VOCAB.TEXT_EMBEDDINGS", str(rows)]
    run = recipe_runs.Run(
        f"{name}-seed{seed}",
        row.title,
        f"configs/mini/{row.yaml or name}.yaml",
        out / f"{name}-seed{seed}",
        (*settings, *device_settings()),
        weights=f"{evaluated.folder}/model_final.pth" if evaluated else "",
        # Store, labels and profile have the digest of what made them in their names.
        inputs=tuple(run.digest for run in (finished.get(row.start), evaluated) if run),
    )
    return recipe_runs.prepare(run, root, say)


def _boxes_and(labels: Path) -> list[dict[str, Any]]:
    """``DATASETS.SOURCES`` of the yamls, with the label file of this benchmark."""
    opts = ["DATASETS.TRAIN", [f"labels:{labels}"]]
    return [{"NAME": "boxes", "RATIO": 1}, {"NAME": "image_labels", "RATIO": 1, "OPTS": opts}]


def _boxes_captions_and(found: Path) -> list[dict[str, Any]]:
    """``DATASETS.SOURCES`` of glip_self_training.yaml, with the captions of this benchmark."""

    def captions(name: str, dataset: str) -> dict[str, Any]:
        opts = ["DATASETS.TRAIN", [dataset], "INPUT.MAPPER", "GroundingMapper"]
        return {"NAME": name, "RATIO": 1, "OPTS": opts}

    return [
        {"NAME": "boxes", "RATIO": 1},
        captions("captions", "mini_v1_grounding_train"),
        captions("web", f"grounding:{found}"),
    ]


def _report(done: "Mapping[str, Sequence[Run]]", out: Path, root: Path, seconds: float) -> None:
    """Writes summary.json, table.md and a picture per family; prints the tables."""
    from ovd_d2.benchmarks.recipes.runs import collect
    from ovd_d2.benchmarks.recipes.seeds import markdown_table
    from ovd_d2.benchmarks.recipes.summaries import metrics_of, row_summary
    from ovd_d2.files.atomic import atomic_write, write_json
    from ovd_d2.visualization.iteration_curves import plot_iterations
    from ovd_d2.visualization.training_plots import plot_average_precision

    rows = {}
    for name, runs in done.items():
        words = ["ovd", "benchmark", "--rows", name, "--seeds", str(len(runs))]
        facts = {"command": shlex.join(words), "ovd_d2": __version__}
        if (row := KNOWN[name]).curve:
            facts |= {"curve": row.curve, "iterations": row.iterations}
        rows[name] = row_summary(row.title, [collect(run, root) for run in runs], **facts)
    dataset = next(iter(rows.values()))["runs"][0]["dataset"]
    summary = {"dataset": dataset, "rows": rows, "out": str(out), "seconds": round(seconds, 1)}
    write_json(root / out / "summary.json", {**summary, "ovd_d2": __version__})
    tables, files = [], [f"{out}/summary.json", f"{out}/table.md"]
    for name in dict.fromkeys(map(family_of, rows)):
        family = FAMILIES[name]
        chosen = [row for key, row in rows.items() if family_of(key) == name]
        dataset = chosen[0]["runs"][0]["dataset"]
        titled = {row["title"]: metrics_of(row, family.tasks) for row in chosen}
        picture = f"{out}/{name}.png"
        if family.against_iterations:
            plot_iterations(chosen, dataset, root / picture)
        else:
            plot_average_precision(titled, dataset, root / picture, family.bars, what=family.what)
        seeds = max(row["seeds"] for row in chosen)
        about = f"{family.title}: {family.what} in percent on {dataset}"
        _print_table(titled, f"{about}, mean of {seeds} seed(s) (range)")
        tables.append(markdown_table(titled))
        files.append(picture)
    with atomic_write(root / out / "table.md") as file:
        file.write("\n".join(tables).encode())
    say(", ".join(files))
    say("To put these numbers into the pages: ovd benchmark tables --take " + files[0])


def _print_table(rows: Mapping[str, Any], title: str) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from ovd_d2.benchmarks.recipes.seeds import cell, columns

    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("model", no_wrap=True)
    for metric in columns(rows):
        table.add_column(metric, justify="right", no_wrap=True)
    for name, metrics in rows.items():
        table.add_row(name, *[cell(metrics.get(metric)) for metric in columns(rows)])
    console = Console()
    Console(width=max(console.width, 140)).print(table)
