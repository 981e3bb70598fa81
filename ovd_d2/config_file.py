"""Reads the yaml of a model: defaults, file, overrides, and one sentence for what is wrong."""

import difflib
import os
import re

import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.utils.file_io import PathManager

from ovd_d2.config import add_ovd_config
from ovd_d2.errors import OVDError

_HEADS = "MODEL.ROI_HEADS.NAME"


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
    if isinstance(error, yaml.constructor.ConstructorError):
        return f"{where} holds a yaml tag that could run code, which is refused: {error.problem}."
    if isinstance(error, yaml.YAMLError | UnicodeDecodeError):
        return f"{where} is not readable yaml: {' '.join(str(error).split())}."
    if isinstance(error, FileNotFoundError):
        return f"{where}: its _BASE_ file {error.filename} does not exist."
    if isinstance(error, RecursionError):
        return f"{where}: its _BASE_ files refer to each other in a circle."
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
