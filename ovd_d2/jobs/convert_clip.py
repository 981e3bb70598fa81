"""Converts state dicts of OpenAI's CLIP to ours, and ours to theirs."""

from pathlib import Path

from ovd_d2.checkpoint import (
    check_weights_name,
    from_openai_clip,
    is_openai_clip,
    read_state_dict,
    to_openai_clip,
    write_state_dict,
)
from ovd_d2.errors import OVDError
from ovd_d2.files.atomic import check_output
from ovd_d2.jobs.convert_checkpoint import Conversion


def convert_clip(source: Path, out: Path) -> Conversion:
    """OpenAI's archive or state dict as a checkpoint of ``MODEL.META_ARCHITECTURE CLIP``.

    Args:
        source: .pt, .pth or .safetensors.
        out: .pth or .safetensors.

    Raises:
        OVDError: what is wrong with a file; nothing is written then.
    """
    _check(source, out)
    state = read_state_dict(str(source))
    if not is_openai_clip(state):
        raise OVDError(
            f"{source} has no visual. and token_embedding: it is no CLIP by OpenAI's names; a "
            "checkpoint of ours is written for OpenAI's code with --reverse."
        )
    weights = from_openai_clip(state)
    write_state_dict(str(out), weights)
    return Conversion(len(weights), ("for configs/clip/*.yaml, as MODEL.WEIGHTS",))


def convert_to_clip(source: Path, out: Path) -> Conversion:
    """A checkpoint of ``MODEL.META_ARCHITECTURE CLIP`` as OpenAI's state dict; arguments and errors
    as for :func:`convert_clip`."""
    _check(source, out)
    weights = to_openai_clip(read_state_dict(str(source)))
    write_state_dict(str(out), weights, under="state_dict")
    facts = (f"a text encoder and teacher as openai-clip:{out}",)
    return Conversion(len(weights), facts)


def _check(source: Path, out: Path) -> None:
    check_weights_name(str(out))
    check_output("--out", out)
    if out.resolve() == source.resolve():
        raise OVDError(f"--out {out} is FILE itself: choose another name.")
