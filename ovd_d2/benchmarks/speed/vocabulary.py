"""Detectors with vocabularies of any size: seconds per image, and memory.

Letters: K classes of the vocabulary, H x W image.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from detectron2.config import CfgNode

from ovd_d2.benchmarks.speed.vocabulary_detclip import detclip_subjects
from ovd_d2.benchmarks.speed.vocabulary_glip import glip_subjects
from ovd_d2.benchmarks.speed.vocabulary_ways import Cell, Subject, class_names, measure_way
from ovd_d2.errors import OVDError

# MODEL.META_ARCHITECTURE -> what of it is measured: (cfg, full) -> subjects.
SUBJECTS: dict[str, Callable[[CfgNode, bool], Sequence[Subject]]] = {
    "GLIP": glip_subjects,
    "DetCLIP": detclip_subjects,
}


def measure_vocabulary(
    configs: Sequence[CfgNode],
    num_classes: Sequence[int],
    *,
    size: tuple[int, int] = (480, 640),
    repeats: int = 3,
    full: bool = False,
    progress: Callable[[str], None] = lambda text: None,
) -> Iterator[Cell]:
    """Detects the classes of each vocabulary in one image of noise, by random weights.

    Args:
        configs: of a GLIP, which is compared with its whole model run again for every caption of 40
            names, or of a DetCLIP, which is compared with itself and 80 names. The vocabulary and
            the number of detections are set in here.
        num_classes: the Ks; up to 1203 names of LVIS, then of ImageNet-21K.
        size: H, W.
        repeats: timed runs of our side, each between two of what it is compared with, after a
            first one; fewer where the runs of a side take longer than 20 seconds together.
        full: run the whole GLIP on all captions, not on three; and GLIP with deep fusion also for
            more than 5000 names.
        progress: told what is being measured.

    Yields:
        A cell for each K and way, in the order of ``num_classes``, then of the configs.

    Raises:
        OVDError: a number below 1, a model of another kind, or more than 1203 classes without timm.
    """
    if min([repeats, *size, *num_classes], default=0) < 1:
        raise OVDError("Numbers of classes, pixels and repeats have to be 1 or more.")
    for cfg in configs:
        if cfg.MODEL.META_ARCHITECTURE not in SUBJECTS:
            raise OVDError(
                f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE}; give the config of a "
                "GLIP, such as configs/glip/glip_t_b.yaml, or of a DetCLIP."
            )
    vocabularies = [class_names(K) for K in num_classes]
    pixels = torch.randint(0, 256, (3, *size), generator=torch.Generator().manual_seed(0))
    progress("builds the models")
    subjects = [
        subject for cfg in configs for subject in SUBJECTS[cfg.MODEL.META_ARCHITECTURE](cfg, full)
    ]
    for names in vocabularies:
        for subject in subjects:
            image = pixels.to(subject.device, torch.float32)
            for way in subject.ways(image, names):
                progress(f"{len(names)} classes: {way.model}, {way.name}")
                yield measure_way(way, len(names), repeats, subject.device)
