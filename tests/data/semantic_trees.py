"""Small folders in the layouts of the semantic data sets."""

import pickle
from pathlib import Path

import numpy as np
from PIL import Image

SHAPE = (4, 6)  # height, width


def write_image(path: Path, shape=SHAPE, seed=0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (*shape, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def write_map(path: Path, values, dtype=np.uint8) -> Path:
    """``values`` fill the map from its first pixel on, the rest is their last one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(filled(values).astype(dtype)).save(path)
    return path


def filled(values, shape=SHAPE) -> np.ndarray:
    flat = np.full(shape[0] * shape[1], values[-1], np.int64)
    flat[: len(values)] = values
    return flat.reshape(shape)


def write_list(path: Path, lines) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def voc(root: Path, names=("a", "b"), values=(0, 1, 20, 255)) -> None:
    for name in names:
        write_image(root / f"VOC2012/JPEGImages/{name}.jpg")
        for folder in ("SegmentationClass", "SegmentationClassAug"):
            write_map(root / f"VOC2012/{folder}/{name}.png", values)
    for listed in ("train", "trainaug", "val"):
        write_list(root / f"VOC2012/ImageSets/Segmentation/{listed}.txt", names)


def coco20i(root: Path, fold: int) -> dict[int, list[str]]:
    """Lists as a pickle; two images per class, in whose maps the value of class c is c + 1."""
    images = {c: [f"val2014/{c}_{i}.jpg" for i in range(2)] for c in range(80)}
    path = root / f"few_shot_splits/coco/val/fold{fold}.pkl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(images))
    for c, names in images.items():
        for name in names:
            target = (root / "COCO2014/annotations" / name).with_suffix(".png")
            write_map(target, (c + 1, 80 if c < 79 else 1, 0))
    return images


def fss1000(root: Path, classes=("b_cup", "a cat")) -> None:
    write_list(root / "few_shot_splits/fss/test.txt", classes)
    for name in classes:
        for i in (1, 2, 10):
            write_image(root / f"FSS-1000/{name}/{i}.jpg")
            write_map(root / f"FSS-1000/{name}/{i}.png", (0, 127, 128, 255))
