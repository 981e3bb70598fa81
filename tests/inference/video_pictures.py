"""The pictures of tiles and of videos in the README: mini's first nine test scenes, predicted by
commands. ``python tests/inference/video_pictures.py`` writes them into configs/mini."""

import json
import os
import subprocess
import sys
import tempfile
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

from ovd_d2.inference.video_files import VideoSource, VideoWriter

ROOT = Path(__file__).resolve().parents[2]
SIDE, ZOOM = 192, 3


def mosaic(mini: Path, columns: int, first: int = 0) -> np.ndarray:
    """columns x columns test scenes of mini side by side, from number ``first`` on."""
    records = json.loads((mini / "annotations/test.json").read_text())["images"][first:]
    scenes = [
        np.array(Image.open(mini / "images" / record["file_name"]).convert("RGB"))
        for record in records[: columns**2]
    ]
    rows = [np.concatenate(scenes[k : k + columns], 1) for k in range(0, columns**2, columns)]
    return np.concatenate(rows, 0)


def pan(picture: np.ndarray, path: Path, frames: int = 50) -> None:
    """A clip that goes over the second row of scenes, from the second to the third column."""
    with VideoWriter(path, Fraction(25), Fraction(1, 25)) as writer:
        for k in range(frames):
            x = SIDE + k * SIDE // (frames - 1)
            view = Image.fromarray(picture[SIDE : 2 * SIDE, x : x + SIDE])
            writer.write(np.array(view.resize((ZOOM * SIDE, ZOOM * SIDE))), k / 25)


def beside_each_other(pictures: list[np.ndarray], width: int, path: Path) -> None:
    """Writes pictures of one size into one of ``width`` pixels, with a white gap."""
    gap = np.full((pictures[0].shape[0], 12, 3), 255, np.uint8)
    parts = [part for picture in pictures for part in (picture, gap)][:-1]
    whole = Image.fromarray(np.concatenate(parts, axis=1))
    whole = whole.resize((width, round(whole.height * width / whole.width)))
    whole.save(path, quality=75)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


def main() -> None:
    mini = Path(os.environ.get("DETECTRON2_DATASETS", ROOT / "datasets")) / "mini-v1"
    picture = mosaic(mini, 3)
    with tempfile.TemporaryDirectory() as folder:
        Image.fromarray(picture).save(f"{folder}/scenes.png")
        pan(picture, Path(folder, "pan.mp4"))
        ovd = str(Path(sys.executable).with_name("ovd"))
        for words in (
            ["predict", "scenes.png", "--out", "whole", "--score-threshold", "0.4"],
            ["predict", "scenes.png", "--out", "tiles", "--score-threshold", "0.4",
             "--tile", "192", "--overlap", "0.2"],
            ["video", "pan.mp4", "--out", "video", "--score-threshold", "0.6",
             "--vocab", "poodle, sloth, peanuts"],
        ):  # fmt: skip
            print("ovd", *words)
            subprocess.run([ovd, *words], check=True, cwd=folder)
        found = [np.array(Image.open(f"{folder}/{how}/scenes.jpg")) for how in ("whole", "tiles")]
        beside_each_other(found, 1080, ROOT / "docs/images/tiles_predict.jpg")
        with VideoSource(f"{folder}/video/pan.mp4") as video:
            frames = [image.pixels for image in video]
        chosen = [frames[k] for k in (12, 26, 44)]
        beside_each_other(chosen, 1200, ROOT / "docs/images/video_track.jpg")


if __name__ == "__main__":
    main()
