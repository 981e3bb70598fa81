"""From images and what is known about them to boxes, by one process or several.

Letters: K classes.
"""

import argparse
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.utils import comm

import ovd_d2
from ovd_d2.data.prefetch import MAX_UNREADABLE, read_ahead
from ovd_d2.encoders import CROP_RULES, CropRegionEncoder, build_image_text_model
from ovd_d2.engine.launch import launch
from ovd_d2.errors import OVDError
from ovd_d2.files.atomic import check_output, check_output_folder
from ovd_d2.jobs.build_region_store import (
    CPU_BATCH,
    GPU_BATCH,
    process_device,
    wait_for_all,
    write_regions,
)
from ovd_d2.language import Vocabulary
from ovd_d2.proposals.build import build_label_proposer
from ovd_d2.proposals.proposer import BoxProposer
from ovd_d2.proposals.results_file import ResultsFile
from ovd_d2.pseudo_labelling import (
    LABELS_KIND,
    OBJECT_CATEGORY,
    OBJECT_QUERIES,
    OBJECTS_KIND,
    choose_for_label,
    choose_objects,
    journal,
    labelled_image,
    read_label_file,
    write_label_file,
)
from ovd_d2.pseudo_labelling.label_sources import (
    LabelReader,
    Labels,
    Records,
    fingerprint,
    load_images,
    load_vocabulary,
)
from ovd_d2.region_store import merge_manifests

logger = logging.getLogger(__name__)

OnImage = Callable[[int, int], None]
TOPK = {"labels": 1, "objects": 5}


@dataclass(frozen=True)
class LabellingSettings:
    """What to label, and how.

    Attributes:
        out: the json; an interrupted run is gone on with.
        detector: "hf:MODEL", "model:CHECKPOINT", "mavl:PATH" or "json:FILE".
        boxes: "labels", a box per image and label, or "objects", class-agnostic ones.
        labels: see :meth:`LabelReader.read`; of no meaning with "objects".
        dataset: a registered data set, or
        images: a folder of images.
        vocabulary: of ``Vocabulary.load``; "": that of ``dataset``.
        queries: for "objects"; empty: RKD's four.
        topk: boxes per label, or per image with "objects"; 0: 1 and 5.
        min_score: boxes that score no more are left out; None keeps all.
        config_file: yaml for "model:"; "": the config.yaml beside the weights.
        folder_names: json {folder: name} for the labels "folders".
        other_phrases: see :class:`CaptionLabeller`; of ``Vocabulary.load``, "" for none.
        region_store: folder of a region store of the boxes to build afterwards; None: none.
        encoder: its image-text model.
        crops: its crop rule.
        batch: queries at once through "hf:"; 0: 4 on a CPU, 16 on a GPU.
        device: "cpu", "cuda", ...; "auto": this process's GPU if there is one.
    """

    out: Path
    detector: str
    boxes: str = "labels"
    labels: str = ""
    dataset: str = ""
    images: str = ""
    vocabulary: str = ""
    queries: tuple[str, ...] = ()
    topk: int = 0
    min_score: float | None = None
    config_file: str = ""
    folder_names: str = ""
    other_phrases: str = ""
    region_store: Path | None = None
    encoder: str = ""
    crops: str = "1x"
    batch: int = 0
    device: str = "auto"


@dataclass(frozen=True)
class LabellingReport:
    """What was done.

    Attributes:
        done: images that this process has looked at in this run.
        seconds: from the first image to the last; loading the model is not counted.
        labels: (image, label) pairs that were to be found; 0 with "objects".
        images: images in the file.
        boxes: boxes in the file.
        labels_without_box: pairs for which nothing was found.
        unreadable: files that this process could not read; they are not in the label file.
        regions: rows of the region store that this process has built; None: there is none.
    """

    done: int
    seconds: float
    labels: int
    images: int
    boxes: int
    labels_without_box: int
    unreadable: tuple[str, ...] = ()
    regions: int | None = None


