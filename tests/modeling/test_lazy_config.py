"""LazyConfig: names and encoders in nodes, the shipped example trained, and ViTDet's shape."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig, instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import SimpleTrainer
from detectron2.evaluation import inference_on_dataset
from detectron2.layers import ShapeSpec
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from small_detectors import DIM, make_batch, make_target
from small_detectors import training_losses as losses_of
from test_region_distillation import with_regions

from ovd_d2.encoders import registry as text_encoders
from ovd_d2.language import TextEmbeddings
from ovd_d2.modeling import (
    OpenVocabBoxPredictor,
    OpenVocabCascadeROIHeads,
    OpenVocabROIHeads,
    get_vocabulary,
    set_vocabulary,
)
from ovd_d2.modeling.classifiers import EmbeddingClassifier
from ovd_d2.modeling.roi_heads import RegionDistiller, RegionTask
from ovd_d2.structures import Supervision

EXAMPLE = Path(__file__).resolve().parents[2] / "configs/lazy/mask_rcnn_R_50_FPN_open_vocab.py"
TRAINED, ASKED = ("circle", "square", "triangle"), ("star", "square")


class LetterEncoder:
    """Counts letters: a text encoder of no weight."""

    encoder_id, dim = "letters@000000000000", DIM

    def encode(self, texts):
        rows = [[t.count(chr(97 + k)) + t.count(chr(113 + k)) + 0.1 for k in range(DIM)]
                for t in texts]  # fmt: skip
        return torch.nn.functional.normalize(torch.tensor(rows), dim=1)


@pytest.fixture
def letters(monkeypatch, tmp_path):
    scheme = text_encoders.EncoderScheme(
        lambda rest: LetterEncoder.encoder_id, lambda rest, device: LetterEncoder(), rest=None
    )
    monkeypatch.setitem(text_encoders._SCHEMES, "letters", scheme)
    monkeypatch.setenv("OVD_D2_CACHE", str(tmp_path / "cache"))
    return "letters"


@pytest.fixture
def shapes(tmp_path):
    """Four pictures under two names of data sets: what was trained, and what is asked."""
    rng, images, annotations = np.random.default_rng(0), [], []
    for i in range(4):
        Image.fromarray(rng.integers(0, 256, (64, 80, 3), dtype=np.uint8)).save(
            tmp_path / f"{i}.png"
        )
        images.append({"id": i, "file_name": f"{i}.png", "height": 64, "width": 80})
        box = {"bbox": [8, 8, 40, 40], "area": 1600, "iscrowd": 0,
               "segmentation": [[8, 8, 48, 8, 48, 48, 8, 48]]}  # fmt: skip
        annotations.append({"id": i + 1, "image_id": i, "category_id": 1 + i % 2, **box})
    registered = {"lazy_trained": TRAINED, "lazy_asked": ASKED}
    for name, classes in registered.items():
        categories = [{"id": k + 1, "name": one} for k, one in enumerate(classes)]
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps({"images": images, "annotations": annotations,
                                    "categories": categories, "info": {}}))  # fmt: skip
        register_coco_instances(name, {}, str(path), str(tmp_path))
    yield
    for name in registered:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def make_small(model: DictConfig) -> None:
    """R18 and few channels and proposals in a Mask R-CNN of the lazy zoo."""
    stages = model.backbone.bottom_up.stages
    stages.depth = 18
    del stages.stride_in_1x1
    model.backbone.out_channels = model.proposal_generator.head.in_channels = 16
    model.proposal_generator.update(post_nms_topk=(50, 20))
    shrink_heads(model.roi_heads)


def shrink_heads(heads: DictConfig) -> None:
    heads.batch_size_per_image = 16
    heads.box_head.update(input_shape=ShapeSpec(channels=16, height=7, width=7), fc_dims=[32])
    heads.box_predictor.update(input_shape=ShapeSpec(channels=32), test_score_thresh=0.0)
    heads.box_predictor.classifier.update(in_features=32, embed_dim=DIM)
    heads.mask_head.update(
        input_shape=ShapeSpec(channels=16, width=14, height=14), conv_dims=[8, 8]
    )


def test_the_example_trains_and_is_evaluated_on_other_names(letters, shapes, tmp_path):
    """As Detectron2's lazyconfig_train_net.py does it: three steps, then AP under other names."""
    cfg = LazyConfig.load(str(EXAMPLE))
    make_small(cfg.model)
    cfg.model.roi_heads.vocabulary = "dataset:lazy_trained"
    cfg.model.roi_heads.class_embedder.encoder_spec = letters
    resize = L(T.ResizeShortestEdge)(short_edge_length=64, max_size=96)
    for loader, name in ((cfg.dataloader.train, "lazy_trained"),
                         (cfg.dataloader.test, "lazy_asked")):  # fmt: skip
        loader.dataset.names, loader.num_workers = name, 0
        loader.mapper.augmentations = [resize]
    cfg.dataloader.train.total_batch_size = 2
    cfg.dataloader.evaluator.output_dir = str(tmp_path / "out")
    cfg.optimizer.lr = 1e-3
    cfg.model.pixel_std = [4096.0] * 3  # so that random weights leave the boxes in the image

    model = instantiate(cfg.model)
    assert get_vocabulary(model).names == TRAINED
    cfg.optimizer.params.model = model
    before = [p.detach().clone() for p in model.parameters()]
    trainer = SimpleTrainer(
        model.train(), instantiate(cfg.dataloader.train), instantiate(cfg.optimizer)
    )
    trainer.train(0, 3)
    moved = [not torch.equal(a, b) for a, b in zip(before, model.parameters())]
    assert sum(moved) > len(moved) / 2

    set_vocabulary(model, "dataset:lazy_asked", instantiate(cfg.model.roi_heads.class_embedder))
    results = inference_on_dataset(
        model, instantiate(cfg.dataloader.test), instantiate(cfg.dataloader.evaluator)
    )
    assert {"AP", *(f"AP-{name}" for name in ASKED)} <= results["bbox"].keys()
    found = json.loads((tmp_path / "out/coco_instances_results.json").read_text())
    assert {one["category_id"] for one in found} == {1, 2}


