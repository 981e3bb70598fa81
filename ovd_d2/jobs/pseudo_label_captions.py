"""Self-training of GLIP (Li et al. 2022, section 3.3): a teacher grounds the noun phrases of web
captions, and its boxes become grounding data for the student.

Letters: P phrases of a caption.
"""

import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from detectron2.structures import BoxMode
from detectron2.utils import comm
from torch import Tensor

import ovd_d2
from ovd_d2.data.datasets.annotation_files import read_json
from ovd_d2.data.datasets.grounding import KIND, write_grounding_json
from ovd_d2.errors import OVDError
from ovd_d2.files.atomic import check_output
from ovd_d2.jobs.journalled_images import Share, label_images
from ovd_d2.jobs.processes import OnImage, in_processes, process_device, wait_for_all
from ovd_d2.language.noun_phrases import AUTO, NounPhrases, chosen_way, noun_phrase_finder
from ovd_d2.proposals.phrase_grounders import PhraseGrounder, build_phrase_grounder
from ovd_d2.pseudo_labelling import LabelledImage, choose_for_phrase, journal, labelled_image
from ovd_d2.pseudo_labelling.captioned_images import load_captioned_images
from ovd_d2.pseudo_labelling.label_file import common_folder
from ovd_d2.pseudo_labelling.label_sources import Records, fingerprint
from ovd_d2.structures import TokenSpans


@dataclass(frozen=True)
class CaptionLabellingSettings:
    """What to ground, and how.

    Attributes:
        out: the grounding json; an interrupted run is gone on with.
        detector: the teacher, "model:CHECKPOINT" (a GLIP, DetCLIP or MAVL) or "hf:MODEL".
        dataset: image-text pairs, "pairs:PATH", or a registered data set with captions.
        score_threshold: boxes that score less are left out, 0..1.
        min_boxes: images with fewer boxes are left out.
        noun_phrases: see :func:`noun_phrase_finder`.
        config_file: yaml for "model:"; "": the config.yaml beside the weights.
        batch: phrases at once through "hf:"; 0: 4 on a CPU, 16 on a GPU.
        device: "cpu", "cuda", ...; "auto": this process's GPU if there is one.

    Raises:
        OVDError: a value that cannot be meant.
    """

    out: Path
    detector: str
    dataset: str
    score_threshold: float = 0.5
    min_boxes: int = 1
    noun_phrases: str = AUTO
    config_file: str = ""
    batch: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        least = self.score_threshold
        if not (math.isfinite(least) and 0 <= least <= 1):
            raise OVDError(f"--score-threshold {least}: give a score from 0 to 1")
        if self.min_boxes < 0:
            raise OVDError(f"--min-boxes {self.min_boxes}: give 0 or more")
        if self.config_file and not self.detector.startswith("model:"):
            raise OVDError("--config-file is for --detector model:CHECKPOINT")


@dataclass(frozen=True)
class GroundedCounts:
    """What became of all captions; the ``info`` of the file has the same entries.

    Attributes:
        captions: images that could be read, a caption each.
        captions_without_phrase: those in whose caption there is no noun phrase.
        phrases: noun phrases that were looked for.
        phrases_without_box: those that the teacher did not find.
        images_left_out: images with fewer boxes than asked for.
    """

    captions: int
    captions_without_phrase: int
    phrases: int
    phrases_without_box: int
    images_left_out: int


@dataclass(frozen=True)
class CaptionLabellingReport:
    """What was done.

    Attributes:
        done: images that this process has looked at in this run.
        seconds: from the first image to the last; loading the model is not counted.
        images: images in the file.
        boxes: boxes in the file.
        counts: see :class:`GroundedCounts`.
        unreadable: files that this process could not read; they are not in the file.
    """

    done: int
    seconds: float
    images: int
    boxes: int
    counts: GroundedCounts
    unreadable: tuple[str, ...] = ()


def pseudo_label_captions(
    settings: CaptionLabellingSettings, on_image: OnImage | None = None
) -> CaptionLabellingReport:
    """Finds the boxes of captions' noun phrases; goes on where an interrupted run stopped. Under
    ``torchrun`` the processes share the images.

    Args:
        settings: see :class:`CaptionLabellingSettings`.
        on_image: is told what is done.

    Raises:
        OVDError: bad settings, or a run that was begun with others.
    """
    return in_processes(lambda: _open(settings).run(on_image))