def pseudo_label(
    settings: LabellingSettings,
    on_image: OnImage | None = None,
    on_region_image: OnImage | None = None,
) -> LabellingReport:
    """Finds boxes for images; goes on where an interrupted run stopped. Under ``torchrun`` the
    processes share the images.

    Args:
        settings: see :class:`LabellingSettings`.
        on_image: told (images done, images in all) of this process's share, once before the first
            image, with those of earlier runs, then after each.
        on_region_image: the same for the region store.

    Raises:
        OVDError: bad settings, or a run that was begun with others.
    """
    _check(settings)
    check_output("--out", settings.out)
    if settings.region_store:
        check_output_folder("--region-store", settings.region_store)
    namespace = argparse.Namespace(num_gpus=0, num_machines=1)
    return launch(lambda _: _in_process(settings, on_image, on_region_image), namespace)


def _check(settings: LabellingSettings) -> None:
    if settings.boxes not in TOPK:
        raise OVDError(f"--boxes {settings.boxes}: use labels or objects")
    if settings.boxes == "labels" and settings.queries:
        raise OVDError("--queries are for --boxes objects; labels are asked for by their names")
    if settings.boxes == "objects" and settings.labels:
        raise OVDError("--labels are for --boxes labels; objects have none")
    if settings.topk < 0:
        raise OVDError(f"--topk {settings.topk}: keep at least one box")
    if settings.config_file and not settings.detector.startswith("model:"):
        raise OVDError("--config-file is for --detector model:CHECKPOINT")
    if settings.region_store and not settings.encoder:
        raise OVDError("--region-store needs --encoder, an image-text model")
    if settings.region_store and settings.crops not in CROP_RULES:
        raise OVDError(f"--crops {settings.crops}: use {' or '.join(CROP_RULES)}")


def _in_process(
    settings: LabellingSettings, on_image: OnImage | None, on_region_image: OnImage | None
) -> LabellingReport:
    """In every process."""
    device = process_device(settings.device)
    records = load_images(settings.dataset, settings.images)
    if settings.boxes == "objects":
        vocabulary, categories, labels = None, [OBJECT_CATEGORY], None
    else:
        vocabulary, ids = load_vocabulary(settings.vocabulary, settings.dataset)
        names = zip(ids, vocabulary.names)
        categories = [{"id": number, "name": name} for number, name in names]
        labels = _read_labels(settings, records, vocabulary)
    proposer = build_label_proposer(
        settings.detector,
        vocabulary,
        [c["id"] for c in categories],
        queries=settings.queries,
        config_file=settings.config_file,
        batch=settings.batch,
        device=device,
    )
    facts = _facts(settings, records, vocabulary, labels, proposer.name)
    todo = [r for r in records if labels is None or r["image_id"] in labels]
    done, seconds, unreadable = 0, 0.0, ()
    if not _is_finished(settings.out, facts):
        with journal.nothing_empty_left(settings.out, alone=comm.get_world_size() == 1):
            done, seconds, unreadable = _find_boxes(
                settings, todo, labels, proposer, facts, on_image
            )
        if comm.is_main_process():
            _merge(settings.out, facts, todo, categories)
        wait_for_all()
    content = read_label_file(settings.out)
    regions = None
    if settings.region_store:
        regions = _build_regions(settings, records, device, on_region_image)
    return LabellingReport(
        done,
        seconds,
        sum(len(classes) for classes in labels.values()) if labels else 0,
        len(content["images"]),
        len(content["annotations"]),
        content["info"]["labels_without_box"],
        unreadable,
        regions,
    )


def _read_labels(settings: LabellingSettings, records: Records, vocabulary: Vocabulary) -> Labels:
    other = Vocabulary.load(settings.other_phrases).names if settings.other_phrases else ()
    reader = LabelReader(
        records,
        vocabulary,
        dataset=settings.dataset,
        folder=settings.images,
        other_phrases=other,
        folder_names=settings.folder_names,
    )
    return reader.read(settings.labels)


def _facts(
    settings: LabellingSettings,
    records: Records,
    vocabulary: Vocabulary | None,
    labels: Labels | None,
    detector: str,
) -> dict[str, Any]:
    """What the label file says about itself, and what an interrupted run must agree with."""
    objects = settings.boxes == "objects"
    facts = {
        "kind": OBJECTS_KIND if objects else LABELS_KIND,
        "version": ovd_d2.__version__,
        "detector": detector,
        "labels": settings.labels,
        "min_score": settings.min_score,
        "topk": settings.topk or TOPK[settings.boxes],
        "dataset": settings.dataset,
        "vocabulary": vocabulary.fingerprint[:16] if vocabulary else "",
        "images_and_labels": fingerprint(records, labels),
    }
    if objects and settings.detector.startswith("hf:"):
        facts["queries"] = list(settings.queries or OBJECT_QUERIES)
    return facts


