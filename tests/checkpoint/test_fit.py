"""Weights of another network are refused, those of the same backbone are a place to start."""

import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from torch import nn

from ovd_d2 import add_ovd_config
from ovd_d2.checkpoint import TRUST_VARIABLE, load_weights
from ovd_d2.checkpoint.atomic_checkpointer import AtomicCheckpointer
from ovd_d2.errors import OVDError

FASTER = "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml"
MASK = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml"
R101 = "COCO-Detection/faster_rcnn_R_101_FPN_3x.yaml"
C4 = "COCO-Detection/faster_rcnn_R_50_C4_1x.yaml"


def detector(yaml=FASTER, *opts):
    """A zoo config with very thin layers."""
    cfg = get_cfg()
    add_ovd_config(cfg)
    cfg.merge_from_file(model_zoo.get_config_file(yaml))
    cfg.MODEL.DEVICE = "cpu"
    narrow = ["MODEL.RESNETS.STEM_OUT_CHANNELS", 4, "MODEL.RESNETS.RES2_OUT_CHANNELS", 8,
              "MODEL.RESNETS.WIDTH_PER_GROUP", 4, "MODEL.FPN.OUT_CHANNELS", 8,
              "MODEL.ROI_BOX_HEAD.FC_DIM", 8, "MODEL.ROI_BOX_HEAD.CONV_DIM", 8,
              "MODEL.ROI_MASK_HEAD.CONV_DIM", 8]  # fmt: skip
    cfg.merge_from_list([*narrow, *opts])
    return build_model(cfg)


@pytest.fixture(scope="module")
def stock():
    return detector()


def fit(model, state):
    return load_weights(model, state, "file.pth")


def test_the_same_network_is_found_whole(stock):
    found = fit(detector(), stock.state_dict())
    found.check_whole()
    found.check_start()
    n = len(found.wanted)
    assert found.summary().startswith(
        f"{n} of {n} weights of the model found in file.pth (backbone"
    )
    assert "roi_heads.box_predictor 4 of 4" in found.summary()


def test_another_number_of_classes_is_a_start_but_not_whole(stock):
    model = detector(FASTER, "MODEL.ROI_HEADS.NUM_CLASSES", 3,
                     "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", [[1.0]])  # fmt: skip
    found = fit(model, stock.state_dict())
    found.check_start()
    assert {name.rsplit(".", 2)[1] for name in found.resized} == {
        "cls_score", "bbox_pred", "objectness_logits", "anchor_deltas",
    }  # fmt: skip
    with pytest.raises(OVDError, match=r"has shape \(\d+.*others differ.*config it was trained"):
        found.check_whole()


def test_another_width_is_refused(stock):
    for key, layer in (("ROI_BOX_HEAD.FC_DIM", r"fc2\.weight"), ("FPN.OUT_CHANNELS", "fpn_lateral"),
                       ("RESNETS.STEM_OUT_CHANNELS", r"stem\.conv1")):  # fmt: skip
        model = detector(FASTER, f"MODEL.{key}", 12)
        with pytest.raises(OVDError, match=rf"file\.pth: .*{layer}.* has shape"):
            fit(model, stock.state_dict()).check_start()


def test_further_or_fewer_heads_are_a_start(stock):
    mask = detector(MASK)
    found = fit(mask, stock.state_dict())
    found.check_start()
    assert "roi_heads.mask_head 0 of" in found.summary()
    with pytest.raises(
        OVDError, match=r"lacks \d+ of the model's \d+ weights, such as .*mask_head"
    ):
        found.check_whole()
    fit(stock, mask.state_dict()).check_whole()  # what is not asked for does no harm


@pytest.mark.parametrize("prefix", ["backbone.bottom_up.", ""])
def test_a_deeper_or_shallower_backbone_is_refused(stock, prefix):
    """Every tensor of R-50 is in R-101 in the same shape; half of R-101's are in R-50."""
    deep = detector(R101)
    strip = "" if prefix else "backbone.bottom_up."
    state = {k.removeprefix(strip): v for k, v in deep.state_dict().items()}
    if not prefix:  # names as in files of ImageNet; Detectron2's heuristics give them the prefix
        known = set(stock.state_dict())
        state = {f"backbone.bottom_up.{k}" if f"backbone.bottom_up.{k}" in known else k: v
                 for k, v in state.items()}  # fmt: skip
    found = fit(detector(), state)
    for check in (found.check_start, found.check_whole):
        with pytest.raises(OVDError, match=r"deeper network: it holds .*res4\.\d+.*ends with 5"):
            check()
    with pytest.raises(OVDError, match=r"\d+ of the 520 weights of the model's backbone.bottom_up"):
        fit(deep, stock.state_dict()).check_start()


