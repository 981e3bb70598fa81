"""Small MAVLs, golden files, and their public names of parameters as ours."""

from pathlib import Path

import numpy as np
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import Backbone
from small_glip import small_text_backbone
from torch import nn

from ovd_d2.checkpoint.mavl import renamed
from ovd_d2.modeling.decoders import DeformableTransformer, FeatureLevels, QueryHeads
from ovd_d2.modeling.fusion import LateFusion
from ovd_d2.modeling.meta_arch import MAVL
from ovd_d2.modeling.query_merging import QueryMerging
from ovd_d2.modeling.text_backbone import HuggingFaceTextBackbone
from ovd_d2.structures.grounding import CaptionTokens

GOLDEN = Path(__file__).parents[1] / "golden" / "mavl"
TOLERANCE = 1e-4  # of an array's largest number


def golden(name):
    """Arrays of a file as tensors; texts stay numpy's."""
    with np.load(GOLDEN / f"{name}.npz") as file:
        return {
            key: torch.from_numpy(value) if value.dtype.kind in "fiub" else value
            for key, value in file.items()
        }


def below(arrays, prefix):
    """What stands under a prefix, without it."""
    return {
        key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)
    }


def close(found, wanted, what="", tolerance=TOLERANCE):
    """Largest difference, relative to the largest number."""
    found, wanted = found.detach().double(), wanted.double()
    assert found.shape == wanted.shape, what
    if not wanted.numel():
        return
    size = max(wanted.abs().max().item(), 1e-12)
    difference = (found - wanted).abs().max().item() / size
    assert difference <= tolerance, f"{what}: {difference:.2e}"


def check_gradients(module, wanted, prefix="grad.w."):
    """Gradients of a module's parameters, by name."""
    expected = below(wanted, prefix)
    assert expected
    parameters = dict(module.named_parameters())
    for name, gradient in expected.items():
        close(parameters[name].grad, gradient, name)


class GivenMaps(Backbone):
    """In the place of a backbone: maps that are ready, whatever the image."""

    def __init__(self, maps):
        super().__init__()
        self.maps = {f"map{k}": one for k, one in enumerate(maps)}
        self.calls = 0

    def output_shape(self):
        return {
            name: ShapeSpec(channels=one.shape[1], stride=8 * 2**k)
            for k, (name, one) in enumerate(self.maps.items())
        }

    def forward(self, images):
        self.calls += 1
        return {name: one[: len(images)] for name, one in self.maps.items()}


class TinyBackbone(Backbone):
    """Three maps, of strides 8, 16 and 32, that depend on the image."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 8, stride=8)
        self.further = nn.ModuleList(nn.Conv2d(8, 8, 3, stride=2, padding=1) for _ in range(2))
        self.calls = 0

    def output_shape(self):
        return {f"map{k}": ShapeSpec(channels=8, stride=8 * 2**k) for k in range(3)}

    @property
    def size_divisibility(self):
        return 32

    def forward(self, images):
        self.calls += 1
        found = [self.stem(images)]
        for layer in self.further:
            found.append(layer(found[-1].relu()))
        return dict(zip(self.output_shape(), found))


def small_mavl(language=True, seed=0, **more):
    """A MAVL of all real parts but the backbone; what it says depends on image and text."""
    torch.manual_seed(seed)
    text = small_text_backbone() if language else None
    given = {"pixel_mean": [120.0] * 3, "pixel_std": [60.0] * 3, "dim": 32, "norm_groups": 4}
    model = mavl_of(TinyBackbone(), text_backbone=text, **{**given, **more})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(("heads.", "fusion.", "transformer.decoder")):
                parameter += 0.1 * torch.randn_like(parameter)
        model.heads.boxes[-1].weight.normal_()
        model.heads.classes.bias[-1] = 3.0 if language else 0.0
    return model


class Words:
    """In the place of a tokenizer: a text is token ids between blanks."""

    max_tokens = 20

    def __call__(self, captions, truncate=False):
        rows = [[int(word) for word in caption.split()] for caption in captions]
        return tokens_of([row + [1] * (max(map(len, rows)) - len(row)) for row in rows])


def tokens_of(ids, mask=None):
    """Token ids as the text backbone reads them; 1 is padding."""
    ids = torch.as_tensor(ids)
    mask = ids != 1 if mask is None else mask.bool()
    return CaptionTokens(ids, mask, torch.zeros(*ids.shape, 2, dtype=torch.int64))


def as_text(ids):
    """A row of token ids as :class:`Words` reads it."""
    return " ".join(str(one) for one in ids if one != 1)


def small_roberta(vocabulary=60, width=32, layers=2, heads=4, hidden=48, positions=24):
    from transformers import RobertaConfig, RobertaModel

    settings = RobertaConfig(
        vocab_size=vocabulary, hidden_size=width, num_hidden_layers=layers,
        num_attention_heads=heads, intermediate_size=hidden, max_position_embeddings=positions,
        type_vocab_size=1, layer_norm_eps=1e-5,
    )  # fmt: skip
    return HuggingFaceTextBackbone(model=RobertaModel(settings), tokenizer=Words())


def mavl_of(backbone, *, text_backbone=None, dim=64, heads=4, points=2, hidden=32,
            object_queries=20, layers=2, norm_groups=32, **more):  # fmt: skip
    """A MAVL on the CPU, in eval mode; without a text backbone one without language."""
    language = text_backbone is not None
    inner = {"dim": dim, "hidden": hidden}
    shapes = backbone.output_shape()
    parts = {
        "levels": FeatureLevels(
            [s.channels for s in shapes.values()], dim=dim, norm_groups=norm_groups
        ),
        "transformer": DeformableTransformer(
            queries=object_queries, heads=heads, points=points, encoder_layers=layers,
            decoder_layers=layers, all_layers=not language, **inner,
        ),
        "fusion": LateFusion(text_backbone.dim, **inner) if language else None,
        "heads": QueryHeads(dim, 256 if language else 2),
        "merging": QueryMerging(),
        "vocabulary": None,
        "in_features": list(shapes),
        "pixel_mean": [0.0] * 3,
        "pixel_std": [1.0] * 3,
    }  # fmt: skip
    return MAVL(backbone=backbone, text_backbone=text_backbone, **{**parts, **more}).eval()


def load_public(model: nn.Module, weights):
    """Weights by their public names; the backbone keeps its own."""
    ours = {renamed(name): value for name, value in weights.items()}
    ours = {name: value for name, value in ours.items() if ".pooler." not in name}
    ours.pop("text_backbone.model.embeddings.position_ids", None)
    missing, unexpected = model.load_state_dict(ours, strict=False)
    assert unexpected == [] and all(name.startswith("backbone.") for name in missing), missing