def _open(settings: CaptionLabellingSettings) -> "CaptionLabelling":
    """All parts of the job; nothing else reads the settings, and nothing is written."""
    check_output("--out", settings.out)
    device = process_device(settings.device)
    records = load_captioned_images(settings.dataset)
    find_phrases = noun_phrase_finder(settings.noun_phrases)
    grounder = build_phrase_grounder(
        settings.detector,
        settings.score_threshold,
        config_file=settings.config_file,
        batch=settings.batch,
        device=device,
    )
    captions = {record["image_id"]: (record["caption"],) for record in records}
    facts = {
        "kind": KIND,
        "version": ovd_d2.__version__,
        "detector": grounder.name,
        "dataset": settings.dataset,
        "score_threshold": settings.score_threshold,
        "min_boxes": settings.min_boxes,
        "noun_phrases": chosen_way(settings.noun_phrases),
        "images_and_captions": fingerprint(records, captions),
    }
    return CaptionLabelling(settings.out, facts, records, find_phrases, grounder)


@dataclass(frozen=True)
class CaptionLabelling:
    """A job that grounds captions, ready to run.

    Attributes:
        out: the grounding json.
        facts: what it says about itself, ``score_threshold`` and ``min_boxes`` among it, and what
            an interrupted run must agree with.
        records: of the images, in Detectron2's dataset format with ``caption``, a text.
        find_phrases: finds the noun phrases of a caption.
        grounder: finds their boxes.
    """

    out: Path
    facts: dict[str, Any]
    records: Records
    find_phrases: NounPhrases
    grounder: PhraseGrounder

    def run(self, on_image: OnImage | None = None) -> CaptionLabellingReport:
        """Grounds the captions that are left, and writes the file when all are done."""
        share = Share()
        if self.out.exists():
            journal.check_same(self.facts, _read(self.out)["info"], str(self.out))
        else:
            share = label_images(self.out, self.facts, self.records, self._label, on_image)
            if comm.is_main_process():
                self._merge()
            wait_for_all()
        content = _read(self.out)
        counts = {name: content["info"][name] for name in GroundedCounts.__annotations__}
        return CaptionLabellingReport(
            share.done,
            share.seconds,
            len(content["images"]),
            len(content["annotations"]),
            GroundedCounts(**counts),
            share.unreadable,
        )

    def _label(self, record: dict[str, Any], image: Tensor) -> LabelledImage:
        """The boxes of an image, (3, H, W) uint8 RGB; classes are the numbers of its phrases."""
        phrases = self.find_phrases(record["caption"])
        caption = TokenSpans(record["caption"], tuple((phrase,) for phrase in phrases))
        found = self.grounder(image, caption) if phrases else []
        least, size = self.facts["score_threshold"], tuple(image.shape[1:])
        chosen = [choose_for_phrase(one, size, least) for one in found]
        return labelled_image(record["image_id"], image, range(len(phrases)), chosen, phrases)

    def _merge(self) -> None:
        """The grounding json out of all parts, in the order of the images."""
        folder = journal.parts_folder(self.out)
        found = {one.image_id: one for one in journal.finished(folder)}
        pairs = [(r, found[r["image_id"]]) for r in self.records if r["image_id"] in found]
        kept = [pair for pair in pairs if len(pair[1].boxes) >= self.facts["min_boxes"]]
        counts = GroundedCounts(
            captions=len(pairs),
            captions_without_phrase=sum(not one.phrases for _, one in pairs),
            phrases=sum(len(one.phrases) for _, one in pairs),
            phrases_without_box=sum(one.without_box for _, one in pairs),
            images_left_out=len(pairs) - len(kept),
        )
        write_grounding_json(
            self.out,
            [_grounded(*pair) for pair in kept],
            common_folder(record["file_name"] for record in self.records),
            {**self.facts, **asdict(counts)},
        )
        journal.remove(folder)


def _grounded(record: dict[str, Any], one: LabelledImage) -> dict[str, Any]:
    """The record of an image with its boxes, as ``write_grounding_json`` takes it."""
    return {
        "file_name": record["file_name"],
        "image_id": one.image_id,
        "height": one.height,
        "width": one.width,
        "caption": TokenSpans(record["caption"], tuple((phrase,) for phrase in one.phrases)),
        "annotations": [
            {"bbox": box, "bbox_mode": BoxMode.XYWH_ABS, "category_id": phrase, "score": score}
            for phrase, box, score in one.boxes
        ],
    }


def _read(path: str | os.PathLike) -> dict[str, Any]:
    """The content of a json that this job wrote.

    Raises:
        OVDError: unreadable, or another kind of json.
    """
    try:
        content = read_json(path)
        kind = content["info"]["kind"]
        if kind != KIND or "captions_without_phrase" not in content["info"]:
            raise ValueError(f"its kind is {kind!r}")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise OVDError(
            f"{path} is no file of `ovd pseudo-label --task grounding` ({error}); name another, or "
            "remove it"
        ) from error
    return content