def test_the_example_names_only_what_the_zoo_has_not():
    """At its full size it builds nothing and is what its comments say."""
    cfg = LazyConfig.load(str(EXAMPLE))
    zoo = model_zoo.get_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.py")
    assert cfg.keys() >= zoo.keys()
    assert cfg.model.backbone == zoo.model.backbone
    assert isinstance(OmegaConf.to_yaml(cfg.model.roi_heads.class_embedder), str)


def open_vocabulary(heads: DictConfig, target, predictors: list[DictConfig], folder) -> None:
    heads._target_ = target
    for predictor in predictors:
        predictor._target_ = OpenVocabBoxPredictor
        predictor.classifier = L(EmbeddingClassifier)(in_features=32, embed_dim=DIM)
        predictor.input_shape = ShapeSpec(channels=32)
        predictor.test_score_thresh = 0.0
    heads.mask_head.num_classes = 1
    heads.vocabulary = list(TRAINED)
    heads.class_embedder = str(folder / "three.npy")
    np.save(folder / "three.npy", np.random.default_rng(0).normal(size=(3, DIM)))


class RowCount(RegionTask):
    """A task of one's own, with a parameter: its loss is the number of rows."""

    kind = Supervision.TEACHER_REGION

    def __init__(self, width):
        super().__init__()
        self.layer = torch.nn.Linear(width, 1)

    def losses(self, predictor, features, rows):
        return {"loss_rows": 0 * self.layer(features).sum() + len(features)}


def steps_and_swaps(node: DictConfig, stages: tuple[str, ...] = ("",)) -> None:
    node.roi_heads.region_tasks = [L(RegionDistiller)(weight=0.5), L(RowCount)(width=32)]
    model = instantiate(node)
    targets = make_target([[10, 10, 50, 60], [40, 20, 90, 90]], [1, 2], (96, 96))
    batch = make_batch([with_regions(targets, 3)])
    losses = losses_of(model, batch)
    assert all(losses[f"loss_distill_l1{stage}"] > 0 for stage in stages)
    assert all(losses[f"loss_rows{stage}"] == 3 for stage in stages)
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None or not parameter.requires_grad, name
    asked = [f"thing {k}" for k in range(90)]
    embeddings = TextEmbeddings(torch.randn(90, DIM), tuple(asked), "")
    set_vocabulary(model, asked, embeddings)
    model.eval()
    with torch.no_grad():
        found = model(batch)[0]["instances"]
    assert len(found) and int(found.pred_classes.max()) >= 3
    assert found.has("pred_masks") and found.scores.isfinite().all()


def test_a_detector_of_vitdets_shape(tmp_path):
    node = model_zoo.get_config("common/models/mask_rcnn_vitdet.py").model
    node.backbone.net.update(
        img_size=96, embed_dim=32, depth=2, num_heads=2, window_size=4, window_block_indexes=[0]
    )
    node.backbone.update(out_channels=16, square_pad=96)
    node.proposal_generator.head.in_channels = 16
    open_vocabulary(node.roi_heads, OpenVocabROIHeads, [node.roi_heads.box_predictor], tmp_path)
    shrink_heads(node.roi_heads)
    node.roi_heads.box_head.conv_dims = [8]
    steps_and_swaps(node)


def test_a_cascade_of_the_lazy_zoo(tmp_path):
    node = model_zoo.get_config("common/models/cascade_rcnn.py").model
    stages = node.backbone.bottom_up.stages
    stages.depth = 18
    del stages.stride_in_1x1
    node.backbone.out_channels = node.proposal_generator.head.in_channels = 16
    heads = node.roi_heads
    open_vocabulary(heads, OpenVocabCascadeROIHeads, heads.box_predictors, tmp_path)
    for head in heads.box_heads:
        head.update(input_shape=ShapeSpec(channels=16, height=7, width=7), fc_dims=[32])
    heads.mask_head.update(
        input_shape=ShapeSpec(channels=16, width=14, height=14), conv_dims=[8, 8]
    )
    steps_and_swaps(node, stages=("_stage0", "_stage1", "_stage2"))
