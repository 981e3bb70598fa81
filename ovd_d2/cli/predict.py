"""``ovd predict``: what is in these images?"""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ovd_d2.errors import OVDError

from .register_option import REGISTER
from .tile_options import OVERLAP, TILE

if TYPE_CHECKING:
    from ovd_d2.inference.predict_files import Found, Report
    from ovd_d2.inference.predictor import OpenVocabPredictor

SCORE_THRESHOLD = 0.3  # of models that do not say theirs
FOR_PHOTOGRAPHS = "grounding-dino-tiny"  # of the model zoo
SURE = 0.3  # images without a detection of this score are spoken about
ROWS = 20  # images listed one by one; of more a summary must do
WORDS = 8  # names per image in that list
_IMAGES = typer.Argument(..., metavar="IMAGES...", help="Image files and folders of images.")
_OUT = typer.Option(Path("output/predict"), help="Folder of the pictures and predictions.json.")
_VOCABULARY = typer.Option(
    "",
    "--vocab",
    help='What to look for: "cat, red mug", a .txt or .json file, dataset:NAME, or everything (the '
    "1305 names of LVIS and Objects365); left out: the classes the model was trained on.",
)
_ATTRIBUTES = typer.Option(
    "", help='"red, striped": every name with the attribute that fits best, as in "red mug".'
)
_MODELS = typer.Option(
    [],
    "--model",
    help="A packaged model, one of `ovd models list`, a folder that `ovd export` wrote, or hf: and "
    "a zero-shot detector of transformers (name or folder); default: mini. Several times: all of "
    "them, side by side in one picture per image; what each has found is in OUT/MODEL.",
)
_CONFIG = typer.Option(None, help="The yaml a model was trained with, instead of --model.")
_JSON = typer.Option(
    "", "--json", help="Where the COCO json goes; - prints it; default: OUT/predictions.json."
)
_THRESHOLD = typer.Option(
    None,
    min=0,
    max=1,
    help=f"Drop what scores less; default: the model's own (mini: 0.08), else {SCORE_THRESHOLD}.",
)
_TOPK = typer.Option(None, min=1, help="Detections per image; default: the config's.")
_DEVICE = typer.Option(None, help="cpu, cuda, cuda:1, ...; default: a GPU if there is one.")
_FORMATS = typer.Option(
    [],
    "--format",
    help="Also in OUT/FORMAT: yolo, voc, cvat, label-studio, coco (repeatable); predictions.json "
    "is written anyway.",
)
_BATCH = typer.Option(4, min=1, help="Images that go through the model together.")
NEGATIVES = typer.Option(
    "",
    help="Names that are not looked for but compete, given as in --vocab: what scores more for one "
    "of them is left out.",
)
THRESHOLDS = typer.Option(
    None,
    help='A .json file of least scores per name, {"cat": 0.3}, or of `ovd vocab calibrate`; other '
    "names have the --score-threshold.",
)
SYNONYMS = typer.Option(
    "mean",
    help="mean: the words of a class as one text, as the model was trained; max: each of them is "
    "looked for.",
)
ALONE = typer.Option(
    False,
    "--alone",
    help="Score the names without all others that the model was trained with, which otherwise "
    "compete where classes share a probability.",
)
EXAMPLES = typer.Option(
    None,
    help="Classes by example boxes: a .json of them, or a profile of `ovd vocab learn` "
    "(.safetensors); --vocab adds more by their words.",
)
SEEN_BY = typer.Option(
    "model", help="What sees the examples: the model, or (crop) the image tower of its encoder."
)


