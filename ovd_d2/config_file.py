"""Reads the yaml of a model: defaults, file, overrides, and one sentence for what is wrong."""

import difflib
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.utils.file_io import PathManager

from ovd_d2.config import add_ovd_config
from ovd_d2.errors import OVDError

_HEADS = "MODEL.ROI_HEADS.NAME"
# Nodes of a yaml with its aliases written out; ours have a few hundred.
_MOST_NODES = 100_000


def load_config(config_file: str = "", opts: list[str] | None = None) -> CfgNode:
    """Defaults, then the file (and its ``_BASE_``), then ``opts``.

    Args:
        config_file: yaml, read without python tags; "" for the defaults alone.
        opts: "KEY", "value", "KEY", "value", ...

    Raises:
        OVDError: one sentence that names the file or key.
    """
    cfg = get_cfg()
    add_ovd_config(cfg)
    if config_file:
        if not os.path.isfile(config_file):
            raise OVDError(f"--config-file {config_file} does not exist.")
        _check_yaml(config_file, cfg)
        try:
            cfg.merge_from_file(config_file, allow_unsafe=False)
        except Exception as error:
            raise OVDError(explain_config_error(f"{config_file}", error, cfg)) from error
    if opts:
        if len(opts) % 2:
            raise OVDError(
                f"The options at the end are pairs of KEY and value, but there are {len(opts)} "
                f"words, the last one being {opts[-1]!r}."
            )
        try:
            cfg.merge_from_list(opts)
        except Exception as error:
            raise OVDError(explain_config_error("The options", error, cfg)) from error
    _check_no_cascade_was_replaced(config_file, opts or [])
    return cfg


def _check_no_cascade_was_replaced(config_file: str, opts: list[str]) -> None:
    """Raises OVDError if the plain open-vocabulary head takes a cascade's place, in which nothing
    but its name says that it is one."""
    names = _head_names(config_file) if config_file else []
    names += [value for key, value in zip(opts[::2], opts[1::2]) if key == _HEADS]
    cascades = ("CascadeROIHeads", "OpenVocabCascadeROIHeads")
    before = [name for name in names if name != "OpenVocabROIHeads"]
    if names and names[-1] == "OpenVocabROIHeads" and before and before[-1] in cascades:
        raise OVDError(
            f"{_HEADS} is OpenVocabROIHeads, which has one stage, but {config_file or 'it'} is a "
            f"cascade ({before[-1]}): set {_HEADS} OpenVocabCascadeROIHeads, or take a config that "
            "is no cascade."
        )


def _head_names(config_file: str) -> list[str]:
    """Every MODEL.ROI_HEADS.NAME in a file and its ``_BASE_`` files, the one that counts last."""
    with PathManager.open(config_file) as file:
        content = yaml.safe_load(file) or {}
    bases = content.get("_BASE_", [])
    names = []
    for base in [bases] if isinstance(bases, str) else bases:
        base = os.path.expanduser(base)
        if not base.startswith(("/", "https://", "http://")):  # as fvcore finds it
            base = os.path.join(os.path.dirname(config_file), base)
        names += _head_names(base)
    name = content.get("MODEL", {}).get("ROI_HEADS", {}).get("NAME")
    return [*names, name] if name else names


