"""README's code blocks, run in the order in which they stand, in one folder.

The folder holds what a clone holds for a user (``train_net.py``, ``configs``) and mini's data. A
block whose line before is ``<!-- not run: REASON -->`` is left out; ``<!-- file: NAME -->`` writes
the block to a file, as a reader would. So that the whole takes minutes: mini's annotations are cut
to a few images, trainings to two iterations, and what would be downloaded is replaced
(``CHANGES``).
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
IMAGES = 10  # of each of mini's splits
IN_README = 30298  # the scene that README looks at
TRAINING = "SOLVER.MAX_ITER 2 SOLVER.WARMUP_ITERS 1 SOLVER.IMS_PER_BATCH 2"
CHANGES = {  # this for that: no model hub is asked, no GPU
    "openai-clip:ViT-B/32": "minilm",
    "EMBED_DIM: 512": "EMBED_DIM: 384",
    "model = build_model(cfg)": 'cfg.MODEL.DEVICE = "cpu"\nmodel = build_model(cfg)',
}
NOT_RUN = {  # heading: blocks left out; no others
    "Install": 1,
    "Two commands": 1,
    "Models": 1,
    "Detectors of transformers": 1,
}


class Block(NamedTuple):
    """A fenced block: its heading, language, text, and the comment before it."""

    heading: str
    language: str
    text: str
    mark: str


def blocks() -> list[Block]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found, heading = [], ""
    comment = r"(?:<!-- (?P<mark>[^\n]+) -->\n)?"
    fenced = rf"{comment}^```(?P<kind>\w*)\n(?P<text>.*?)^```$"
    pattern = rf"^## (?P<heading>[^\n]+)$|{fenced}"
    for match in re.finditer(pattern, text, re.MULTILINE | re.DOTALL):
        if match["heading"]:
            heading = match["heading"]
        else:
            found.append(Block(heading, match["kind"], match["text"], match["mark"] or ""))
    return found


def small_mini(source: Path, target: Path) -> None:
    """A copy of mini that has a few images of each split; captions of these alone."""
    for path in (source / "annotations").glob("*.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        content["images"] = content["images"][:IMAGES] + [
            image for image in content["images"][IMAGES:] if image["id"] == IN_README
        ]
        kept = {image["id"] for image in content["images"]}
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] in kept]
        new = target / "annotations" / path.name
        new.parent.mkdir(parents=True, exist_ok=True)
        new.write_text(json.dumps(content), encoding="utf-8")
        for image in content["images"]:
            picture = target / "images" / image["file_name"]
            picture.parent.mkdir(parents=True, exist_ok=True)
            if not picture.exists():
                shutil.copy(source / "images" / image["file_name"], picture)
    shutil.copy(source / "manifest.json", target)
    lines = (source / "pairs.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    there = [line for line in lines if (target / "images" / json.loads(line)["file_name"]).exists()]
    (target / "pairs.jsonl").write_text("".join(there), encoding="utf-8")


def shortened(command: str) -> str:
    """Trainings of two iterations; the build of mini, which is there already, left out."""
    lines = []
    for line in command.replace("\\\n", " ").splitlines():
        if re.match(r"(python|torchrun .*) ?train_net\.py", line):
            line = line.split("   #")[0] + f" {TRAINING}"
        elif line.startswith("ovd mini build"):
            continue
        lines.append(line)
    return "\n".join(lines)


def test_only_marked_blocks_are_left_out():
    left_out = {}
    for block in blocks():
        if block.mark.startswith("not run") or block.language not in ("bash", "python", "yaml", ""):
            left_out[block.heading] = left_out.get(block.heading, 0) + 1
    assert left_out == NOT_RUN
    assert sum(block.language == "bash" for block in blocks()) >= 6
    assert sum(block.language == "python" for block in blocks()) >= 3


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_block_runs(mini_root, tmp_path):
    for name in ("train_net.py", "configs"):
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, tmp_path / name)
    small_mini(mini_root, tmp_path / "datasets/mini-v1")
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "DETECTRON2_DATASETS": "datasets",
        "OVD_D2_CACHE": str(tmp_path / "cache"),
    }
    session = []  # python blocks go on from each other
    for block in blocks():
        text = block.text
        for this, that in CHANGES.items():
            text = text.replace(this, that)
        if block.mark.startswith("file: "):
            (tmp_path / block.mark.removeprefix("file: ")).write_text(text, encoding="utf-8")
            continue
        if block.mark.startswith("not run") or not block.language:
            continue
        words = ["bash", "-euo", "pipefail", "-c", shortened(text)]
        if block.language == "python":
            session.append(text)
            words = [sys.executable, "-c", "\n".join(session)]
        started = time.monotonic()
        done = subprocess.run(
            words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
        )
        print(f"{block.heading}: {time.monotonic() - started:.0f} s")
        assert done.returncode == 0, f"{block.heading}:\n{block.text}\n{done.stderr[-3000:]}"