def command(
    images: list[Path] = _IMAGES,
    vocabulary: str = _VOCABULARY,
    attributes: str = _ATTRIBUTES,
    models: list[str] = _MODELS,
    config_file: Path | None = _CONFIG,
    weights: str = typer.Option("", help="Checkpoint for --config-file."),
    out: Path = _OUT,
    json_file: str = _JSON,
    pictures: bool = typer.Option(True, help="Draw a picture per image."),
    score_threshold: float | None = _THRESHOLD,
    topk: int | None = _TOPK,
    device: str | None = _DEVICE,
    batch_size: int = _BATCH,
    registered: list[str] = REGISTER,
    formats: list[str] = _FORMATS,
    negatives: str = NEGATIVES,
    thresholds: Path | None = THRESHOLDS,
    synonyms: str = SYNONYMS,
    tile: int | None = TILE,
    overlap: float | None = OVERLAP,
    examples: Path | None = EXAMPLES,
    seen_by: str = SEEN_BY,
    alone: bool = ALONE,
) -> None:
    """Find what you name in images: pictures with boxes, names and scores, and a COCO json.

    Of models that give label maps: pictures with a legend, the maps as PNGs of class numbers, and
    a json of masks.

    Exit code 1: some images could not be read; they are named and left out.
    """
    from ovd_d2 import register

    register()
    from ovd_d2.inference.opening import WantedClasses, check_model_choice, open_with_classes

    check_model_choice("".join(models), config_file, weights)
    if len(models) > 1 and (json_file or not pictures):
        raise OVDError(
            "--json and --no-pictures are for one --model: of several, each has its json in "
            "OUT/MODEL, and the picture is what they are for."
        )
    from ovd_d2.files.videos import refuse_videos
    from ovd_d2.inference.formats import check_formats
    from ovd_d2.inference.predict_files import check_targets, find_images, titles_of
    from ovd_d2.inference.tiles import wanted_tiles

    _silence_torch()
    refuse_videos(images)
    wanted_tiles(tile, overlap)
    how = {
        "attributes": attributes,
        "formats": formats,
        "tiles": {"tile": tile, "overlap": overlap},
    }
    files = find_images(images)
    for title in titles_of(models) if len(models) > 1 else ("",):
        check_formats("--format", formats, out / title, files)
    wanted = WantedClasses(vocabulary, examples, seen_by, negatives, thresholds, synonyms, alone)
    inputs = [*(str(name) for name in (config_file, weights) if name), *wanted.check()]
    options: dict[str, Any] = {
        "wanted": wanted,
        "default_threshold": SCORE_THRESHOLD,
        "device": device,
        "score_threshold": score_threshold,
        "topk": topk,
        "batch_size": batch_size,
    }
    if len(models) > 1:
        skipped = _side_by_side(models, files, out, options, how, inputs)
    else:
        to_stdout = json_file == "-"
        path = Path(json_file) if json_file else out / "predictions.json"
        check_targets(files, out if pictures else None, None if to_stdout else path, inputs)
        model = "".join(models)
        predictor = open_with_classes(
            model=model, config_file=config_file, weights=weights, **options
        )
        info = {"model": model or str(config_file or "mini")}
        if weights:
            info["weights"] = weights
        places = (out if pictures else None, None if to_stdout else path)
        report = _predict(predictor, files, places, info, how)
        _write_formats(report, formats, out, sys.stderr if to_stdout else sys.stdout)
        skipped = report.skipped
    for sentence in skipped:
        print(f"skipped: {sentence}", file=sys.stderr)
    if skipped:
        raise typer.Exit(1)


def _predict(
    predictor: "OpenVocabPredictor",
    files: list[Path],
    places: tuple[Path | None, Path | None],
    info: dict[str, Any],
    how: dict[str, Any],
) -> "Report":
    """Predicts with one model and says what came of it.

    Args:
        predictor: with a vocabulary.
        files: the images.
        places: folder of the pictures, None for none; and the json, None to print it.
        info: facts for the json.
        how: "attributes", "formats" and "tiles" of the options.
    """
    from tqdm import tqdm

    from ovd_d2.inference.predict_files import predict_files

    out, path = places
    if how["attributes"]:
        predictor.set_attributes(how["attributes"])
    info = {**info, "score_threshold": predictor.score_threshold}
    info |= predictor.rules.facts if predictor.rules else {}
    with tqdm(total=len(files), unit="image", delay=1, disable=None) as bar:
        report = predict_files(
            predictor,
            files,
            pictures=out,
            json_file=path,
            info=info,
            on_image=bar.update,
            **how["tiles"],
        )
    if path is None:
        print(json.dumps(report.coco))
    _show(report, predictor, file=sys.stderr if path is None else sys.stdout)
    if predictor.facts.get("learned_from"):
        print(f"{info['model']} knows {predictor.facts['learned_from']}", file=sys.stderr)
    if path is not None:
        count = len(report.found)
        drawn = f"{out}: {count} picture{'s' if count > 1 else ''}; "
        print(f"{drawn if out else ''}{path}")
    if note := _note(report, predictor, info["model"]):
        print(f"note: {note}", file=sys.stderr)
    return report


