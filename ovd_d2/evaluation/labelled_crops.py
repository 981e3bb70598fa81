"""Labelled images for image-text models: loading, encoding, naming them zero-shot.

Letters: N crops, K classes, D embedding width, F feature width.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from torch import Tensor
from tqdm import tqdm

from ovd_d2.data.build import check_registered, dataset_errors
from ovd_d2.data.mappers.image_text_pairs import ImageTextPairMapper
from ovd_d2.errors import OVDError
from ovd_d2.evaluation.zero_shot_classification import ZeroShotClassificationEvaluator
from ovd_d2.files.images import SUFFIXES
from ovd_d2.language import TextEmbeddingBank, Vocabulary

_PROGRESS_AFTER = 5.0  # seconds


@dataclass(frozen=True)
class LabelledCrops:
    """N images, or boxes in images, and what is on them.

    Attributes:
        name: of the data set or folder.
        records: N dicts with ``file_name``, ``label`` (0..K-1) and maybe ``box``.
        vocabulary: the K classes.
        is_novel: (K,) bools, or None where there is no such split.
    """

    name: str
    records: list[dict[str, Any]]
    vocabulary: Vocabulary
    is_novel: Sequence[bool] | None = None

    @property
    def labels(self) -> Tensor:
        """(N,) int64."""
        return torch.tensor([record["label"] for record in self.records])


def load_labelled_crops(source: str) -> LabelledCrops:
    """A registered data set of labelled crops, or a folder with one sub-folder per class.

    Raises:
        OVDError: neither, or no labelled image in it.
    """
    if source not in DatasetCatalog.list() and Path(source).is_dir():
        return _from_folder(Path(source))
    check_registered("The data set of labelled images", [source])
    with dataset_errors("The data set", [source]):
        records = DatasetCatalog.get(source)
    if not records or "label" not in records[0]:
        raise OVDError(
            f"{source} has no labelled images; name a data set such as mini_v1_objects_val, or a "
            "folder with one sub-folder per class."
        )
    return LabelledCrops(
        name=source,
        records=records,
        vocabulary=Vocabulary.load(f"dataset:{source}"),
        is_novel=MetadataCatalog.get(source).get("is_novel"),
    )


def _from_folder(folder: Path) -> LabelledCrops:
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir())
    records = [
        {"file_name": str(path), "label": label}
        for label, name in enumerate(classes)
        for path in sorted((folder / name).rglob("*"))
        if path.suffix.lower() in SUFFIXES
    ]
    if not records:
        raise OVDError(f"{folder} holds no image; it needs one sub-folder per class with images.")
    return LabelledCrops(str(folder), records, Vocabulary(tuple(classes)))


def encode_crops(
    encode: Callable[[Tensor], Tensor],
    preprocessing: Callable[[Tensor], Tensor],
    crops: LabelledCrops,
    *,
    crop_scale: float = 1.0,
    batch: int = 64,
) -> Tensor:
    """(N, D) or (N, F) fp32: what ``encode`` gives for every crop.

    Args:
        encode: (n, 3, S, S) fp32 preprocessed -> (n, D or F).
        preprocessing: (n, 3, H, W) uint8 RGB -> (n, 3, S, S) fp32.
        crops: the images.
        crop_scale: sides of the crop over the sides of the box.
        batch: images encoded at a time.

    Raises:
        OVDError: an image cannot be read.
    """
    mapper = ImageTextPairMapper(False, image_size=0)
    rows = []
    for chunk in _chunks(crops, batch):
        images = [mapper(_scaled(record, crop_scale))["image"] for record in chunk]
        pixels = torch.cat([preprocessing(image[None]) for image in images])
        rows.append(encode(pixels).float().cpu())
    return torch.cat(rows)


def _chunks(crops: LabelledCrops, size: int) -> Iterator[list[dict[str, Any]]]:
    total = len(crops.records)
    with tqdm(total=total, desc=crops.name, unit="image", delay=_PROGRESS_AFTER) as bar:
        for start in range(0, total, size):
            chunk = crops.records[start : start + size]
            yield chunk
            bar.update(len(chunk))


def _scaled(record: dict[str, Any], scale: float) -> dict[str, Any]:
    if scale == 1.0 or "box" not in record:
        return record
    x0, y0, x1, y1 = record["box"]
    dx, dy = (x1 - x0) * (scale - 1) / 2, (y1 - y0) * (scale - 1) / 2
    return {**record, "box": (x0 - dx, y0 - dy, x1 + dx, y1 + dy)}


def name_crops(
    embeddings: Tensor, crops: LabelledCrops, bank: TextEmbeddingBank
) -> dict[str, float]:
    """Zero-shot accuracy of image embeddings.

    Args:
        embeddings: (N, D).
        crops: the images they are of.
        bank: embeds the class names with the text side of the same model.

    Returns:
        the metrics of ``ZeroShotClassificationEvaluator`` in percent, two decimals.
    """
    evaluator = ZeroShotClassificationEvaluator(
        crops.vocabulary.names,
        class_embeddings=bank.embed(crops.vocabulary).embeddings,
        is_novel=crops.is_novel,
        distributed=False,
    )
    evaluator.process(crops.records, [{"image_embedding": row} for row in embeddings])
    return {key: round(value, 2) for key, value in evaluator.evaluate()["classification"].items()}
