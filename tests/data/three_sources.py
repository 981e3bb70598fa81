"""Three small sources of training data: boxes of classes, grounded captions, pairs in tar shards.

All are named by where they are: another process needs nothing but the names.
"""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = ("red", "green", "blue")
SHARD_SIZE = 5  # pairs
BATCHES = {"detection": 2, "grounding": 3, "pairs": 4}
PAIR_SIDE = 24  # pixels


def make_three_sources(folder, *, detection=8, grounding=6, pairs=10, empty=1):
    """Writes the images and their files into ``folder``.

    Squares of three colours lie on grey noise; captions name them. The last ``empty`` images of
    detection and grounding have no box.

    Returns:
        the list for DATASETS.SOURCES, of sources whose batches and images differ in size, with the
        ratios 2, 1 and 2; ``DATASETS.TRAIN`` of the whole is :func:`classes_of`.
    """
    folder = Path(folder)
    for name in ("detection", "grounding", "pairs"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    _write_detection(folder / "detection", detection, empty)
    _write_grounding(folder / "grounding", grounding, empty)
    count = write_shards(folder / "pairs", pairs)
    return [
        {"NAME": "detection", "RATIO": 2,
         "OPTS": ["SOLVER.IMS_PER_BATCH", BATCHES["detection"], "INPUT.MIN_SIZE_TRAIN", [40, 48],
                  "DATALOADER.FILTER_EMPTY_ANNOTATIONS", False]},
        {"NAME": "grounding", "RATIO": 1,
         "OPTS": ["DATASETS.TRAIN", [f"grounding:{folder}/grounding:{folder}/grounding.json"],
                  "INPUT.MAPPER", "GroundingMapper", "INPUT.MIN_SIZE_TRAIN", [32],
                  "SOLVER.IMS_PER_BATCH", BATCHES["grounding"],
                  "DATALOADER.FILTER_EMPTY_ANNOTATIONS", False]},
        {"NAME": "pairs", "RATIO": 2,
         "OPTS": ["DATASETS.TRAIN", [f"pairs:{folder}/pairs/{{00000..{count - 1:05d}}}.tar"],
                  "INPUT.MAPPER", "ImageTextPairMapper", "INPUT.PAIRS.IMAGE_SIZE", PAIR_SIDE,
                  "INPUT.PAIRS.NOUN_PHRASES", "stop-words",
                  "SOLVER.IMS_PER_BATCH", BATCHES["pairs"]]},
    ]  # fmt: skip


def classes_of(folder):
    """The data set of the three classes."""
    return f"coco:{folder}/detection:{folder}/detection.json"


def write_shards(folder, count, *, caption_of=None):
    """``count`` pairs in tar shards of :data:`SHARD_SIZE`, and how many shards these are.

    Args:
        folder: where 00000.tar, ... go.
        count: of pairs.
        caption_of: number of the pair -> its caption in bytes; None: what is in the picture.
    """
    shards = -(-count // SHARD_SIZE)
    for shard in range(shards):
        with tarfile.open(Path(folder) / f"{shard:05d}.tar", "w") as archive:
            for number in range(shard * SHARD_SIZE, min((shard + 1) * SHARD_SIZE, count)):
                picture, boxes = _scene(1000 + number, 2)
                stream = io.BytesIO()
                picture.save(stream, "PNG")
                caption = " beside ".join(f"a {colour} square" for colour, _ in boxes).encode()
                caption = caption_of(number) if caption_of else caption
                for suffix, content in (("png", stream.getvalue()), ("txt", caption)):
                    info = tarfile.TarInfo(f"{number:09d}.{suffix}")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
    return shards


def _scene(seed, squares, size=(64, 48)):
    """A picture with squares, and (colour, [x, y, width, height]) of each."""
    rng = np.random.default_rng(seed)
    width, height = size
    pixels = rng.integers(0, 80, (height, width, 3), dtype=np.uint8)
    boxes = []
    for place in range(squares):
        side = int(rng.integers(10, 20))
        x = place * width // 2 + int(rng.integers(width // 2 - side))
        y = int(rng.integers(height - side))
        channel = int(rng.integers(3))
        pixels[y : y + side, x : x + side] = 0
        pixels[y : y + side, x : x + side, channel] = 255
        boxes.append((COLOURS[channel], [x, y, side, side]))
    return Image.fromarray(pixels), boxes


def _write_detection(folder, count, empty):
    images, annotations = [], []
    for number in range(1, count + 1):
        picture, boxes = _scene(number, 0 if number > count - empty else 1 + number % 2)
        picture.save(folder / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": 64, "height": 48})
        for colour, box in boxes:
            annotations.append(
                {"id": len(annotations) + 1, "image_id": number, "bbox": box, "iscrowd": 0,
                 "category_id": COLOURS.index(colour) + 1, "area": box[2] * box[3]}
            )  # fmt: skip
    categories = [{"id": k, "name": f"{name} square"} for k, name in enumerate(COLOURS, start=1)]
    _write_json(f"{folder}.json", images, annotations, categories)


def _write_grounding(folder, count, empty):
    images, annotations = [], []
    for number in range(1, count + 1):
        picture, boxes = _scene(500 + number, 0 if number > count - empty else 2)
        picture.save(folder / f"{number}.png")
        caption = "noise with " if boxes else "grey noise alone"
        for colour, box in boxes:
            phrase = f"{colour} square"
            span = [len(caption), len(caption) + len(phrase)]
            caption += f"{phrase}, "
            annotations.append(
                {"id": len(annotations) + 1, "image_id": number, "bbox": box, "iscrowd": 0,
                 "category_id": 1, "area": box[2] * box[3], "tokens_positive": [span]}
            )  # fmt: skip
        images.append({"id": number, "file_name": f"{number}.png", "width": 64, "height": 48,
                       "caption": caption})  # fmt: skip
    _write_json(f"{folder}.json", images, annotations, [{"id": 1, "name": "object"}])


def _write_json(path, images, annotations, categories):
    content = {"images": images, "annotations": annotations, "categories": categories}
    Path(path).write_text(json.dumps(content))
