"""Graphs of detectors find what the detectors find: all kinds, sizes, vocabularies and formats."""

import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parents[1] / "modeling"))

from small_detclip import detclip_config, small_detclip
from small_detectors import DIM, zoo_cfg

from ovd_d2.errors import OVDError
from ovd_d2.inference import detector_graphs
from ovd_d2.inference.detector_graphs import GRAPHS, EnsembleOfInputs, check_meta_architecture
from ovd_d2.inference.graph_check import Comparison, Found, find_by_graph, find_eagerly
from ovd_d2.inference.graph_files import FORMATS, input_names
from ovd_d2.inference.graph_selection import best_pairs, class_wise_nms
from ovd_d2.language import TextEmbeddings, Vocabulary
from ovd_d2.modeling import DetCLIP, set_vocabulary
from ovd_d2.modeling.roi_heads.score_fusion import ScoreRule

__all__ = ["zoo_cfg"]

SIGMOID = ("MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", True, "MODEL.OPEN_VOCAB.BACKGROUND", "zero",
           "MODEL.OPEN_VOCAB.USE_BIAS", True)  # fmt: skip
WEIGHT_TRANSFER = ("MODEL.OPEN_VOCAB.PROJECTION", "weight_transfer")
KINDS = {
    "fpn": ("fpn",),
    "c4": ("c4",),
    "cascade": ("cascade",),
    "ensemble": (
        "fpn",
        "MODEL.IMAGE_BRANCH.NAME",
        "DistilledImageBranch",
        "MODEL.REGION_DISTILLATION.WEIGHT",
        0.5,
    ),
    "rkd": ("c4", *SIGMOID, *WEIGHT_TRANSFER),
    "objectness": ("fpn", *SIGMOID, "MODEL.OPEN_VOCAB.MULT_PROPOSAL_SCORE", True),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("graphs")


@pytest.fixture
def detector(request, zoo_cfg):
    """``detector(kind)``: a random model in eval mode that keeps detections of any score."""
    from detectron2.modeling import build_model

    def make(kind):
        if kind == "detclip":
            return small_detclip()
        if kind == "shifted windows":
            return detclip_of_two_blocks()
        family, *opts = KINDS[kind]
        opts += ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "MODEL.OPEN_VOCAB.LOGIT_SCALE", 20.0]
        # Random weights have not learned to expect pixels of 0-255 (activations of thousands).
        opts += ["MODEL.PIXEL_STD", [1000.0] * 3]
        if family != "c4":  # a graph of few layers is written sooner
            opts += ["MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64]
            opts += ["MODEL.RESNETS.WIDTH_PER_GROUP", 64, "MODEL.RESNETS.STEM_OUT_CHANNELS", 64]
            opts += ["MODEL.MASK_ON", kind != "objectness"]
        torch.manual_seed(0)
        return build_model(zoo_cfg(family, 5, *opts)).eval()

    return make


def detclip_of_two_blocks():
    """A Swin Transformer shifts the windows of every second block: whole windows are counted."""
    cfg = detclip_config()
    cfg.MODEL.SWIN.DEPTHS = [2, 2, 2, 2]
    torch.manual_seed(0)
    model = DetCLIP(cfg).eval()
    model.head.load_state_dict(small_detclip().head.state_dict())
    return model


def graph_of(model, score_threshold=None):
    return GRAPHS[type(model).__name__](model, score_threshold).eval()


def width_of(model):
    return model.head.embedding.out_channels if type(model).__name__ == "DetCLIP" else DIM


def picture(height, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)


def give_classes(model, count):
    """Random classes, every third one novel; their rows (not normalised) and flags."""
    rows = torch.randn(count, width_of(model), generator=torch.Generator().manual_seed(count)) * 3
    names = tuple(f"thing {k}" for k in range(count))
    novel = tuple(k % 3 == 2 for k in range(count))
    set_vocabulary(model, Vocabulary(names, is_novel=novel), TextEmbeddings(rows, names, "by hand"))
    return rows.numpy(), np.array(novel)


def both(model, run, image, count, threshold=0.0):
    """What the model and its graph find."""
    rows, novel = give_classes(model, count)
    given = (image.permute(1, 2, 0).contiguous().numpy(), rows)
    return find_eagerly(model, image, threshold), find_by_graph(run, given, novel, "")


# Larger and smaller than what was traced (150 x 172 pixels, 2 classes); one class; more pairs than
# go through one NMS; more (20 regions x 1203) than are looked at.
CASES = [(96, 128, 1), (96, 128, 1203), (200, 160, 3), (200, 160, 90)]


@pytest.mark.parametrize("kind", [*KINDS, "detclip", "shifted windows"])
def test_a_graph_finds_what_the_model_finds(detector, kind, folder):
    model = detector(kind)
    graph = graph_of(model)
    assert input_names(graph)[2:] == ["is_novel"] * (kind == "ensemble")
    for name, kind_of_file in FORMATS.items():
        path = folder / f"{kind}-{kind_of_file.file}"
        kind_of_file.write(graph, path, {"embed_dim": width_of(model)})
        run = kind_of_file.open(path)
        comparison = Comparison(0.0, graph.most)
        for height, width, count in CASES:
            before = comparison.detections
            eager, found = both(model, run, picture(height, width), count)
            assert (found.masks is not None) == graph.masks == (eager.masks is not None)
            assert len(found.scores) == len(eager.scores) > 0
            comparison.add(eager, found, 0, f"{kind} {name} {height} {width} {count}")
            assert comparison.detections - before >= 0.9 * len(eager.scores)
        assert comparison.detections > 100
        path.unlink()


@pytest.mark.parametrize("kind", ["fpn", "detclip"])
def test_nothing_found_is_empty(detector, kind, folder):
    model = detector(kind)
    graph = graph_of(model, 0.999)
    for kind_of_file in FORMATS.values():
        path = folder / f"empty-{kind_of_file.file}"
        kind_of_file.write(graph, path, {"embed_dim": width_of(model)})
        rows, novel = give_classes(model, 7)
        pixels = picture(96, 128).permute(1, 2, 0).contiguous().numpy()
        found = kind_of_file.open(path)(pixels, rows, novel)
        assert found["boxes"].shape == (0, 4) and found["scores"].shape == (0,)
        assert found["classes"].shape == (0,) and found["classes"].dtype == np.int64
        if graph.masks:
            assert found["masks"].shape[0] == 0 and found["masks"].ndim == 3
        path.unlink()


def test_the_model_is_as_before(detector, folder):
    model = detector("ensemble")
    give_classes(model, 4)
    rows, rule = (
        model.roi_heads.box_predictor.cls_score.class_embeddings,
        model.roi_heads.score_rule,
    )
    path = folder / "as-before"
    FORMATS["torchscript"].write(graph_of(model), path, {"embed_dim": DIM})
    assert model.roi_heads.box_predictor.cls_score.class_embeddings is rows
    assert model.roi_heads.score_rule is rule


def test_novel_classes_count(detector, folder):
    """The third input changes scores as it does in the model."""
    model = detector("ensemble")
    path = folder / "novel"
    FORMATS["torchscript"].write(graph_of(model), path, {"embed_dim": DIM})
    run = FORMATS["torchscript"].open(path)
    rows, novel = give_classes(model, 6)
    pixels = picture(96, 128).permute(1, 2, 0).contiguous().numpy()
    best = [run(pixels, rows, flags)["scores"][0] for flags in (novel, np.zeros(6, bool), ~novel)]
    assert abs(best[0] - best[1]) > 1e-3 and abs(best[0] - best[2]) > 1e-3


def test_without_the_patch_shifted_windows_are_those_of_the_traced_size(folder, monkeypatch):
    """Why it is there; and that the check sees it."""
    monkeypatch.setattr(detector_graphs, "_traceable_swin", nullcontext)
    model, path = detclip_of_two_blocks(), folder / "unpatched"
    FORMATS["torchscript"].write(graph_of(model), path, {"embed_dim": width_of(model)})
    with pytest.raises(OVDError, match="running it fails"):
        both(model, FORMATS["torchscript"].open(path), picture(200, 160), 3)


def test_best_pairs():
    scores = torch.tensor([[0.1, 0.9, 0.0], [0.5, 0.2, 0.8]])
    rows, classes, values = best_pairs(scores, 0.1, 20)
    assert values.tolist() == pytest.approx([0.9, 0.8, 0.5, 0.2])
    assert (rows.tolist(), classes.tolist()) == ([0, 1, 1, 1], [1, 2, 0, 1])
    assert len(best_pairs(scores, 0.1, 2)[0]) == 2 and len(best_pairs(scores, 1.0, 9)[0]) == 0


@pytest.mark.parametrize("shifted_up_to", [0, 1000])
def test_class_wise_nms(shifted_up_to):
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(300, 2, generator=generator) * 60
    boxes = torch.cat([corners, corners + 10 + torch.rand(300, 2, generator=generator) * 30], dim=1)
    scores = torch.rand(300, generator=generator).sort(descending=True).values
    classes = torch.randint(4, (300,), generator=generator)
    kept = class_wise_nms(boxes, scores, classes, 0.5, shifted_up_to)
    wanted = []
    for i in range(300):
        same = [j for j in wanted if classes[j] == classes[i]]
        if all(iou(boxes[i], boxes[j]) <= 0.5 for j in same):
            wanted.append(i)
    assert kept.tolist() == wanted and 20 < len(wanted) < 250


def iou(a, b):
    width = max(0.0, float(min(a[2], b[2]) - max(a[0], b[0])))
    height = max(0.0, float(min(a[3], b[3]) - max(a[1], b[1])))
    areas = [float((c[2] - c[0]) * (c[3] - c[1])) for c in (a, b)]
    return width * height / (sum(areas) - width * height)


def some_detections(count=5):
    generator = torch.Generator().manual_seed(1)
    corners = torch.rand(count, 2, generator=generator) * 50
    masks = torch.rand(count, 20, 20, generator=generator) > 0.5
    return Found(torch.cat([corners, corners + 20], dim=1), torch.linspace(0.9, 0.2, count),
                 torch.arange(count), masks)  # fmt: skip


def changed(found, **fields):
    return Found(**{**vars(found), **fields})


def test_a_comparison_takes_any_order():
    found, comparison = some_detections(), Comparison(0.1, 100)
    turned = Found(*(value.flip(0) for value in vars(found).values()))
    comparison.add(found, turned, 0, "here")
    assert (comparison.detections, comparison.box, comparison.score) == (5, 0.0, 0.0)
    comparison.add(found, changed(found, boxes=found.boxes + 9e-4), 0, "here")
    assert comparison.detections == 10 and comparison.box == pytest.approx(9e-4, rel=0.01)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: {"boxes": f.boxes + 2e-3}, "the graph lacks 5 of 5 detections"),
        (lambda f: {"scores": f.scores + 2e-3}, "the graph lacks 5 of 5"),
        (lambda f: {"classes": f.classes + 1}, "the graph lacks"),
        (lambda f: {name: value[:4] for name, value in vars(f).items()}, "the graph lacks 1 of 5"),
        (lambda f: {"masks": ~f.masks}, "100.00% of the masks' pixels"),
    ],
)
def test_a_comparison_sees_differences(change, message):
    found = some_detections()
    other = changed(found, **change(found))
    with pytest.raises(OVDError, match=message):
        Comparison(0.1, 100).add(found, other, 0, "here")
    if "lacks" in message:
        with pytest.raises(OVDError, match="lacks"):
            Comparison(0.1, 100).add(other, found, 0, "here")


