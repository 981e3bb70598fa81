"""Detections by the ONNX graph beside this file: python detect.py PICTURE [NAMES.safetensors].

Needs numpy, onnxruntime, pillow and safetensors; neither torch nor ovd_d2. NAMES.safetensors is of
`ovd vocab embed`; left out, it is classes.safetensors, the classes the model was trained on.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path


def detect(folder: Path, picture: str, names: str | Path) -> Iterator[tuple[str, float, list]]:
    """Yields name, score and box (x0, y0, x1, y1 in pixels of the picture), best first."""
    import numpy as np
    import onnxruntime
    from PIL import Image, ImageOps
    from safetensors.numpy import load_file

    graph = onnxruntime.InferenceSession(Path(folder, "model.onnx"))
    facts = json.loads(graph.get_modelmeta().custom_metadata_map["ovd_d2"])
    classes = json.loads(Path(f"{names}.json").read_text(encoding="utf-8"))
    if classes["encoder_id"] != facts["encoder_id"]:
        sys.exit(f"{names} is by {classes['encoder_id']}, the graph needs {facts['encoder_id']}.")
    image = ImageOps.exif_transpose(Image.open(picture)).convert("RGB")
    pixels = np.asarray(image.resize(new_size(*image.size, facts["resize"]), Image.BILINEAR))
    if facts["colours"] == "BGR":
        pixels = np.ascontiguousarray(pixels[:, :, ::-1])
    given = {
        "image": pixels,
        "class_embeddings": load_file(names)["embeddings"],
        "is_novel": np.array(classes["is_novel"]),
    }
    given = {value.name: given[value.name] for value in graph.get_inputs()}
    boxes, scores, found = graph.run(["boxes", "scores", "classes"], given)
    boxes *= np.tile(np.array(image.size) / pixels.shape[1::-1], 2).astype(np.float32)
    for box, score, k in zip(boxes.tolist(), scores.tolist(), found.tolist()):
        yield classes["names"][k], score, box


def new_size(width: int, height: int, rule: dict | None) -> tuple[int, int]:
    """Width and height for the graph: as they are, fixed, or by the shorter and the longer side."""
    if not rule or "width" in rule:
        return (rule["width"], rule["height"]) if rule else (width, height)
    scale = rule["short_side"] / min(width, height)
    width, height = width * scale, height * scale
    scale = min(1.0, rule["longest_side"] / max(width, height))
    return int(width * scale + 0.5), int(height * scale + 0.5)


if __name__ == "__main__":
    here = Path(__file__).resolve().parent
    names = sys.argv[2] if len(sys.argv) > 2 else here / "classes.safetensors"
    for name, score, box in detect(here, sys.argv[1], names):
        print(f"{score:.3f}", name, *(f"{side:.1f}" for side in box), sep="\t")  # noqa: T201
