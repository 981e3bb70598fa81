"""Reads the yaml of a model: defaults, file, overrides, and one sentence for what is wrong."""

import difflib
import os
import re

import yaml
from detectron2.config import CfgNode, get_cfg

from ovd_d2.config import add_ovd_config
from ovd_d2.errors import OVDError


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
    return cfg


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
