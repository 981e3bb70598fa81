"""Pseudo-labelling: boxes for images of which labels or captions are known, or of objects.

Letters: K classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.utils import comm
from torch import Tensor

import ovd_d2
from ovd_d2.errors import OVDError
from ovd_d2.files.atomic import check_output
from ovd_d2.jobs.journalled_images import Share, label_images
from ovd_d2.jobs.processes import OnImage, in_processes, process_device, wait_for_all
from ovd_d2.language import Vocabulary
from ovd_d2.proposals.build import build_label_proposer
from ovd_d2.proposals.proposer import BoxProposer
from ovd_d2.pseudo_labelling import (
    LABELS_KIND,
    OBJECT_CATEGORY,
    OBJECTS_KIND,
    Found,
    LabelledImage,
    choose_best,
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
        queries: what "hf:" or a MAVL is asked for "objects"; empty: RKD's four.
        topk: boxes per label, or per image with "objects"; 0: 1 and 5.
        min_score: boxes that score no more are left out; None keeps all.
        config_file: yaml for "model:"; "": the config.yaml beside the weights.
        folder_names: json {folder: name} for the labels "folders".
        other_phrases: see :class:`CaptionLabeller`; of ``Vocabulary.load``, "" for none.
        batch: queries at once through "hf:"; 0: 4 on a CPU, 16 on a GPU.
        device: "cpu", "cuda", ...; "auto": this process's GPU if there is one.

    Raises:
        OVDError: values that do not go together.
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
    batch: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.boxes not in TOPK:
            raise OVDError(f"--boxes {self.boxes}: use labels or objects")
        if self.boxes == "labels" and self.queries:
            raise OVDError("--queries are for --boxes objects; labels are asked for by their names")
        if self.boxes == "objects" and self.labels:
            raise OVDError("--labels are for --boxes labels; objects have none")
        if self.topk < 0:
            raise OVDError(f"--topk {self.topk}: keep at least one box")
        if self.config_file and not self.detector.startswith("model:"):
            raise OVDError("--config-file is for --detector model:CHECKPOINT")


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
    """

    done: int
    seconds: float
    labels: int
    images: int
    boxes: int
    labels_without_box: int
    unreadable: tuple[str, ...] = ()


def pseudo_label(settings: LabellingSettings, on_image: OnImage | None = None) -> LabellingReport:
    """Finds boxes for images; goes on where an interrupted run stopped. Under ``torchrun`` the
    processes share the images.

    Args:
        settings: see :class:`LabellingSettings`.
        on_image: is told what is done.

    Raises:
        OVDError: bad settings, or a run that was begun with others.
    """
    return in_processes(lambda: _open(settings).run(on_image))


def _open(settings: LabellingSettings) -> "Labelling":
    """All parts of the job; nothing else reads the settings, and nothing is written."""
    check_output("--out", settings.out)
    device = process_device(settings.device)
    records = load_images(settings.dataset, settings.images)
    objects = settings.boxes == "objects"
    vocabulary, labels, categories = None, None, [OBJECT_CATEGORY]
    if not objects:
        vocabulary, ids = load_vocabulary(settings.vocabulary, settings.dataset)
        categories = [{"id": k, "name": name} for k, name in zip(ids, vocabulary.names)]
        other = settings.other_phrases
        reader = LabelReader(
            records,
            vocabulary,
            dataset=settings.dataset,
            folder=settings.images,
            other_phrases=Vocabulary.load(other).names if other else (),
            folder_names=settings.folder_names,
        )
        labels = reader.read(settings.labels)
    proposer = build_label_proposer(
        settings.detector,
        vocabulary,
        [category["id"] for category in categories],
        queries=settings.queries,
        config_file=settings.config_file,
        batch=settings.batch,
        device=device,
    )
    topk = settings.topk or TOPK[settings.boxes]
    facts = {
        "kind": OBJECTS_KIND if objects else LABELS_KIND,
        "version": ovd_d2.__version__,
        "detector": proposer.name,
        "labels": settings.labels,
        "min_score": settings.min_score,
        "topk": topk,
        "dataset": settings.dataset,
        "vocabulary": vocabulary.fingerprint[:16] if vocabulary else "",
        "images_and_labels": fingerprint(records, labels),
    }
    if objects and hasattr(proposer, "queries"):
        facts["queries"] = list(proposer.queries)
    choose = _choice(proposer, objects, topk, settings.min_score)
    return Labelling(settings.out, facts, categories, records, labels, proposer, choose)


def _choice(
    proposer: BoxProposer, objects: bool, topk: int, least: float | None
) -> Callable[[list[Found], tuple[int, int]], list[Found]]:
    """What keeps ``topk`` boxes of each label or of all objects, those that score above
    ``least``."""
    if not objects:
        return lambda found, size: [choose_for_label(one, size, topk, least) for one in found]
    if getattr(proposer, "is_merged", False):
        return lambda found, size: [choose_best(one, size, topk, least) for one in found]
    return lambda found, size: [choose_objects(found, size, topk, least)]


@dataclass(frozen=True)
class Labelling:
    """A labelling job, ready to run.

    Attributes:
        out: the label file.
        facts: what it says about itself, and what an interrupted run must agree with.
        categories: of the K classes, in their order.
        records: of the images, in Detectron2's dataset format.
        labels: classes of the images; None: objects are wanted, of the first category.
        proposer: of the boxes.
        choose: (what the proposer found, (height, width)) -> the boxes to keep, per label.
    """

    out: Path
    facts: dict[str, Any]
    categories: Sequence[dict[str, Any]]
    records: Records
    labels: Labels | None
    proposer: BoxProposer
    choose: Callable[[list[Found], tuple[int, int]], list[Found]]

    def run(self, on_image: OnImage | None = None) -> LabellingReport:
        """Labels the images that are left, and writes the file when all are done."""
        share = Share()
        todo = [r for r in self.records if self.labels is None or r["image_id"] in self.labels]
        if self.out.exists():
            journal.check_same(self.facts, read_label_file(self.out)["info"], str(self.out))
        else:
            share = label_images(self.out, self.facts, todo, self._label, on_image)
            if comm.is_main_process():
                self._merge(todo)
            wait_for_all()
        content = read_label_file(self.out)
        return LabellingReport(
            share.done,
            share.seconds,
            sum(map(len, (self.labels or {}).values())),
            len(content["images"]),
            len(content["annotations"]),
            content["info"]["labels_without_box"],
            share.unreadable,
        )

    def _label(self, record: dict[str, Any], image: Tensor) -> LabelledImage:
        """The boxes of an image, (3, H, W) uint8 RGB."""
        image_id = record["image_id"]
        classes = None if self.labels is None else self.labels[image_id]
        chosen = self.choose(self.proposer(record, image, classes), tuple(image.shape[1:]))
        return labelled_image(image_id, image, classes or (0,), chosen)

    def _merge(self, todo: Records) -> None:
        """The label file out of all parts, in the order of the images."""
        folder = journal.parts_folder(self.out)
        found = {one.image_id: one for one in journal.finished(folder)}
        names = {record["image_id"]: record["file_name"] for record in todo}
        ordered = [found[image_id] for image_id in names if image_id in found]
        write_label_file(self.out, self.facts, names, ordered, self.categories)
        journal.remove(folder)