def _check_yaml(file: str, cfg: CfgNode, within: tuple[str, ...] = ()) -> None:
    """Raises OVDError for what fvcore would fail on deep inside, or never finish: files that are
    not a mapping, and aliases and ``_BASE_`` files that go on and on.

    Args:
        file: a yaml.
        cfg: the config it is for.
        within: the files whose ``_BASE_`` led here.
    """
    where = f"{within[0]}: its _BASE_ file {file}" if within else file
    if os.path.realpath(file) in map(os.path.realpath, within):
        raise OVDError(f"{within[0]}: its _BASE_ files refer to each other in a circle.")
    if not os.path.isfile(file):
        raise OVDError(f"{where} does not exist.")
    try:
        with open(file, encoding="utf-8") as stream:
            content = yaml.safe_load(stream)
    except Exception as error:
        raise OVDError(explain_config_error(where, error, cfg)) from error
    if not isinstance(content, dict):
        raise OVDError(f"{where} is not a mapping of config keys.")
    if _has_more_nodes(content, _MOST_NODES):
        raise OVDError(
            f"{where} stands for more than {_MOST_NODES} values once its aliases (*name) are "
            "written out: write out the few that are meant."
        )
    bases = content.get("_BASE_", [])
    for base in bases if isinstance(bases, list) else [bases]:
        if not isinstance(base, str) or not base:
            raise OVDError(f"{where}: _BASE_ is {base!r}; it must name a yaml file, or several.")
        if not base.startswith(("https://", "http://")):
            base = os.path.join(os.path.dirname(file), os.path.expanduser(base))
            _check_yaml(base, cfg, (*within, file))


def _has_more_nodes(content: Any, limit: int) -> bool:
    """Whether a tree has more than ``limit`` nodes, counting shared ones wherever they appear."""
    waiting, count = [content], 0
    while waiting and count <= limit:
        node = waiting.pop()
        count += 1
        if isinstance(node, dict | list):
            waiting.extend(node.values() if isinstance(node, dict) else node)
    return count > limit


def explain_config_error(where: str, error: Exception, cfg: CfgNode) -> str:
    """One sentence for anything that yaml, yacs or fvcore raise on a config.

    Args:
        where: the file or list that was being merged.
        error: what was raised.
        cfg: the config it was merged into.
    """
    text = " ".join(str(error.args[0] if error.args else error).split())
    unknown = re.match(r"Non-existent (?:config )?key: (\S+)", text)
    if unknown:
        close = difflib.get_close_matches(unknown[1], _all_keys(cfg), n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        return f"{where}: there is no config key {unknown[1]}{hint}."
    runs_code = isinstance(error, yaml.constructor.ConstructorError) and "tag" in error.problem
    if runs_code:
        return f"{where} holds a yaml tag that could run code, which is refused: {error.problem}."
    if isinstance(error, yaml.YAMLError | UnicodeDecodeError):
        return f"{where} is not readable yaml: {' '.join(str(error).split())}."
    if isinstance(error, RecursionError | MemoryError):
        return f"{where}: a value is nested too deeply."
    if isinstance(error, TypeError | AttributeError):
        return f"{where} is not a mapping of config keys ({text})."
    return f"{where}: {text.rstrip('.')}."


def _all_keys(cfg: CfgNode, prefix: str = "") -> list[str]:
    keys = []
    for key, value in cfg.items():
        keys.append(prefix + key)
        if isinstance(value, CfgNode):
            keys += _all_keys(value, f"{prefix}{key}.")
    return keys


def config_digest(config_file: str | os.PathLike, *settings: str | Iterable[str]) -> str:
    """Digest of a yaml, of the ``_BASE_`` files it stands on, and of further ``settings``.

    Raises:
        OVDError: a file is missing or not readable yaml.
    """
    digest = hashlib.sha256()
    for text in _texts_with_bases(Path(config_file)):
        digest.update(text.encode() + b"\0")
    digest.update(json.dumps(settings, default=list).encode())
    return digest.hexdigest()


def _texts_with_bases(path: Path, within: tuple[Path, ...] = ()) -> Iterator[str]:
    """The yaml at ``path``, which the ``_BASE_`` of those ``within`` led to, then its own bases."""
    if path in within:
        raise OVDError(f"{within[0]}: its _BASE_ files refer to each other in a circle.")
    try:
        text = path.read_text(encoding="utf-8")
        bases = (yaml.safe_load(text) or {}).get("_BASE_") or []
    except OSError as error:
        raise OVDError(f"The config {path} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, AttributeError, ValueError, RecursionError) as error:
        raise OVDError(f"The config {path} is not a yaml mapping.") from error
    yield text
    for base in bases if isinstance(bases, list) else [bases]:
        yield from _texts_with_bases(path.parent / str(base), (*within, path))
