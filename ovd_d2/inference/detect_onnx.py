"""Detections by the ONNX graph beside this file: python detect.py PICTURE [NAMES.safetensors].

Needs numpy, onnxruntime, pillow and safetensors; neither torch nor ovd_d2. NAMES.safetensors is of
`ovd vocab embed`; left out, it is classes.safetensors, the classes the model was trained on.
"""

import json
import sys
from pathlib import Path


def detect(picture: str, folder: Path, names: str | Path) -> list[tuple[str, float, list[float]]]:
    """Name, score and box (x0, y0, x1, y1 in pixels of the picture), best first, of the names
    alone: the last ones of the file may be others that only compete."""
    import numpy as np
    import onnxruntime
    from PIL import Image, ImageOps
    from safetensors.numpy import load_file

    graph = onnxruntime.InferenceSession(folder / "model.onnx")
    facts = json.loads(graph.get_modelmeta().custom_metadata_map["ovd_d2"])
    classes = json.loads(Path(f"{names}.json").read_text(encoding="utf-8"))
    if classes["encoder_id"] != facts["encoder_id"]:
        sys.exit(f"{names} is by {classes['encoder_id']}, the graph needs {facts['encoder_id']}.")
    image = ImageOps.exif_transpose(Image.open(picture)).convert("RGB")
    pixels = np.array(image.resize(new_size(*image.size, **facts["resize"]), Image.BILINEAR))
    novel = classes.get("is_novel") or [False] * len(classes["names"])  # read by ensembles alone
    given = {
        "image": pixels if facts["colours"] == "RGB" else pixels[:, :, ::-1].copy(),
        "class_embeddings": load_file(names)["embeddings"],
        "is_novel": np.array(novel),
    }
    given = {value.name: given[value.name] for value in graph.get_inputs()}
    boxes, scores, rows = graph.run(["boxes", "scores", "classes"], given)
    boxes = boxes.reshape(-1, 2, 2) * image.size / pixels.shape[1::-1]
    found = zip(rows.tolist(), scores.tolist(), boxes.reshape(-1, 4).tolist())
    asked = classes["names"][: len(classes["names"]) - classes.get("competitors", 0)]
    return [(asked[row], score, box) for row, score, box in found if row < len(asked)]


def new_size(
    width: int, height: int, square: int = 0, short_side: int = 0, longest_side: int = 0
) -> list[int]:
    """Width and height for the graph: as they are, a square, or by the sides."""
    if not short_side:
        return [square or width, square or height]
    scale = short_side / min(width, height)
    sides = [scale * width, short_side] if height < width else [short_side, scale * height]
    scale = min(1.0, longest_side / max(sides))
    return [max(1, int(side * scale + 0.5)) for side in sides]


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    here = Path(__file__).resolve().parent
    chosen = sys.argv[2] if len(sys.argv) > 2 else here / "classes.safetensors"
    for name, score, box in detect(sys.argv[1], here, chosen):
        print(f"{score:.4f}", name, *(f"{side:.1f}" for side in box), sep="\t")