def test_what_just_reaches_the_threshold_may_be_missing():
    found = some_detections()
    more = Found(*(torch.cat([value, value[:1]]) for value in vars(found).values()))
    more.scores[-1] = 0.10001
    Comparison(0.1, 100).add(found, more, 0, "here")
    with pytest.raises(OVDError, match="the model lacks 1 of 6"):
        Comparison(0.0999, 100).add(found, more, 0, "here")


def test_only_the_limit_may_cut_differently():
    """Of 5 detections at most, the worst may be another one on each side, but no better one."""
    found = some_detections()
    worst = changed(found, classes=torch.tensor([0, 1, 2, 3, 9]))
    Comparison(0.1, 5).add(found, worst, 0, "here")
    with pytest.raises(OVDError, match="the graph lacks 1 of 5"):
        Comparison(0.1, 6).add(found, worst, 0, "here")
    better = changed(found, classes=torch.tensor([0, 1, 2, 9, 4]))
    with pytest.raises(OVDError, match="the graph lacks 1 of 5"):
        Comparison(0.1, 5).add(found, better, 0, "here")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("GLIP", "GLIP cannot be exported as a graph: it reads the names together with"),
        ("LSeg", "gives label maps"),
        ("GroupViT", "gives label maps"),
        ("HuggingFaceDetector", "transformers"),
        ("RetinaNet", "is none of GeneralizedRCNN, DetCLIP"),
    ],
)
def test_other_architectures_are_refused(name, reason):
    with pytest.raises(OVDError, match=reason) as error:
        check_meta_architecture(name)
    assert "--format folder" in str(error.value)


