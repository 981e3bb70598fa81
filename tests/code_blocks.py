"""The code blocks of markdown pages, run in the order in which they stand, each page in a folder.

The folder holds what a clone holds for a user (``train_net.py``, ``configs``) and mini's data. Run
are blocks of ``bash`` and ``python`` (which go on from each other); ``yaml`` and ``json`` are read.
A block whose line before is ``<!-- not run: REASON -->`` is left out; ``<!-- file: NAME -->``
writes the block to a file, as a reader would. So that a page takes minutes: mini's annotations are
cut to a few images, trainings to two iterations, and what would be downloaded is replaced
(``CHANGES``).
"""

import json
import os
import re
import shutil
import sys
import textwrap
import time
from pathlib import Path
from typing import NamedTuple

import warm_processes
import yaml

ROOT = Path(__file__).resolve().parents[1]
IMAGES = 6  # of each of mini's splits, beside those that a page looks at
TRAINING = "SOLVER.MAX_ITER 2 SOLVER.WARMUP_ITERS 1 SOLVER.IMS_PER_BATCH 2"
CHANGES = {  # this for that: no model hub is asked, no GPU
    "openai-clip:ViT-B/32": "minilm",
    "EMBED_DIM: 512": "EMBED_DIM: 384",
    "model = build_model(cfg)": 'cfg.MODEL.DEVICE = "cpu"\nmodel = build_model(cfg)',
}
READ = {"yaml": yaml.safe_load, "json": json.loads}
LANGUAGES = {"bash", "python", "text", "", *READ}  # a block in another one must be marked
PATTERN = re.compile(
    r"^## (?P<heading>[^\n]+)$"
    r"|(?:^ *<!-- (?P<mark>[^\n]+) -->\n)?"
    r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)


class Block(NamedTuple):
    """A fenced block: its heading, language, text, and the comment before it."""

    heading: str
    language: str
    text: str
    mark: str

    @property
    def left_out(self) -> bool:
        return self.mark.startswith("not run")

    @property
    def runs(self) -> bool:
        marked = self.left_out or self.mark.startswith("file: ")
        return self.language in ("bash", "python") and not marked


def notebooks() -> list[Path]:
    return sorted((ROOT / "notebooks").glob("*.py"))


def pages() -> list[Path]:
    """README, CONTRIBUTING and everything in docs."""
    found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [page for page in found if page.exists()]


def blocks(page: Path) -> list[Block]:
    found, heading = [], ""
    for match in PATTERN.finditer(page.read_text(encoding="utf-8")):
        if match["heading"]:
            heading = match["heading"]
        else:
            text = textwrap.dedent(match["text"])
            found.append(Block(heading, match["language"], text, match["mark"] or ""))
    return found


def small_mini(source: Path, target: Path) -> None:
    """A copy of mini that has a few images of each split; captions of these alone."""
    text = "".join(page.read_text(encoding="utf-8") for page in [*pages(), *notebooks()])
    looked_at = {int(number) for number in re.findall(r"mini-v1/images/\w+/(\d+)\.jpg", text)}
    for path in (source / "annotations").glob("*.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        content["images"] = content["images"][:IMAGES] + [
            image for image in content["images"][IMAGES:] if image["id"] in looked_at
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
    """Trainings of two iterations, fine-tunings too; no build of mini, which is there already."""
    lines = []
    for line in command.replace("\\\n", " ").splitlines():
        if re.match(r"(python|torchrun .*) ?train_net\.py", line):
            line = line.split("   #")[0] + f" {TRAINING}"
        elif line.startswith("ovd finetune"):
            line = line.split("   #")[0] + " --iterations 2"
        elif line.startswith("ovd mini build"):
            continue
        lines.append(line)
    return "\n".join(lines)


def prepare(folder: Path, mini: Path) -> dict[str, str]:
    """Fills the empty ``folder``; what commands in it need in their environment."""
    for name in ("train_net.py", "configs"):
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, folder / name)
    (folder / "datasets").mkdir()
    (folder / "datasets/mini-v1").symlink_to(mini)
    return {
        **os.environ,
        "PATH": f"{warm_processes.shims()}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "DETECTRON2_DATASETS": "datasets",
        "OVD_D2_CACHE": str(mini.parent / "cache"),  # of all pages
    }


def changed(text: str) -> str:
    for this, that in CHANGES.items():
        text = text.replace(this, that)
    return text


def run_page(page: Path, folder: Path, mini: Path) -> None:
    """Runs the blocks of ``page`` in the empty ``folder``, over the data set of ``small_mini``.

    Raises:
        AssertionError: a block fails; the message has its heading, the block and its last words.
    """
    environment = prepare(folder, mini)
    session = []
    for block in blocks(page):
        text = changed(block.text)
        if block.mark.startswith("file: "):
            (folder / block.mark.removeprefix("file: ")).write_text(text, encoding="utf-8")
        if not block.runs:
            continue
        words = ["bash", "-euo", "pipefail", "-c", shortened(text)]
        if block.language == "python":
            session.append(text)
            words = [sys.executable, "-c", "\n".join(session)]
        started = time.monotonic()
        done = warm_processes.run(
            words, cwd=folder, env=environment, capture_output=True, text=True, timeout=600
        )
        print(f"{block.heading}: {time.monotonic() - started:.0f} s")
        assert done.returncode == 0, f"{block.heading}:\n{block.text}\n{done.stderr[-3000:]}"
