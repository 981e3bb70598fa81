"""Names of parameters of OpenAI's CLIP (github.com/openai/CLIP), and ours.

=========================  ==========================
ours (``MODEL.CLIP``)      OpenAI's, also open_clip's
=========================  ==========================
``image_tower.visual.``    ``visual.``
``text_tower.``            none: the text side is at the top
``logit_scale``            ``logit_scale``
=========================  ==========================
"""

from collections.abc import Mapping

from torch import Tensor

from ovd_d2.errors import OVDError

_VISUAL, _IMAGE, _TEXT, _SCALE = "visual.", "image_tower.visual.", "text_tower.", "logit_scale"
# In OpenAI's archives beside the weights: facts, and masks that are made anew.
_FACTS = ("input_resolution", "context_length", "vocab_size")
_MASK = "attn_mask"


def weights_of_openai_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict without the facts and masks of OpenAI's archives."""
    return {
        name: value
        for name, value in state.items()
        if name not in _FACTS and name.rpartition(".")[2] != _MASK
    }


def is_openai_clip(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict has both sides of a CLIP by OpenAI's names."""
    return "token_embedding.weight" in state and any(name.startswith(_VISUAL) for name in state)


def from_openai_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """OpenAI's state dict by our names, for the image towers "clip_vit" and "clip_resnet" with the
    text tower "transformer"."""
    weights = weights_of_openai_clip(state)
    return {_ours(name): value for name, value in weights.items()}


def _ours(name: str) -> str:
    if name.startswith(_VISUAL):
        return _IMAGE + name.removeprefix(_VISUAL)
    return name if name == _SCALE else _TEXT + name


def to_openai_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The reverse of :func:`from_openai_clip`.

    Raises:
        OVDError: a tower that OpenAI's model does not have.
    """
    weights = {}
    for name, value in state.items():
        if name.startswith(_IMAGE):
            theirs = _VISUAL + name.removeprefix(_IMAGE)
        elif name.startswith(_TEXT) or name == _SCALE:
            theirs = name.removeprefix(_TEXT)
        else:
            theirs = ""
        if not theirs or name.startswith((f"{_TEXT}model.", f"{_TEXT}projection.")):
            raise OVDError(
                f"{name} is no parameter of OpenAI's CLIP: only models with MODEL.CLIP.IMAGE_TOWER "
                "clip_vit or clip_resnet and TEXT_TOWER transformer can be written for it."
            )
        weights[theirs] = value
    if not is_openai_clip(weights):
        raise OVDError(
            "There is no image_tower and text_tower in it: this is no checkpoint of CLIP."
        )
    return weights