@pytest.mark.parametrize(
    ("family", "opts", "reason"),
    [
        ("fpn", ("MODEL.ROI_HEADS.NAME", "StandardROIHeads"), "fixed set of classes"),
        ("fpn", ("MODEL.IMAGE_BRANCH.NAME", "TeacherOnCrops"), "on a crop of every region"),
        ("c4", ("MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals"), "it has no RPN"),
    ],
)
def test_what_no_graph_can_hold_is_refused(zoo_cfg, family, opts, reason):
    from detectron2.modeling import build_model

    model = build_model(zoo_cfg(family, 3, *opts)).eval()
    with pytest.raises(OVDError, match=reason):
        graph_of(model)


@pytest.mark.parametrize("power", [1.0, 3.5])
@pytest.mark.parametrize("partner", ["text", "objectness"])
@pytest.mark.parametrize("novel", [[False, True, True], [False] * 3])
def test_the_ensemble_of_a_graph_is_that_of_the_model(partner, novel, power):
    rule = ScoreRule(combine="ensemble", novel_partner=partner, novel_power=power)
    graph = EnsembleOfInputs(rule)
    graph.novel = torch.tensor(novel)
    text, image, objectness = torch.rand(5, 4), torch.rand(5, 3), torch.rand(5)
    found = graph(text, image, objectness, [])
    torch.testing.assert_close(found, rule(text, image, objectness, novel))
