"""``ovd pseudo-label``: boxes for images of which only labels or captions are known."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ovd_d2.errors import OVDError

from .register_option import REGISTER

if TYPE_CHECKING:
    from ovd_d2.jobs.pseudo_label import LabellingSettings
    from ovd_d2.jobs.pseudo_label_captions import CaptionLabellingSettings
    from ovd_d2.jobs.store_of_labels import LabelStoreSettings

_OUT = typer.Option(..., help="The json to write; an interrupted run goes on.")
_DETECTOR = typer.Option(
    ...,
    help="Who finds the boxes: hf:MODEL (zero-shot detector of transformers: Grounding DINO, "
    "OWLv2, OmDet-Turbo); model:CHECKPOINT (of train_net.py, its config.yaml beside it or "
    "model:CHECKPOINT,config=FILE; a MAVL is asked in words); mavl:PATH (published "
    "pickles); json:FILE (COCO's results).",
)
_BOXES = typer.Option(
    "labels", help="labels: one box per image and label; objects: whatever is there."
)
_LABELS = typer.Option(
    "",
    help="captions:FILE (COCO's json; csv or jsonl with file_name and caption), folders (named "
    "after classes or synsets), json:FILE ({file_name or image_id: [names]}), dataset (the "
    "annotated classes of --dataset).",
)
_VOCABULARY = typer.Option(
    "", "--vocab", help="dataset:NAME, a .txt or .json file, or names; default: of --dataset."
)
_QUERIES = typer.Option(
    "",
    help="For --boxes objects: what to ask hf: or a MAVL for, between commas; default: RKD's four.",
)
_MIN_SCORE = typer.Option(None, help="Leave out boxes that score no more (COCO's recipe: 0.95).")
_REGION_STORE = typer.Option(None, help="Build a region store of the boxes, too; its folder.")
_SHOW = typer.Option(None, help="Picture to write: some of the images with their boxes.")
_OTHER = typer.Option(
    "", help="Phrases in captions that are no class though they hold one: 'hot dog' for dog."
)
_TASK = typer.Option(
    "labels",
    help="labels: boxes for image labels, or of objects; grounding: boxes for the noun phrases of "
    "captions (GLIP's self-training).",
)
_SCORE_THRESHOLD = typer.Option(0.5, min=0, max=1, help="Of --task grounding: drop lower scores.")
_MIN_BOXES = typer.Option(
    1, min=0, help="Of --task grounding: leave out images with fewer boxes than that."
)
_NOUN_PHRASES = typer.Option(
    "auto",
    help="Of --task grounding: auto (spaCy where it is installed), stop-words, or a pipeline of "
    "spaCy.",
)
_FOLDER_NAMES = typer.Option("", help="json {folder: class name or synset}, for --labels folders.")


# Options that belong to one task; the others belong to both.
_OF_TASK = {
    "labels": {
        "boxes", "labels", "images", "vocabulary", "queries", "topk", "min_score", "folder_names",
        "other_phrases", "region_store", "encoder", "crops", "show", "num",
    },
    "grounding": {"score_threshold", "min_boxes", "noun_phrases"},
}  # fmt: skip


def command(
    context: typer.Context,
    out: Path = _OUT,
    detector: str = _DETECTOR,
    task: str = _TASK,
    boxes: str = _BOXES,
    labels: str = _LABELS,
    dataset: str = typer.Option("", help="Registered data set, whose image ids are kept."),
    images: str = typer.Option("", help="Or a folder of images; ids are running numbers."),
    vocabulary: str = _VOCABULARY,
    queries: str = _QUERIES,
    topk: int = typer.Option(0, min=0, help="Boxes per label (0: 1) or image of objects (0: 5)."),
    min_score: float | None = _MIN_SCORE,
    config_file: str = typer.Option("", help="The yaml of model:CHECKPOINT."),
    folder_names: str = _FOLDER_NAMES,
    other_phrases: str = _OTHER,
    region_store: Path | None = _REGION_STORE,
    encoder: str = typer.Option("", help="Image-text model of --region-store."),
    crops: str = typer.Option("1x", help="Of --region-store: 1x (RKD) or 1x+1.5x (ViLD)."),
    batch: int = typer.Option(0, min=0, help="Queries at once; 0: 4 on a CPU, 16 on a GPU."),
    device: str = typer.Option("auto", help="cpu, cuda, ...; auto: the GPU if there is one."),
    show: Path | None = _SHOW,
    registered: list[str] = REGISTER,
    num: int = typer.Option(24, min=1, help="Images in the picture of --show."),
    score_threshold: float = _SCORE_THRESHOLD,
    min_boxes: int = _MIN_BOXES,
    noun_phrases: str = _NOUN_PHRASES,
) -> None:
    """Turn image labels or captions into boxes (RKD's pseudo labels), or propose objects; or ground
    captions (GLIP's self-training).

    Run it again after an interruption. Several processes share the images: torchrun
    --nproc-per-node N -m ovd_d2.cli.app pseudo-label ...
    """
    _check_task(task, context)
    import ovd_d2

    ovd_d2.register()
    from detectron2.utils.logger import setup_logger

    setup_logger(name="ovd_d2", distributed_rank=int(os.environ.get("RANK", "0")))
    if task == "grounding":
        from ovd_d2.jobs.pseudo_label_captions import CaptionLabellingSettings

        _ground(
            CaptionLabellingSettings(
                out=out, detector=detector, dataset=dataset, score_threshold=score_threshold,
                min_boxes=min_boxes, noun_phrases=noun_phrases, config_file=config_file,
                batch=batch, device=device,
            )
        )  # fmt: skip
        return
    from ovd_d2.jobs.pseudo_label import LabellingSettings
    from ovd_d2.jobs.store_of_labels import LabelStoreSettings

    words = tuple(query.strip() for query in queries.split(",") if query.strip())
    settings = LabellingSettings(
        out=out, detector=detector, boxes=boxes, labels=labels, dataset=dataset, images=images,
        vocabulary=vocabulary, queries=words, topk=topk, min_score=min_score,
        config_file=config_file, folder_names=folder_names, other_phrases=other_phrases,
        batch=batch, device=device,
    )  # fmt: skip
    store = region_store and LabelStoreSettings(out, encoder, region_store, crops, device)
    _label(settings, store, show, num)


def _check_task(task: str, context: typer.Context) -> None:
    """Raises OVDError for an unknown task, or an option that was given and is not of this one."""
    if task not in _OF_TASK:
        raise OVDError(f"--task {task} is unknown: use {' or '.join(_OF_TASK)}")
    options = {option.name: option.opts[0] for option in context.command.params}
    for other in _OF_TASK.keys() - {task}:
        for name in options:
            source = context.get_parameter_source(name)
            if name in _OF_TASK[other] and source.name not in ("DEFAULT", "DEFAULT_MAP"):
                raise OVDError(f"{options[name]} is for --task {other}; this is --task {task}")


def _ground(settings: "CaptionLabellingSettings") -> None:
    from ovd_d2.jobs.pseudo_label_captions import pseudo_label_captions

    from .regions import ImageBar

    is_main = os.environ.get("RANK", "0") == "0"
    with ImageBar(is_main) as bar:
        report = pseudo_label_captions(settings, bar.tell)
    if not is_main:
        return
    counts = report.counts
    print(f"{settings.out}: {report.boxes} boxes on {report.images} images")
    print(
        f"{counts.phrases_without_box} of {counts.phrases} phrases got no box of score "
        f"{settings.score_threshold:g} or more"
    )
    least = settings.min_boxes
    lack = "without a box" if least == 1 else f"with fewer than {least} boxes"
    print(
        f"{counts.images_left_out} of {counts.captions} images {lack} are left out; "
        f"{counts.captions_without_phrase} captions have no noun phrase"
    )
    _print_work(report.done, report.seconds, len(report.unreadable))


def _label(
    settings: "LabellingSettings", store: "LabelStoreSettings | None", show: Path | None, num: int
) -> None:
    from ovd_d2.jobs.processes import in_processes
    from ovd_d2.jobs.pseudo_label import pseudo_label
    from ovd_d2.jobs.store_of_labels import build_store_of_labels

    from .regions import ImageBar

    if show is not None:
        from ovd_d2.files.atomic import check_picture

        check_picture("--show", show, _inputs(settings) if show.is_file() else ())
    is_main = os.environ.get("RANK", "0") == "0"
    with ImageBar(is_main) as bar, ImageBar(is_main) as region_bar:

        def both() -> tuple[Any, Any]:
            report = pseudo_label(settings, bar.tell)
            return report, store and build_store_of_labels(store, region_bar.tell)

        report, built = in_processes(both)
    if not is_main:
        return
    print(f"{settings.out}: {report.boxes} boxes on {report.images} images")
    if report.labels:
        print(f"{report.labels_without_box} of {report.labels} image labels got no box")
    _print_work(report.done, report.seconds, len(report.unreadable))
    if built is not None:
        print(f"{store.out}: {built.regions} regions added")
    if show is not None:
        from ovd_d2.visualization.label_sheet import draw_label_sheet

        print(f"wrote {draw_label_sheet(settings.out, show, num=num)}")


def _print_work(done: int, seconds: float, unreadable: int) -> None:
    if done:
        print(
            f"{done} images in {seconds:.1f} s ({done / seconds:.2f} images/s)"
            + (" by the first of the processes" if "RANK" in os.environ else "")
        )
    if unreadable:
        print(f"{unreadable} images could not be read and are missing")


def _inputs(settings: "LabellingSettings") -> list[str]:
    """The files that ``settings`` name, and the images."""
    from ovd_d2.pseudo_labelling.label_sources import load_images

    values = (settings.detector, settings.labels, settings.vocabulary, settings.other_phrases)
    named = [part for value in values for part in (value, value.partition(":")[2])]
    named += [settings.config_file, settings.folder_names, str(settings.out)]
    images = load_images(settings.dataset, settings.images)
    return [name for name in named if name] + [record["file_name"] for record in images]
