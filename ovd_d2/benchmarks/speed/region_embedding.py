"""Building a region store against the usual way to embed regions: one crop at a time through PIL.

Letters: N images, R regions per image, D embedding width.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ovd_d2.encoders import CropRegionEncoder, ImageTextModel
from ovd_d2.encoders.crop_resampling import crop_pixels, resample_crops
from ovd_d2.encoders.openai_clip import OpenAIClipTextEncoder, import_clip
from ovd_d2.errors import OVDError
from ovd_d2.jobs.build_region_store import CPU_BATCH, GPU_BATCH, write_regions
from ovd_d2.proposals.results_file import ResultsFile
from ovd_d2.region_store import RegionStore

IMAGE_SIZE = (480, 640)  # height and width, as COCO's images
SIDES = ("ours", "usual")


@dataclass
class RegionBenchmark:
    """Both sides on one device, in turn.

    Attributes:
        device: its name.
        images: N.
        regions: R.
        batch: crops that our side sends through the tower at once.
        build: seconds of each run by side: from image files to embeddings.
        preprocessing: seconds of each run by side: from decoded images to normalised crops on the
            device.
        cosine: the smallest between the two sides' embeddings of a region.
    """

    device: str
    images: int
    regions: int
    batch: int
    build: dict[str, list[float]] = field(default_factory=dict)
    preprocessing: dict[str, list[float]] = field(default_factory=dict)
    cosine: float = 0.0

    def per_second(self, what: str, side: str) -> float:
        """Regions per second of a side, by the median run; ``what`` is "build" or
        "preprocessing"."""
        return self.images * self.regions / statistics.median(getattr(self, what)[side])

    def times_faster(self, what: str) -> float:
        """Median over the pairs of runs of the usual way's time by ours."""
        runs = getattr(self, what)
        return statistics.median(u / o for o, u in zip(runs["ours"], runs["usual"]))


def random_vit_b32(device: str = "cpu") -> ImageTextModel:
    """CLIP's ViT-B/32 with random weights, which cost as much as trained ones.

    Its text tower, which no region needs, has one layer instead of twelve.

    Raises:
        OVDError: package openai-clip is missing.
    """
    from ovd_d2.encoders import ImagePreprocessing

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = import_clip().model.CLIP(
            embed_dim=512, image_resolution=224, vision_layers=12, vision_width=768,
            vision_patch_size=32, context_length=77, vocab_size=49408, transformer_width=512,
            transformer_heads=8, transformer_layers=1,
        )  # fmt: skip
    model = model.float().eval().requires_grad_(False).to(device)
    encoder = OpenAIClipTextEncoder(model, "random ViT-B/32")
    return ImageTextModel(encoder, model.encode_image, ImagePreprocessing(224), device)


def measure_regions(
    model: ImageTextModel,
    *,
    images: int = 4,
    regions: int = 32,
    batch: int = 0,
    repeats: int = 3,
    progress: Callable[[str], None] = lambda text: None,
) -> RegionBenchmark:
    """Embeds the same boxes of the same JPEG files both ways, with the same model.

    Ours is what ``ovd regions build --crops 1x`` runs: boxes from a json file, the store's files
    written and flushed. The usual way, as published code for RKD does it: open with PIL, and for
    each box crop, CLIP's own transform, a batch of one; nothing is written. Both keep fp32.

    Args:
        model: whose preprocessing is CLIP's.
        images: N.
        regions: R.
        batch: crops at once on our side; 0: as ``ovd regions build`` would.
        repeats: timed runs of each side, in turn, after one that is not counted.
        progress: told what is being measured.

    Raises:
        OVDError: a number below 1.
    """
    if min(images, regions, repeats) < 1 or batch < 0:
        raise OVDError("Numbers of images, regions and repeats have to be 1 or more.")
    batch = batch or (CPU_BATCH if model.device == "cpu" else GPU_BATCH)
    result = RegionBenchmark(model.device, images, regions, batch)
    encoder = CropRegionEncoder(model, (1.0,), batch)
    with tempfile.TemporaryDirectory(prefix="ovd-bench-regions-") as work:
        records, boxes = _photos_and_boxes(Path(work), images, regions)
        source = ResultsFile(str(Path(work) / "boxes.json"), "boxes.json", topk=regions)
        pictures = [_open(record) for record in records]
        stores = [Path(work) / f"store{turn}" for turn in range(repeats + 1)]

        def ours(turn: int) -> None:
            write_regions(records, "bench", source, encoder, stores[turn])

        def usual(turn: int) -> Tensor:
            return torch.stack([_encode_usually(model, r, b) for r, b in zip(records, boxes)])

        progress(f"{model.device}: from files to embeddings")
        expected = _measure(result.build, {"ours": ours, "usual": usual}, repeats, model.device)
        progress(f"{model.device}: preprocessing alone")
        alone = {
            "ours": lambda turn: _prepare_ours(model, pictures, boxes, batch),
            "usual": lambda turn: _prepare_usually(model, pictures, boxes),
        }
        _measure(result.preprocessing, alone, repeats, model.device)
        store = RegionStore(stores[-1])
        found = torch.stack([store[number].embeddings.float() for number in range(images)])
    result.cosine = float(nn.functional.cosine_similarity(found, expected, dim=-1).min())
    return result


