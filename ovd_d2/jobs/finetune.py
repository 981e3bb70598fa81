"""Fine-tuning on users' own labelled images: data, config, before, training, export, pictures.

Every step leaves its result in the output folder, and a step whose result is there is not repeated:
that is how an interrupted run goes on.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from ovd_d2.config_file import load_config
from ovd_d2.data.named_datasets import check_registered
from ovd_d2.errors import OVDError
from ovd_d2.files.atomic import check_output_folder, write_json
from ovd_d2.files.locks import lock
from ovd_d2.inference.export import export_model
from ovd_d2.inference.model_folders import DEFAULT_MODEL, facts_of
from ovd_d2.inference.opening import check_model_choice
from ovd_d2.visualization.training_plots import draw_comparison, plot_loss_curves

from .finetune_config import (
    Start,
    check_model,
    choose_recipe,
    finetune_config,
    read_start,
    write_config,
)
from .finetune_data import VAL, Bar, PreparedData, prepare_data
from .finetune_training import box_ap, evaluate, train

# What is in the output folder.
CONFIG, STATE, DATA, BEFORE, TRAINING, MODEL = (
    "finetune.yaml", "finetune.json", "data", "before", "train", "model"
)  # fmt: skip
PREDICTIONS, CURVES, REPORT = "predictions.jpg", "loss_curves.png", "report.json"
_LOCK = ".finetune.lock"


@dataclass(frozen=True)
class FinetuneSettings:
    """What to fine-tune, on what, and how. Paths are as given; "" and 0 leave the choice to us.

    Attributes:
        data: see :func:`~ovd_d2.jobs.finetune_data.prepare_data`, and so are the next five.
        out: folder of everything that is written.
        val: validation data.
        images: folder of the images of a json.
        kind: format of the data.
        shots: training images of each class.
        seed: of split, shots and training.
        recipe: one of :data:`~ovd_d2.modeling.tuning.RECIPES`.
        model: packaged, exported, of the zoo, or "hf:..."; "": mini.
        config_file: yaml of the model, instead of ``model``.
        weights: its checkpoint.
        iterations: of training.
        rate: learning rate.
        old: data set of the names that the model knew, tested before and after.
        replay: data set that is trained on beside the new data.
        replay_share: of the batches, above 0 and below 1.
        overrides: KEY, value, ...
    """

    data: str
    out: str
    val: str = ""
    images: str = ""
    kind: str = ""
    shots: int = 0
    seed: int = 0
    recipe: str = ""
    model: str = ""
    config_file: str = ""
    weights: str = ""
    iterations: int = 0
    rate: float = 0.0
    old: str = ""
    replay: str = ""
    replay_share: float = 0.25
    overrides: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_model_choice(self.model, self.config_file, self.weights)
        if not 0 < self.replay_share < 1:
            raise OVDError(f"--replay-share {self.replay_share:g}: it must be above 0 and below 1.")
        if ":" in str(Path(self.out).absolute()):
            raise OVDError(f"--out {self.out}: names of data sets end at a colon, choose another.")


@dataclass(frozen=True)
class Said:
    """How a run speaks.

    Attributes:
        line: shows a line.
        bar: shows progress.
    """

    line: Callable[[str], None]
    bar: Bar


def check_only(settings: FinetuneSettings, said: Said) -> PreparedData:
    """Reads the data, and writes the report into out/data; see :func:`prepare_data`."""
    _check_out(settings, resume=False)
    return _prepare(settings, said)


def finetune(settings: FinetuneSettings, said: Said, *, resume: bool = False) -> dict[str, Any]:
    """Runs all steps that are not done yet.

    Args:
        settings: what to do.
        said: how to speak.
        resume: go on with what is in ``settings.out``.

    Returns:
        the report: "recipe", "iterations", "seconds", "new" and "old", each {"dataset", "before",
        "after"} with box metrics in percent, or a sentence in "old" why there is none.

    Raises:
        OVDError: anything that a user can do something about.
    """
    started, out = time.monotonic(), Path(settings.out)
    _check_out(settings, resume=resume)
    planned = (out / CONFIG).is_file()
    # What is wrong with the model is found before the data are read.
    begun = None if planned else _begin(settings)
    held = _locked(out)
    try:
        if begun is not None:
            _plan(settings, begun, _prepare(settings, said), said)
        state = _state(out)
        _evaluate_before(out, state, said)
        _train(out, said, resume=resume)
        _export(out, state, said)
        return _report(out, state, started)
    finally:
        held.release()


@dataclass(frozen=True)
class _Begun:
    """What is known before the data are read: the model, which can learn by the recipe, the names
    of its parameters, the old data set ("": none), and why there is none."""

    start: Start
    parameters: list[str]
    old: str
    no_old: str


def _begin(settings: FinetuneSettings) -> _Begun:
    name = settings.model or DEFAULT_MODEL
    facts = {} if settings.config_file else facts_of(name)
    start = read_start(name, settings.config_file, settings.weights, facts)
    parameters = check_model(start.cfg, choose_recipe(start.cfg, settings.recipe, 0))
    return _Begun(start, parameters, *_old_dataset(settings, start))


def _locked(out: Path) -> Any:
    out.mkdir(parents=True, exist_ok=True)
    return lock(out / _LOCK, taken=f"--out {out}: another ovd finetune is at work there; wait.")


def _check_out(settings: FinetuneSettings, *, resume: bool) -> None:
    """Raises OVDError if ``out`` cannot be written, holds another run, or is not to be gone on."""
    out = Path(settings.out)
    check_output_folder("--out", out)
    there = {p.name for p in out.iterdir()} - {DATA, _LOCK} if out.is_dir() else set()
    if there and not resume:
        raise OVDError(
            f"--out {out} exists already: add --resume to go on with it, or choose another folder."
        )
    if not resume or not (out / STATE).is_file():
        return
    before, now = _state(out)["settings"], json.loads(json.dumps(asdict(settings)))
    for name in now:
        if name != "out" and before.get(name) != now[name]:
            option = {"rate": "lr", "overrides": "KEY VALUE"}.get(name, name).replace("_", "-")
            raise OVDError(
                f"--resume: {out} was begun with {option} {before.get(name)!r}, now it is "
                f"{now[name]!r}: repeat the command as it was, or choose another --out."
            )


def _state(out: Path) -> dict[str, Any]:
    try:
        return json.loads((out / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OVDError(f"{out / STATE} cannot be read ({error}): choose another --out.") from error


def _prepare(settings: FinetuneSettings, said: Said) -> PreparedData:
    return prepare_data(
        Path(settings.data).expanduser(),
        Path(settings.out) / DATA,
        val=Path(settings.val).expanduser() if settings.val else None,
        images=Path(settings.images).expanduser() if settings.images else None,
        kind=settings.kind,
        shots=settings.shots,
        seed=settings.seed,
        say=said.line,
        bar=said.bar,
    )


def _old_dataset(settings: FinetuneSettings, start: Start) -> tuple[str, str]:
    """The data set of what the model knew, or "" and why there is none."""
    for option, name in (("--old", settings.old), ("--replay", settings.replay)):
        if name:
            check_registered(option, [name.removeprefix("dataset:")])
    if settings.old:
        return settings.old.removeprefix("dataset:"), ""
    for name in start.test_datasets:
        try:
            check_registered("--old", [name])
        except OVDError:
            continue
        metadata = MetadataCatalog.get(name)
        files = [metadata.get(key) for key in ("json_file", "image_root")]
        if all(file and Path(file).exists() for file in files):
            return name, ""
    tested = ", ".join(start.test_datasets) or "unknown"
    return "", (
        f"The data the model was tested on ({tested}) are not here, so nothing tells what it has "
        "forgotten; --old dataset:NAME names another data set."
    )


def _plan(settings: FinetuneSettings, begun: _Begun, data: PreparedData, said: Said) -> None:
    """Writes the state and, last, the config."""
    out, start = Path(settings.out), begun.start
    recipe = choose_recipe(start.cfg, settings.recipe, data.images)
    cfg = finetune_config(
        start, data, recipe, begun.parameters, out=out.absolute(),
        iterations=settings.iterations, rate=settings.rate, seed=settings.seed, old=begun.old,
        replay=settings.replay.removeprefix("dataset:"), replay_share=settings.replay_share,
        overrides=settings.overrides,
    )  # fmt: skip
    solver = cfg.SOLVER
    summary = (
        f"{recipe}: {data.images} images, {len(data.names)} classes, {solver.MAX_ITER} iterations "
        f"of {solver.IMS_PER_BATCH} images, learning rate {solver.BASE_LR:g}"
    )
    write_json(
        out / STATE,
        {
            "settings": asdict(settings), "recipe": recipe, "train": data.train, "val": data.val,
            "names": data.names, "images": data.images, "old": begun.old, "no_old": begun.no_old,
            "tuned_before": start.cfg.MODEL.GLIP.TUNE,
            "model": settings.model or settings.config_file or DEFAULT_MODEL,
        },
    )  # fmt: skip
    title = (
        f"Written by `ovd finetune`. {summary}.",
        "python train_net.py --config-file THIS_FILE",
    )
    write_config(cfg, out / CONFIG, title)
    said.line(f"{summary} ({out / CONFIG})")
    if begun.no_old:
        said.line(begun.no_old)
    elif shared := _shared_images(data.train, begun.old):
        said.line(
            f"{shared} images of {begun.old} are among those to learn from: what the model knew "
            "before will look better afterwards than it is; --old dataset:NAME names other data."
        )


def _shared_images(*datasets: str) -> int:
    """How many image files two data sets have in common."""
    check_registered("--old", datasets)
    first, second = (
        {Path(record["file_name"]).resolve() for record in DatasetCatalog.get(name)}
        for name in datasets
    )
    return len(first & second)


def _evaluate_before(out: Path, state: dict[str, Any], said: Said) -> None:
    if (out / BEFORE / "results.json").is_file():
        return
    said.line("before: testing the model as it is")
    overrides = ["OUTPUT_DIR", str((out / BEFORE).absolute()), "MODEL.TUNE.LORA.RANK", "0"]
    # An offset of the words that training adds is not in the weights yet.
    evaluate(out / CONFIG, [*overrides, "MODEL.GLIP.TUNE", state["tuned_before"]])


def _train(out: Path, said: Said, *, resume: bool) -> None:
    cfg = load_config(str(out / CONFIG))
    done = _results(out / TRAINING).get("iteration") == cfg.SOLVER.MAX_ITER
    if done and (out / TRAINING / "model_final.pth").is_file():
        return
    said.line(f"training, log in {out / TRAINING / 'log.txt'}")
    train(out / CONFIG, resume=resume)


def _results(folder: Path) -> dict[str, Any]:
    """Of results.json; {} if there is none."""
    try:
        return json.loads((folder / "results.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _export(out: Path, state: dict[str, Any], said: Said) -> None:
    if (out / MODEL).is_dir():
        return
    said.line("exporting, and choosing the score threshold on the validation images")
    names = state["names"]
    learned = f"{state['images']} images of {', '.join(names[:5])}"
    learned += f" and {len(names) - 5} more" if len(names) > 5 else ""
    export_model(
        out / TRAINING / "model_final.pth",
        out / CONFIG,
        out / MODEL,
        # All classes of the data, and nothing that only training reads.
        [
            "MODEL.OPEN_VOCAB.VOCABULARY", str((out / DATA / VAL).absolute()),
            "MODEL.TUNE.FROZEN", "[]", "MODEL.TUNE.ONLY", "[]", "MODEL.TUNE.LORA.RANK", "0",
        ],
        score_threshold=state["val"],
        notes={"learned_from": learned, "fine_tuned_from": state["model"]},
    )  # fmt: skip


def _report(out: Path, state: dict[str, Any], started: float) -> dict[str, Any]:
    """Draws the pictures, writes and returns the report."""
    cfg = load_config(str(out / CONFIG))
    before, after = (_results(out / folder) for folder in (BEFORE, TRAINING))
    found = {
        part: {
            "dataset": dataset,
            "before": box_ap(before.get("results", {}), dataset),
            "after": box_ap(after.get("results", {}), dataset),
        }
        for part, dataset in (("new", state["val"]), ("old", state["old"]))
        if dataset
    }
    predictions = {
        title: out / folder / "inference" / "coco_instances_results.json"
        for title, folder in (("before", BEFORE), ("after", TRAINING))
    }
    draw_comparison(state["val"], predictions, out / PREDICTIONS, only_novel=False)
    records = [
        json.loads(line)
        for line in (out / TRAINING / "metrics.json").read_text(encoding="utf-8").splitlines()
    ]
    plot_loss_curves({"fine-tuning": records}, out / CURVES)
    facts = json.loads((out / MODEL / "facts.json").read_text(encoding="utf-8"))
    report = {
        "recipe": state["recipe"],
        "iterations": cfg.SOLVER.MAX_ITER,
        "seconds": round(time.monotonic() - started, 1),
        "train_seconds": facts["train_seconds"],
        "score_threshold": facts["score_threshold"],
        "old": state["no_old"],
        **found,
    }
    write_json(out / REPORT, report)
    return report
