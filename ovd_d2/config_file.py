"""Reads the yaml of a model: defaults, file, overrides, and one sentence for what is wrong."""

import difflib
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import detectron2
import yaml
from detectron2.config import CfgNode, get_cfg

from ovd_d2.config import add_ovd_config
from ovd_d2.errors import OVDError

_HEADS = "MODEL.ROI_HEADS.NAME"
# Nodes of a yaml with its aliases written out; ours have a few hundred.
_MOST_NODES = 100_000
_DETECTRON2_CONFIGS = (Path(detectron2.__file__).parent / "model_zoo" / "configs").resolve()


def load_config(config_file: str = "", opts: list[str] | None = None) -> CfgNode:
    """Defaults, then the file (and its ``_BASE_``), then ``opts``.

    Args:
        config_file: yaml; "" for the defaults alone. Python tags are refused but in Detectron2's
            own files (its RetinaNets have them).
        opts: "KEY", "value", "KEY", "value", ...

    Raises:
        OVDError: one sentence that names the file or key.
    """
    cfg = get_cfg()
    add_ovd_config(cfg)
    names: list[str] = []
    if config_file:
        if not os.path.isfile(config_file):
            raise OVDError(f"--config-file {config_file} does not exist.")
        files = list(_files_with_bases(config_file, cfg=cfg))
        names += [name for file in files for name in file.heads]
        try:
            cfg.merge_from_file(config_file, allow_unsafe=any(file.runs_code for file in files))
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
    names += [value for key, value in zip((opts or [])[::2], (opts or [])[1::2]) if key == _HEADS]
    _check_no_cascade_was_replaced(config_file, names)
    return cfg


def _check_no_cascade_was_replaced(config_file: str, names: list[str]) -> None:
    """Raises OVDError if the plain open-vocabulary head takes a cascade's place, in which nothing
    but its name says that it is one.

    Args:
        config_file: for the message.
        names: every MODEL.ROI_HEADS.NAME that was set, the one that counts last.
    """
    cascades = ("CascadeROIHeads", "OpenVocabCascadeROIHeads")
    before = [name for name in names if name != "OpenVocabROIHeads"]
    if names and names[-1] == "OpenVocabROIHeads" and before and before[-1] in cascades:
        raise OVDError(
            f"{_HEADS} is OpenVocabROIHeads, which has one stage, but {config_file or 'it'} is a "
            f"cascade ({before[-1]}): set {_HEADS} OpenVocabCascadeROIHeads, or take a config that "
            "is no cascade."
        )


@dataclass(frozen=True)
class _YamlFile:
    """One file of a config.

    Attributes:
        text: as it was read.
        content: its mapping, without those of its ``_BASE_``.
        runs_code: it holds python tags, and is one of Detectron2's own.
    """

    text: str
    content: dict[str, Any]
    runs_code: bool

    @property
    def heads(self) -> list[str]:
        """Its MODEL.ROI_HEADS.NAME, if any."""
        node: Any = self.content
        for key in _HEADS.split("."):
            node = node.get(key) if isinstance(node, dict) else None
        return [node] if isinstance(node, str) else []


def _files_with_bases(
    file: str, within: tuple[str, ...] = (), cfg: CfgNode | None = None
) -> Iterator[_YamlFile]:
    """The yaml, after its ``_BASE_`` files in the order in which fvcore merges them. Bases behind
    a web address are left to fvcore.

    Args:
        file: a yaml.
        within: the files whose ``_BASE_`` led here.
        cfg: the config that it is for.

    Raises:
        OVDError: what fvcore would fail on deep inside, or never finish: files that are not a
            mapping, and aliases and ``_BASE_`` files that go on and on.
    """
    where = f"{within[0]}: its _BASE_ file {file}" if within else file
    if os.path.realpath(file) in map(os.path.realpath, within):
        raise OVDError(f"{within[0]}: its _BASE_ files refer to each other in a circle.")
    if not os.path.isfile(file):
        raise OVDError(f"{where} does not exist.")
    found = _read_yaml(file, where, cfg or get_cfg())
    bases = found.content.get("_BASE_", [])
    for base in bases if isinstance(bases, list) else [bases]:
        if not isinstance(base, str) or not base:
            raise OVDError(f"{where}: _BASE_ is {base!r}; it must name a yaml file, or several.")
        if not base.startswith(("https://", "http://")):
            base = os.path.join(os.path.dirname(file), os.path.expanduser(base))
            yield from _files_with_bases(base, (*within, file), cfg)
    yield found


def _read_yaml(file: str, where: str, cfg: CfgNode) -> _YamlFile:
    try:
        text, runs_code = Path(file).read_text(encoding="utf-8"), False
        try:
            content = yaml.safe_load(text)
        except yaml.constructor.ConstructorError:
            if not Path(file).resolve().is_relative_to(_DETECTRON2_CONFIGS):
                raise
            content, runs_code = yaml.unsafe_load(text), True
    except Exception as error:
        raise OVDError(explain_config_error(where, error, cfg)) from error
    if not isinstance(content, dict):
        raise OVDError(f"{where} is not a mapping of config keys.")
    if _has_more_nodes(content, _MOST_NODES):
        raise OVDError(
            f"{where} stands for more than {_MOST_NODES} values once its aliases (*name) are "
            "written out: write out the few that are meant."
        )
    return _YamlFile(text, content, runs_code)


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
    for file in _files_with_bases(str(config_file)):
        digest.update(file.text.encode() + b"\0")
    digest.update(json.dumps(settings, default=list).encode())
    return digest.hexdigest()