def test_another_architecture_is_refused(stock):
    c4 = detector(C4)
    with pytest.raises(OVDError, match=r"rpn_head\.conv\.weight has shape \(8, 8, 3, 3\)"):
        fit(c4, stock.state_dict()).check_start()


def test_pretrained_backbones_are_a_start(stock, tmp_path, monkeypatch):
    """As Detectron2's converter of torchvision's files writes them, and as a plain state dict."""
    import pickle

    body = {k.removeprefix("backbone.bottom_up."): v.numpy() + 1
            for k, v in stock.state_dict().items() if "bottom_up" in k}  # fmt: skip
    monkeypatch.setenv(TRUST_VARIABLE, "1")
    content = {"model": body, "__author__": "torchvision", "matching_heuristics": True}
    (tmp_path / "r50.pkl").write_bytes(pickle.dumps(content))
    torch.save({k: torch.from_numpy(v) for k, v in body.items()}, tmp_path / "r50.pth")
    torch.save({f"backbone.bottom_up.{k}": torch.from_numpy(v) for k, v in body.items()},
               tmp_path / "named.pth")  # fmt: skip
    for name in ("r50.pkl", "r50.pth?matching_heuristics=True", "named.pth"):
        model = detector()
        AtomicCheckpointer(model).load(str(tmp_path / name))
        mine = model.backbone.bottom_up.res2[0].conv1.weight
        theirs = torch.from_numpy(body["res2.0.conv1.weight"])
        assert torch.equal(mine, theirs)
        with pytest.raises(OVDError, match="lacks"):
            AtomicCheckpointer(detector(), whole=True).load(str(tmp_path / name))
    with pytest.raises(OVDError, match="holds none of the model's .* weights"):
        AtomicCheckpointer(detector()).load(str(tmp_path / "r50.pth"))


def test_caffe2_weights_without_statistics_are_a_start(stock, tmp_path, monkeypatch):
    """MSRA's files have scale and offset of frozen batch norms alone: mean 0 and variance 1."""
    import pickle

    monkeypatch.setenv(TRUST_VARIABLE, "1")
    blobs = {"fc1000_w": torch.zeros(5, 5).numpy()}
    for name, value in stock.backbone.bottom_up.state_dict().items():
        *layer, leaf = name.split(".")
        norm = layer[-1] == "norm"
        ending = {"weight": "bn_s", "bias": "bn_b"}.get(leaf) if norm else "w"
        if ending is None:
            continue
        if layer[0] == "stem":
            blobs[f"res_conv1_{ending}" if norm else "conv1_w"] = value.numpy()
            continue
        branch = {"shortcut": "branch1", "conv1": "branch2a", "conv2": "branch2b",
                  "conv3": "branch2c"}[layer[2]]  # fmt: skip
        blobs[f"{layer[0]}_{layer[1]}_{branch}_{ending}"] = value.numpy()
    assert len(blobs) == 1 + 53 * 3
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps(blobs))
    model = detector()
    AtomicCheckpointer(model).load(str(tmp_path / "R-50.pkl"))
    assert torch.equal(
        model.backbone.bottom_up.res5[2].conv3.weight, stock.backbone.bottom_up.res5[2].conv3.weight
    )


def test_models_without_backbone_need_one_part():
    model = nn.ModuleDict({"image": nn.Linear(2, 3), "text": nn.Linear(4, 5)})
    state = {k: v for k, v in model.state_dict().items() if k.startswith("image")}
    fit(model, state).check_start()
    with pytest.raises(OVDError, match="1 of the 2 weights of the model's image"):
        fit(model, {"image.bias": state["image.bias"]}).check_start()
    with pytest.raises(OVDError, match=r"image\.weight has shape \(1, 2\)"):
        fit(model, {**state, "image.weight": torch.zeros(1, 2)}).check_start()


def test_another_text_encoder_is_refused_whatever_the_length_of_its_id():
    from ovd_d2.modeling.classifiers.embedding_classifier import EmbeddingClassifier

    def classifier(encoder):
        one = EmbeddingClassifier(4, 2)
        one.set_class_embeddings(torch.eye(2), encoder)
        return nn.ModuleDict({"head": one})

    for stored in ("hash@1", "another-hash@1"):
        state = classifier(stored).state_dict()
        fit(classifier(stored), state).check_whole()
        with pytest.raises(OVDError, match=f'was trained with text encoder "{stored}"'):
            fit(classifier("hash@2"), state)
    foreign = {k: v for k, v in state.items() if not k.endswith("bytes")}
    fit(classifier("hash@2"), foreign).check_whole()
