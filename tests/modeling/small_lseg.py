"""LSegs of a few thousand weights: the golden numbers' two networks, and one from a config."""

import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone, build_model
from lseg_golden import below, golden
from torch import nn

from ovd_d2 import add_ovd_config
from ovd_d2.checkpoint.lseg import from_lseg
from ovd_d2.language import GivenEmbeddings, RandomEmbeddings, TextEmbeddings
from ovd_d2.layers.spatial_regulariser import SpatialRegulariser
from ovd_d2.modeling import LSeg, set_vocabulary
from ovd_d2.modeling.backbone import TimmViTPyramid
from ovd_d2.modeling.classifiers import PixelClassifier
from ovd_d2.modeling.decoders import DPTDecoder

CHANNELS = (8, 12, 16, 20)
STRIDES = (4, 8, 16, 32)
NAMES = ("others", "cat", "red mug", "zebra crossing", "wall")


class Stages(Backbone):
    """Four convolutions with ReLU, of the golden few-shot network."""

    def __init__(self):
        super().__init__()
        widths = zip((3, *CHANNELS[:3]), CHANNELS, (4, 2, 2, 2))
        self.net = nn.ModuleDict(
            {
                f"layer{place + 1}": nn.Sequential(nn.Conv2d(a, b, 3, stride=s, padding=1))
                for place, (a, b, s) in enumerate(widths)
            }
        )

    def forward(self, x):
        maps = {}
        for stride, stage in zip(STRIDES, self.net.values()):
            x = maps[f"stride{stride}"] = stage(x).relu()
        return maps

    def output_shape(self):
        return {f"stride{s}": ShapeSpec(channels=c, stride=s) for c, s in zip(CHANNELS, STRIDES)}


def small_vit():
    import timm

    torch.manual_seed(0)
    vit = timm.models.VisionTransformer(
        img_size=64, patch_size=16, embed_dim=24, depth=6, num_heads=3, mlp_ratio=2, num_classes=3
    )
    return TimmViTPyramid(vit, blocks=(0, 2, 3, 5), channels=CHANNELS)


def lseg(backbone, rows=None, regulariser=None, half=False, **options):
    """With the words NAMES, at random or as ``rows`` (5, 32); pixels go in as they come."""
    embedder = RandomEmbeddings(32)
    if rows is not None:
        embedder = GivenEmbeddings(TextEmbeddings(rows, NAMES, "golden"))
    return LSeg(
        backbone=backbone,
        decoder=DPTDecoder(CHANNELS, 16),
        head=PixelClassifier(16, 32, regulariser=regulariser, half=half),
        in_features=[f"stride{s}" for s in STRIDES],
        vocabulary=NAMES,
        class_embedder=embedder,
        pixel_mean=[0.0] * 3,
        pixel_std=[1.0] * 3,
        **options,
    )


def public_weights(name: str) -> dict[str, torch.Tensor]:
    """Of a golden network, under their names, without CLIP."""
    found = below(golden(name), "w.")
    return {k: v for k, v in found.items() if k.startswith(("pretrained.", "scratch."))}


def golden_lseg(name: str, rows=None, kind: str = "", depth: int = 1, half: bool = False) -> LSeg:
    """``lsegnet_tiny`` or ``lsegnet_fewshot_tiny`` as one of ours, with the golden weights."""
    regulariser = SpatialRegulariser(kind, depth=depth) if kind else None
    backbone = small_vit() if name == "lsegnet_tiny" else Stages()
    model = lseg(backbone, rows, regulariser, half)
    weights = public_weights(name)
    if name == "lsegnet_fewshot_tiny":  # plain stages, no torchvision ResNet
        stages = {k: v for k, v in weights.items() if k.startswith("pretrained.")}
        weights = {k: v for k, v in weights.items() if k not in stages}
        backbone.load_state_dict({k.replace("pretrained", "net"): v for k, v in stages.items()})
    if kind:
        weights |= below(golden(name), "w_block.")
    lost = model.load_state_dict(from_lseg(weights).weights, strict=False)
    expected = {"head.encoder_id_bytes"}
    if name == "lsegnet_fewshot_tiny":
        expected |= {f"backbone.{key}" for key in backbone.state_dict()}
    assert set(lost.missing_keys) <= expected and not lost.unexpected_keys
    return model


def small_cfg(*options):
    """tf_efficientnet_lite0 under a narrow decoder, classes later."""
    cfg = get_cfg()
    add_ovd_config(cfg)
    cfg.merge_from_list([
        "MODEL.META_ARCHITECTURE", "LSeg", "MODEL.DEVICE", "cpu",
        "MODEL.BACKBONE.NAME", "build_timm_backbone",
        "MODEL.TIMM.NAME", "tf_efficientnet_lite0", "MODEL.TIMM.OUT_STRIDES", [4, 8, 16, 32],
        "MODEL.LSEG.WIDTH", 16, "MODEL.OPEN_VOCAB.EMBED_DIM", 32,
        "MODEL.OPEN_VOCAB.VOCABULARY", "later", "DATASETS.TRAIN", (), "DATASETS.TEST", (),
        *options,
    ])  # fmt: skip
    return cfg


def small_lseg(*options, names=NAMES):
    """A model of :func:`small_cfg` with random words."""
    torch.manual_seed(0)
    model = build_model(small_cfg(*options))
    if names:
        set_vocabulary(model, list(names), RandomEmbeddings(model.head.embed_dim))
    return model


def sample(size=(64, 96), seed=0, classes=5, **fields):
    """An image with a label map, a corner of which has no class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, size, generator=generator)
    labels[:5, :7] = 255
    return {
        "image": torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8),
        "sem_seg": labels, "height": size[0], "width": size[1], **fields,
    }  # fmt: skip
