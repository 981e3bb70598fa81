"""What ``ovd demo`` and ``ovd benchmark`` type: commands of this package, shown before they run."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ovd_d2.benchmarks.recipes.runs import Run


def say(line: str) -> None:
    """Prints a line at once."""
    print(line, flush=True)


def ovd_script() -> list[str]:
    """What starts the console script of this environment."""
    script = Path(sys.executable).with_name("ovd")
    return [str(script)] if script.is_file() else [sys.executable, "-m", "ovd_d2.cli.app"]


def device_settings() -> tuple[str, ...]:
    """The mini yamls say cpu; where a GPU is, it is used."""
    import torch

    return ("MODEL.DEVICE", "cuda") if torch.cuda.is_available() else ()


def _starter() -> list[str]:
    """``ovd``, one process per core where the device is the CPU."""
    from ovd_d2.benchmarks.recipes.runs import cores

    torchrun = Path(sys.executable).with_name("torchrun")
    if device_settings() or cores() == 1 or not torchrun.is_file():
        return ovd_script()
    return [str(torchrun), "--nproc-per-node", str(cores()), "-m", "ovd_d2.cli.app"]


def build_regions(proposer: "Run", out: Path, root: Path, per_image: int) -> Path:
    """``ovd regions build`` with the proposals of a finished run; the store's folder.

    The folder is named by the run, so that another detector's proposals are never mixed in.
    """
    from ovd_d2.benchmarks.recipes import runs as recipe_runs

    store = out / f"regions-{proposer.record(root)['digest'][:8]}"
    words = [*_starter(), "regions", "build", "--dataset", "mini_v1_train_base"]
    words += ["--proposals", f"rpn:{proposer.folder}/model_final.pth", "--encoder", "mini-teacher"]
    # One crop per box: for the mini teacher as good as two, at half the cost.
    words += ["--crops", "1x", "--topk", str(per_image), "--out", str(store)]
    recipe_runs.run_in_foreground(words, root, say)
    return store


def label_captions(proposer: "Run", out: Path, root: Path) -> Path:
    """``ovd pseudo-label``: a box for each name in the captions of the training images, by CLIP on
    the proposals of a finished run; the label file, named by the run.
    One that is there already is checked by the command and left as it is."""
    from ovd_d2.benchmarks.recipes import runs as recipe_runs

    labels = out / f"labels-{proposer.record(root)['digest'][:8]}.json"
    captions = Path(os.environ.get("DETECTRON2_DATASETS") or "datasets") / "mini-v1/pairs.jsonl"
    words = [*_starter(), "pseudo-label", "--dataset", "mini_v1_train_base"]
    words += ["--labels", f"captions:{captions}", "--boxes", "labels"]
    words += ["--detector", f"model:{proposer.folder}/model_final.pth"]
    words += ["--config-file", "configs/mini/rkd_labeller.yaml", "--out", str(labels)]
    recipe_runs.run_in_foreground(words, root, say)
    return labels


def ground_captions(teacher: "Run", out: Path, root: Path) -> Path:
    """``ovd pseudo-label --task grounding``: boxes of the phrases of the captions of the training
    images, by a finished run that reads captions; the file, named by the run."""
    from ovd_d2.benchmarks.recipes import runs as recipe_runs

    found = out / f"grounded-{teacher.record(root)['digest'][:8]}.json"
    words = [*_starter(), "pseudo-label", "--task", "grounding", "--dataset", "mini_v1_pairs"]
    # As datasets/README.md has it: scores of a teacher of few iterations are low.
    words += ["--score-threshold", "0.4"]
    words += ["--detector", f"model:{teacher.folder}/model_final.pth", "--out", str(found)]
    recipe_runs.run_in_foreground(words, root, say)
    return found


def learn_examples(
    trained: "Run", out: Path, root: Path, *, count: int, classes: str, seed: int
) -> Path:
    """``ovd mini examples`` and ``ovd vocab learn``: rows of classes from example boxes on the
    images of val, which show the style of the test images; the profile, named by the run."""
    from ovd_d2.benchmarks.recipes import runs as recipe_runs

    # What decides the rows is in the name.
    name = f"examples-{trained.digest[:8]}-{classes}-{count}-seed{seed}"
    boxes, rows = out / f"{name}.json", out / f"{name}.safetensors"
    if (root / rows).is_file():
        return rows
    words = [*ovd_script(), "mini", "examples", "--count", str(count), "--classes", classes]
    words += ["--seed", str(seed), "--out", str(boxes)]
    recipe_runs.run_in_foreground(words, root, say)
    words = [*ovd_script(), "vocab", "learn", str(boxes), "--out", str(rows)]
    words += ["--config-file", f"{trained.folder}/config.yaml"]
    words += ["--weights", f"{trained.folder}/model_final.pth"]
    recipe_runs.run_in_foreground(words, root, say)
    return rows
