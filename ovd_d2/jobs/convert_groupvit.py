"""Converts checkpoints of GroupViT between our names, NVlabs' and transformers'."""

import json
from pathlib import Path
from typing import Any

from ovd_d2.checkpoint import (
    CLASSES_OF_SETTINGS,
    check_weights_name,
    convert_groupvit_names,
    plain_settings,
    read_with_inert_objects,
    state_dict_in,
    write_state_dict,
)
from ovd_d2.checkpoint.groupvit import NAMINGS
from ovd_d2.errors import OVDError
from ovd_d2.files.atomic import check_output
from ovd_d2.jobs.convert_checkpoint import Conversion

_FILES = ("model.safetensors", "pytorch_model.bin")
_LICENCE = (
    "weights that NVlabs has released are under its licence, for non-commercial use alone, in "
    "whatever format"
)


def convert_groupvit(source: Path, out: Path, naming: str = "ours") -> Conversion:
    """A checkpoint of GroupViT in another naming.

    Args:
        source: .pth or .safetensors in any naming, or a folder of transformers. Nothing in it is
            run, though NVlabs' files hold objects.
        out: .pth or .safetensors.
        naming: to be written: "ours", "nvlabs" or "transformers".

    Raises:
        OVDError: what is wrong with a file; nothing is written then.
    """
    if naming not in NAMINGS:
        raise OVDError(f"--to {naming} is unknown; it must be {', '.join(NAMINGS)}.")
    check_weights_name(str(out))
    check_output("--out", out)
    file = _file_in(source)
    if file.resolve() == out.resolve():
        raise OVDError(f"--out {out} is the file that is converted: choose another name.")
    content = read_with_inert_objects(str(file), CLASSES_OF_SETTINGS)
    found = convert_groupvit_names(state_dict_in(content, str(file)), naming)
    shape = {**found.shape, **_heads(source, content)}
    facts = [f"MODEL.GROUPVIT: {', '.join(f'{key} {value}' for key, value in shape.items())}"]
    if "HEADS" not in shape:
        facts.append("the weights do not tell MODEL.GROUPVIT.HEADS; released models have 6")
    if found.left_out:
        facts.append(f"left out, for they have no counterpart: {', '.join(found.left_out)}")
    if found.naming != "ours":
        facts.append(_LICENCE)
    write_state_dict(str(out), found.weights)
    return Conversion(len(found.weights), tuple(facts))


def _file_in(source: Path) -> Path:
    if not source.is_dir():
        return source
    for name in _FILES:
        if (source / name).is_file():
            return source / name
    raise OVDError(f"The folder {source} has neither {' nor '.join(_FILES)}: name a file.")


def _heads(source: Path, content: Any) -> dict[str, int]:
    """Heads of attention, where a configuration beside the weights tells them."""
    try:
        if source.is_dir():
            settings = json.loads((source / "config.json").read_text(encoding="utf-8"))
            image, text = (settings[f"{part}_config"] for part in ("vision", "text"))
            return {
                "HEADS": int(image["num_attention_heads"]),
                "TEXT.HEADS": int(text["num_attention_heads"]),
            }
        model = plain_settings(content["config"])["model"]
        return {"HEADS": int(model["img_encoder"]["num_heads"])}
    except (OSError, KeyError, TypeError, ValueError):  # there is none, or not of that kind
        return {}