def _is_finished(out: Path, facts: dict[str, Any]) -> bool:
    """Whether ``out`` is there already.

    Raises:
        OVDError: it was made with other settings, or is another file.
    """
    if not out.exists():
        return False
    journal.check_same(facts, read_label_file(out)["info"], str(out))
    return True


def _find_boxes(
    settings: LabellingSettings,
    todo: Records,
    labels: Labels | None,
    proposer: BoxProposer,
    facts: dict[str, Any],
    on_image: OnImage | None,
) -> tuple[int, float, tuple[str, ...]]:
    """Images done of this process's share in this run, seconds, unreadable files."""
    folder = journal.parts_folder(settings.out)
    if comm.is_main_process():
        journal.prepare(folder, facts)
    wait_for_all()
    rank, world_size = comm.get_rank(), comm.get_world_size()
    known = {one.image_id for one in journal.finished(folder)}
    share = todo[rank::world_size]
    left = [record for record in share if record["image_id"] not in known]
    topk = settings.topk or TOPK[settings.boxes]
    unreadable: list[str] = []
    tell = on_image or (lambda done, of: None)
    tell(len(share) - len(left), len(share))
    images, start = 0, time.perf_counter()
    with journal.Journal(folder, rank) as part:
        pictures = read_ahead(left, unreadable, len(share), MAX_UNREADABLE * len(share))
        for record, image in pictures:
            classes = None if labels is None else labels[record["image_id"]]
            found, size = proposer(record, image, classes), tuple(image.shape[1:])
            if labels is None:
                chosen = [choose_objects(found, size, topk, settings.min_score)]
            else:
                chosen = [choose_for_label(f, size, topk, settings.min_score) for f in found]
            part.append(
                labelled_image(
                    record["image_id"], image, (0,) if classes is None else classes, chosen
                )
            )
            images += 1
            tell(len(share) - len(left) + images + len(unreadable), len(share))
    seconds = time.perf_counter() - start
    wait_for_all()
    return images, seconds, tuple(unreadable)


def _merge(
    out: Path, facts: dict[str, Any], todo: Records, categories: Sequence[dict[str, Any]]
) -> None:
    """The label file out of all parts, in the order of the images."""
    folder = journal.parts_folder(out)
    found = {one.image_id: one for one in journal.finished(folder)}
    names = {record["image_id"]: record["file_name"] for record in todo}
    ordered = [found[image_id] for image_id in names if image_id in found]
    write_label_file(out, facts, names, ordered, categories)
    journal.remove(folder)


def _build_regions(
    settings: LabellingSettings, records: Records, device: str, on_image: OnImage | None
) -> int:
    """The region store of the boxes in the label file, for the data set or, of a folder of images,
    for those in the file ("labels:FILE")."""
    content = read_label_file(settings.out)
    name = settings.dataset
    if not name:
        name = f"labels:{os.fspath(settings.out)}"
        kept = {image["id"] for image in content["images"]}
        records = [record for record in records if record["image_id"] in kept]
    topk = max(1, len(content["annotations"]))  # all boxes of an image
    image_ids = [record["image_id"] for record in records]
    proposals = ResultsFile(
        os.fspath(settings.out), f"--out {settings.out}", image_ids=image_ids, topk=topk
    )
    batch = CPU_BATCH if device == "cpu" else GPU_BATCH
    model = build_image_text_model(settings.encoder, device)
    report = write_regions(
        records,
        name,
        proposals,
        CropRegionEncoder(model, CROP_RULES[settings.crops], batch),
        settings.region_store,
        rank=comm.get_rank(),
        world_size=comm.get_world_size(),
        on_image=on_image,
    )
    wait_for_all()
    if comm.get_world_size() > 1 and comm.is_main_process():
        merge_manifests(settings.region_store)
    wait_for_all()
    return report.regions