def _side_by_side(
    models: list[str],
    files: list[Path],
    out: Path,
    options: dict[str, Any],
    how: dict[str, Any],
    inputs: list[str],
) -> list[str]:
    """Predicts with several models, one after the other, and draws what they have found into one
    picture per image; sentences of images that were left out."""
    from ovd_d2.inference.opening import open_with_classes
    from ovd_d2.inference.predict_files import check_targets, titles_of, write_side_by_side

    titles = titles_of(models)
    check_targets(files, out, None, inputs)
    reports = {}
    for title, model in titles.items():
        places = (out / title, out / title / "predictions.json")
        check_targets(files, *places, inputs)
        predictor = open_with_classes(model=model, **options)
        print(title)
        reports[title] = _predict(predictor, files, places, {"model": model}, how)
        _write_formats(reports[title], how["formats"], out / title, sys.stdout)
    count = write_side_by_side(files, out, reports)
    print(f"{out}: {count} picture{'s' if count > 1 else ''} of {len(titles)} models side by side")
    return list(dict.fromkeys(text for report in reports.values() for text in report.skipped))


def _write_formats(report: "Report", formats: list[str], out: Path, printed_to: Any) -> None:
    from ovd_d2.inference.formats import from_coco, write_detections

    for name in dict.fromkeys(formats):
        count = write_detections(from_coco(report.coco), name, out / name, what="--format")
        print(f"{out / name}: {count} file{'s' if count > 1 else ''}", file=printed_to)


def _silence_torch() -> None:
    """Nobody who runs a detector can act on these two."""
    import logging
    import warnings

    warnings.filterwarnings("ignore", message="torch.meshgrid")
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)


def _note(report: "Report", predictor: "OpenVocabPredictor", model: str) -> str:
    """What to say, and to do, about images in which nothing is sure; "" if all is well."""
    unsure = [
        found
        for found in report.found
        if not found.shares and max(found.best.values(), default=0.0) < SURE
    ]
    if not unsure:
        return ""
    learned = predictor.facts.get("learned_from")
    shown = predictor.score_threshold
    remedy = f"lower --score-threshold (now {shown:g}) or name other classes"
    if learned:
        remedy = (
            f"the model {model} knows {learned} and nothing else. For other "
            f"pictures, such as photographs, add --model {FOR_PHOTOGRAPHS} (it comes from the "
            "Hugging Face hub), or train a detector on their kind and export it (`ovd export`); "
            f"else {remedy}"
        )
    return (
        f"in {len(unsure)} of {len(report.found)} images no detection scores "
        f"{max(SURE, shown):g} or more: {remedy}."
    )


def _show(report: "Report", predictor: "OpenVocabPredictor", file: Any) -> None:
    """A table by image, or by name where there are many images."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    if len(report.found) <= ROWS:
        table.add_column("image")
        table.add_column("found")
        for found in report.found:
            table.add_row(Text(found.file), Text(", ".join(_words(found)) or "nothing"))
    else:
        for name in ("name", "found", "in images", "best score"):
            table.add_column(name, justify="left" if name == "name" else "right")
        rows, showing = [], {}
        for found in report.found:
            for name in found.shares or found.counts:
                showing.setdefault(name, []).append(found)
        for name in predictor.vocabulary.names:
            holders = showing.get(name, ())
            total = sum(found.counts[name] or 1 for found in holders)
            best = max((found.best.get(name, 0.0) for found in holders), default=0.0)
            rows.append((name, total, len(holders), best))
        for name, total, holders, best in sorted(rows, key=lambda row: -row[1])[: 2 * ROWS]:
            table.add_row(Text(name), str(total), str(holders), f"{best:.2f}" if best else "")
    console = Console(file=file)
    console = console if console.is_terminal else Console(file=file, width=160)
    console.print(table)


def _words(found: "Found") -> list[str]:
    """What is in an image, in order: "2 cat (0.71)", or "cat 12%" of a label map."""
    from ovd_d2.visualization.label_maps import percent

    if found.shares:
        words = [f"{name} {percent(share)}" for name, share in found.shares.items()]
    else:
        ranked = sorted(found.counts, key=lambda name: -found.best[name])
        words = [f"{found.counts[k]} {k} ({found.best[k]:.2f})" for k in ranked]
    more = len(words) - WORDS
    return words[:WORDS] + ([f"{more} more names"] if more > 0 else [])