def _measure(
    seconds: dict[str, list[float]],
    sides: dict[str, Callable[[int], Any]],
    repeats: int,
    device: str,
) -> Any:
    """Runs the sides in turn, fills ``seconds``, returns what the last run of "usual" returned."""
    for turn in range(repeats + 1):
        for name, run in sides.items():
            start = time.perf_counter()
            returned = run(turn)
            if device != "cpu":
                torch.cuda.synchronize(device)
            if turn:
                seconds.setdefault(name, []).append(time.perf_counter() - start)
    return returned


def _photos_and_boxes(
    folder: Path, images: int, regions: int
) -> tuple[list[dict[str, Any]], list[Tensor]]:
    """Records of JPEG files, and (R, 4) float32 boxes of each, which boxes.json holds too."""
    from PIL import Image

    generator = torch.Generator().manual_seed(0)
    height, width = IMAGE_SIZE
    records, boxes, results = [], [], []
    for number in range(images):
        coarse = torch.rand(1, 3, height // 8, width // 8, generator=generator)
        photo = nn.functional.interpolate(coarse, IMAGE_SIZE, mode="bicubic")[0].clamp(0, 1) * 255
        name = folder / f"{number}.jpg"
        Image.fromarray(photo.byte().permute(1, 2, 0).contiguous().numpy()).save(name)
        records.append(
            {"image_id": number, "file_name": str(name), "height": height, "width": width}
        )
        # Sides from 15 to 240 pixels, aspect ratios around 1 as of objects, one in 30 beyond 3.
        sizes = (torch.rand(regions, 1, generator=generator) * 2.8 + 2.7).exp()
        stretch = torch.randn(regions, 1, generator=generator) * 0.25
        sizes = sizes * torch.cat([stretch, -stretch], dim=1).exp()
        places = torch.rand(regions, 2, generator=generator)
        corners = places * (torch.tensor([float(width), float(height)]) - sizes)
        boxes.append(torch.cat([corners, corners + sizes], dim=1))
        xywh = torch.cat([corners, sizes], dim=1).tolist()
        results += [{"image_id": number, "bbox": box} for box in xywh]
    (folder / "boxes.json").write_text(json.dumps(results))
    return records, boxes


def _open(record: dict[str, Any]) -> Any:
    from PIL import Image

    return Image.open(record["file_name"]).convert("RGB")


def _usual_crops(model: ImageTextModel, picture: Any, boxes: Tensor) -> Any:
    """(3, S, S) fp32 normalised, one after the other."""
    transform = import_clip().clip._transform(model.preprocessing.image_size)
    for crop in crop_pixels(boxes, 1.0, *IMAGE_SIZE).tolist():
        yield transform(picture.crop(crop)).to(model.device)


@torch.no_grad()
def _encode_usually(model: ImageTextModel, record: dict[str, Any], boxes: Tensor) -> Tensor:
    """(R, D) fp32 unit rows on the CPU."""
    rows = []
    for crop in _usual_crops(model, _open(record), boxes):
        features = model.image_tower(crop[None])
        rows.append(nn.functional.normalize(features, dim=1).cpu())
    return torch.cat(rows)


def _prepare_usually(model: ImageTextModel, pictures: list[Any], boxes: list[Tensor]) -> None:
    for picture, rows in zip(pictures, boxes):
        for _ in _usual_crops(model, picture, rows):
            pass


def _prepare_ours(
    model: ImageTextModel, pictures: list[Any], boxes: list[Tensor], batch: int
) -> None:
    import numpy as np

    for picture, rows in zip(pictures, boxes):
        image = torch.from_numpy(np.array(picture)).permute(2, 0, 1).to(model.device)
        crops = crop_pixels(rows, 1.0, *IMAGE_SIZE)
        for part in crops.split(batch):
            model.preprocessing(resample_crops(image, part, model.preprocessing))
