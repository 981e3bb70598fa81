"""Builds the region store of a label file's boxes."""

import os
from dataclasses import dataclass
from pathlib import Path

from ovd_d2.errors import OVDError
from ovd_d2.files.atomic import check_output_folder
from ovd_d2.jobs.build_region_store import (
    BuildReport,
    check_crops,
    crop_encoder,
    write_and_merge,
)
from ovd_d2.jobs.processes import OnImage, in_processes, process_device
from ovd_d2.proposals.results_file import ResultsFile
from ovd_d2.pseudo_labelling import read_label_file
from ovd_d2.pseudo_labelling.label_sources import load_images


@dataclass(frozen=True)
class LabelStoreSettings:
    """What to build.

    Attributes:
        labels: a label file; it need not be there before the job begins.
        encoder: of ``build_image_text_model``.
        out: folder of the store; an interrupted build is gone on with.
        crops: "1x" or "1x+1.5x".
        device: "cpu", "cuda", ...; "auto": this process's GPU if there is one.

    Raises:
        OVDError: no encoder, unknown crops, or a folder that cannot be made.
    """

    labels: Path
    encoder: str
    out: Path
    crops: str = "1x"
    device: str = "auto"

    def __post_init__(self) -> None:
        if not self.encoder:
            raise OVDError("--region-store needs --encoder, an image-text model")
        check_crops(self.crops)
        check_output_folder("--region-store", self.out)


def build_store_of_labels(
    settings: LabelStoreSettings, on_image: OnImage | None = None
) -> BuildReport:
    """Builds the region store of all boxes in a label file or goes on with one; under ``torchrun``
    the processes share the images.

    The store is of the data set that the file names, all of its images included; of a file about a
    folder of images it is of the images in the file, under the name "labels:FILE".

    Args:
        settings: see :class:`LabelStoreSettings`.
        on_image: is told what is done.

    Returns:
        what this process did.

    Raises:
        OVDError: no label file, a store made from something else, or too many unreadable images.
    """
    return in_processes(lambda: _build(settings, on_image))


def _build(settings: LabelStoreSettings, on_image: OnImage | None) -> BuildReport:
    file = os.fspath(settings.labels)
    content = read_label_file(file)
    name = content["info"].get("dataset")
    if name:
        records = load_images(name, "")
    else:
        name, root = f"labels:{file}", content["info"]["image_root"]
        records = [
            {"image_id": image["id"], "file_name": os.path.join(root, image["file_name"])}
            for image in content["images"]
        ]
    proposer = ResultsFile(
        file,
        f"--out {file}",
        image_ids=[record["image_id"] for record in records],
        topk=max(1, len(content["annotations"])),  # all boxes of an image
    )
    encoder = crop_encoder(settings.encoder, settings.crops, process_device(settings.device))
    return write_and_merge(records, name, proposer, encoder, settings.out, on_image=on_image)
