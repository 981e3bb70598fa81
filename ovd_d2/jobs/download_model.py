"""Brings a model of the zoo here: downloads, compares, converts, and makes a folder of it that
``--model`` takes."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from ovd_d2 import __version__
from ovd_d2.config_file import load_config
from ovd_d2.encoders.huggingface import model_folder as hub_folder
from ovd_d2.errors import OVDError
from ovd_d2.files.atomic import (
    PARTIAL_SUFFIX,
    beside,
    check_output_folder,
    missing_folders,
    remove_empty,
    write_json,
)
from ovd_d2.files.digests import file_digest
from ovd_d2.inference.model_folders import CONFIG, FACTS, WEIGHTS
from ovd_d2.model_zoo import EMBEDDINGS, Entry, download_path, fetch, model_path
from ovd_d2.model_zoo.download import OnBytes

from .convert_checkpoint import (
    Conversion,
    convert_detic,
    convert_glip,
    convert_lseg,
    convert_object_centric_ovd,
)
from .convert_groupvit import convert_groupvit
from .convert_mavl import convert_mavl

_ENCODER = "openai-clip:ViT-B/32"  # made the embeddings in checkpoints of Detic's kind


@dataclass(frozen=True)
class Downloaded:
    """What is there now.

    Attributes:
        file: what was downloaded, a file or a folder of the hub; None: nothing, it ships.
        folder: the converted model; None: it is used as it is.
        facts: lines for the user.
    """

    file: Path | None
    folder: Path | None
    facts: tuple[str, ...] = ()


def download_model(
    entry: Entry,
    out: Path | None = None,
    *,
    accept_licence: bool = False,
    on_bytes: OnBytes = lambda done, total: None,
) -> Downloaded:
    """Downloads and converts a model. What is there already is compared, and not downloaded again.

    Args:
        entry: which one.
        out: folder of the converted model, new or empty; None: that of ``--model NAME``.
        accept_licence: needed where the licence forbids commercial use.
        on_bytes: see :data:`~ovd_d2.model_zoo.download.OnBytes`.

    Raises:
        OVDError: the licence is not accepted, the file cannot be had or is another, or it cannot
            be converted. It says where to put the file by hand.
    """
    if entry.non_commercial and not accept_licence:
        raise OVDError(
            f"{entry.name} is for non-commercial use alone ({entry.licence}): add "
            "--accept-licence if that is what you want it for."
        )
    if entry.packaged:
        return Downloaded(None, None, ("it ships with ovd_d2: there is nothing to download",))
    if out is not None and not entry.converter:
        raise OVDError(
            f"--out is for models that are converted; {entry.name} is not, and lies where "
            "the package that reads it looks for it."
        )
    target = out or model_path(entry)
    if entry.converter:
        if out is None and (target / FACTS).is_file():
            return Downloaded(None, target, ("it is there already",))
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise OVDError(f"{target} exists already: remove it, or choose another --out.")
        check_output_folder("--out", target)
    source = hub_folder(entry.hub) if entry.hub else _file(entry, on_bytes)
    if not entry.converter:
        return Downloaded(source, None)
    return Downloaded(source, target, _convert(entry, source, target))


def _file(entry: Entry, on_bytes: OnBytes) -> Path:
    """The file as its authors gave it out, compared."""
    path = download_path(entry)
    if not path.exists():
        if not entry.url:
            raise OVDError(
                f"{entry.page} gives {entry.name} to persons alone: download it there with a "
                f"browser, put it here as {path}, and run this again."
            )
        fetch(entry.url, path, sha256=entry.sha256, size=entry.size, on_bytes=on_bytes)
        return path
    size = path.stat().st_size
    remedy = f"remove it, and get {entry.where} again."
    if entry.size and size != entry.size:
        raise OVDError(f"{path} has {size} bytes and not {entry.size}: {remedy}")
    if entry.sha256 and file_digest(path, fresh=True) != entry.sha256:
        raise OVDError(f"{path} is another file (its sha256 is not {entry.sha256}): {remedy}")
    return path


def _convert(entry: Entry, source: Path, out: Path) -> tuple[str, ...]:
    """Writes the folder ``out``, whole or not at all; lines for the user."""
    config = _config_file(entry)
    partial, made = beside(out, PARTIAL_SUFFIX), missing_folders(out.parent)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        done = _run_converter(entry, source, partial)
        if config is not None:
            cfg = load_config(str(config))
            cfg.MODEL.WEIGHTS = ""
            (partial / CONFIG).write_text(cfg.dump(), encoding="utf-8")
            write_json(partial / FACTS, _facts(entry, source, partial / WEIGHTS))
        if out.is_dir():
            out.rmdir()
        partial.rename(out)
    except OVDError as error:
        raise OVDError(
            f"{str(error).rstrip('.')}: {source} is kept; remove it if it is not what "
            f"{entry.where} gives."
        ) from error
    except OSError as error:
        raise OVDError(f"Cannot write {out}: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        remove_empty(made)
    facts = [line.replace(str(partial), str(out)) for line in done.facts]
    if entry.config and config is None:
        facts.append(
            f"configs/{entry.config} is not here, so --model cannot take it: run this in a "
            "checkout of ovd_d2"
        )
    return (f"{done.entries} tensors", *facts)


def _run_converter(entry: Entry, source: Path, folder: Path) -> Conversion:
    weights = folder / WEIGHTS
    if entry.converter in ("detic", "object-centric-ovd"):
        convert = convert_detic if entry.converter == "detic" else convert_object_centric_ovd
        return convert(source, weights, folder / EMBEDDINGS, entry.vocabulary, _ENCODER)
    convert = {
        "glip": convert_glip, "lseg": convert_lseg, "groupvit": convert_groupvit,
        "mavl": convert_mavl,
    }  # fmt: skip
    return convert[entry.converter](source, weights)


def _config_file(entry: Entry) -> Path | None:
    """The recipe of a whole model in this checkout, if this is one."""
    if not entry.config:
        return None
    for root in (Path.cwd(), Path(__file__).resolve().parents[2]):
        if (root / "configs" / entry.config).is_file():
            return root / "configs" / entry.config
    return None


def _facts(entry: Entry, source: Path, weights: Path) -> dict[str, str | int | bool]:
    """What the folder tells about itself; see ``inference.model_folders``."""
    return {
        "ovd_d2": __version__,
        "sha256": file_digest(weights, fresh=True),
        "bytes": weights.stat().st_size,
        "zoo": entry.name,
        "downloaded_from": entry.where,
        "downloaded_sha256": file_digest(source, fresh=True) if source.is_file() else "",
        "licence": entry.licence,
        "non_commercial": entry.non_commercial,
        "config": f"configs/{entry.config}",
    }
