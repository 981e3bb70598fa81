"""Training on boxes and image labels: killed and resumed, in two processes, refused."""

import json
import logging
import os
import random
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from test_processes import forked, free_port, wait
from tiny_detector import (
    TRAIN,
    assert_same_weights,
    register,
    run_trainer,
    tiny_config,
    weights,
    write_dataset,
)
from tiny_image_text import tiny_model

sys.path.append(str(Path(__file__).parents[1] / "data"))

from label_files import write_labels

from ovd_d2.data.mixing import MixedLoader
from ovd_d2.engine import OpenVocabTrainer
from ovd_d2.engine.setup import check_config
from ovd_d2.engine.teacher_check import check_teacher
from ovd_d2.errors import OVDError
from ovd_d2.jobs import build_region_store as builder
from ovd_d2.region_store import RegionStoreWriter, StoreFacts
from ovd_d2.structures import RegionEmbeddings

DIM = 8


def write_store(folder, name, image_ids, encoder_id="teacher@1"):
    facts = StoreFacts.for_dataset(
        name, image_ids, encoder_id=encoder_id, dim=DIM, crop_rule="1x", proposals="gt"
    )
    rng = torch.Generator().manual_seed(0)
    with RegionStoreWriter(folder, facts) as writer:
        for image_id in image_ids:
            embeddings = torch.randn(2, DIM, generator=rng)
            embeddings = torch.nn.functional.normalize(embeddings, dim=1).half()
            boxes = torch.tensor([[2.0, 2, 30, 40], [10, 5, 45, 45]])
            writer.append(image_id, RegionEmbeddings(boxes, embeddings))
    return str(folder)


@pytest.fixture
def opts(tmp_path):
    """Boxes of three classes, labels of the same in another order, a region store for each."""
    torch.set_num_threads(1)
    write_dataset(tmp_path / "data", square=True)
    register(tmp_path / "data")
    labels = write_labels(tmp_path / "labels", 10, size=(64, 64))
    np.save(tmp_path / "embeddings.npy", np.eye(3, DIM, dtype=np.float32) + 0.1)
    ids = [record["image_id"] for record in DatasetCatalog.get(TRAIN)]
    of_boxes = write_store(tmp_path / "boxes_store", TRAIN, ids)
    of_labels = write_store(tmp_path / "labels_store", "anything", range(1, 11))
    sources = [
        {"NAME": "boxes", "RATIO": 1, "OPTS": ["DATASETS.REGION_STORE", of_boxes]},
        {"NAME": "labels", "RATIO": 2,
         "OPTS": ["DATASETS.TRAIN", [f"labels:{labels}"], "DATASETS.REGION_STORE", of_labels,
                  "INPUT.MIN_SIZE_TRAIN", [40], "SOLVER.IMS_PER_BATCH", 4]},
    ]  # fmt: skip
    return {
        "MODEL.ROI_HEADS.NAME": "OpenVocabROIHeads",
        "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": True,
        "MODEL.PROPOSAL_GENERATOR.NAME": "MixedSupervisionRPN",
        "MODEL.OPEN_VOCAB.EMBED_DIM": DIM,
        "MODEL.OPEN_VOCAB.TEXT_EMBEDDINGS": tmp_path / "embeddings.npy",
        "MODEL.REGION_DISTILLATION.WEIGHT": 0.5,
        "DATASETS.SOURCES": sources,
    }


def config(folder, opts, *more):
    return tiny_config(folder, *(word for pair in opts.items() for word in pair), *more)


def together(opts):
    sources = [{k: v for k, v in s.items() if k != "RATIO"} for s in opts["DATASETS.SOURCES"]]
    return {**opts, "DATASETS.SOURCES": sources, "DATASETS.MIXING": "together"}


@pytest.mark.parametrize("mode", ["alternate", "together"])
def test_it_trains_on_both(tmp_path, opts, mode):
    opts = together(opts) if mode == "together" else opts
    trainer = run_trainer(config(tmp_path / "out", opts, "TEST.EVAL_PERIOD", 3))
    assert isinstance(trainer.data_loader, MixedLoader)
    places = [loader["batches"] for loader in trainer.data_loader.state_dict()["sources"].values()]
    assert places == ([6, 6] if mode == "together" else [2, 4])
    histories = trainer.storage.histories()
    losses = {k: [v for v, _ in h.values()] for k, h in histories.items() if "loss" in k}
    assert len(losses["loss_distill_l1"]) == 6 and min(losses["loss_distill_l1"]) > 0
    if mode == "alternate":  # labels teach neither the RPN nor the boxes
        of_labels = [not value for value in losses["loss_box_reg"]]
        assert of_labels == [not value for value in losses["loss_rpn_cls"]]
        assert of_labels.count(True) >= 4
    assert "bbox" in trainer._last_eval_results


def test_precise_batch_norms_see_all_sources(tmp_path, opts):
    more = ("TEST.PRECISE_BN.ENABLED", True, "TEST.PRECISE_BN.NUM_ITER", 3, "TEST.EVAL_PERIOD", 2)
    run_trainer(config(tmp_path / "out", opts, *more))
    assert (tmp_path / "out/model_final.pth").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "workers"), [("alternate", 0), ("alternate", 1), ("together", 0)])
def test_killed_at_random_moments_the_weights_are_the_same(tmp_path, opts, mode, workers):
    opts = together(opts) if mode == "together" else opts
    more = ("DATALOADER.NUM_WORKERS", workers, "SOLVER.MAX_ITER", 30, "SOLVER.STEPS", "(20,)",
            "SOLVER.CHECKPOINT_PERIOD", 4, "SOLVER.ACCUMULATE", 2)  # fmt: skip
    assert wait(forked(run_trainer, config(tmp_path / "whole", opts, *more))) == 0
    rng = random.Random(workers)
    for _ in range(2):
        before = set((tmp_path / "killed").glob("model_*.pth"))
        child = forked(run_trainer, config(tmp_path / "killed", opts, *more), True)
        while not set((tmp_path / "killed").glob("model_*.pth")) - before:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.2))
        os.kill(child, signal.SIGKILL)
        assert wait(child) == -signal.SIGKILL
    assert not (tmp_path / "killed/model_final.pth").exists()
    assert wait(forked(run_trainer, config(tmp_path / "killed", opts, *more), True)) == 0
    whole, killed = tmp_path / "whole/model_final.pth", tmp_path / "killed/model_final.pth"
    assert_same_weights(weights(whole), weights(killed))
    states = [torch.load(path, weights_only=True)["trainer"] for path in (whole, killed)]
    assert states[0]["data_loader"] == states[1]["data_loader"]
    batches = [s["batches"] for s in states[0]["data_loader"]["sources"].values()]
    assert batches == ([60, 60] if mode == "together" else [20, 40])


def train_and_note_sources(cfg, path):
    seen = []

    class Noting(OpenVocabTrainer):
        @classmethod
        def build_train_loader(cls, cfg):
            loader = super().build_train_loader(cfg)

            class Noted:
                state_dict, load_state_dict = loader.state_dict, loader.load_state_dict

                def __iter__(self):
                    for batch in loader:
                        seen.append([sample["file_name"] for sample in batch])
                        yield batch

            return Noted()

    trainer = run_trainer(cfg, trainer_class=Noting)
    state = {k: v.tolist() for k, v in trainer.model.named_parameters()}
    Path(path).write_text(json.dumps({"seen": seen, "weights": state}))


def test_two_processes_take_turns_together(tmp_path, opts):
    """DDP without find_unused_parameters, batches of labels alone among them."""
    port = free_port()
    cfg = config(tmp_path / "two", opts, "DATASETS.TEST", "()")

    def rank_main(rank):
        from ovd_d2.engine import launch

        os.environ.update(
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2",
            MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
        )  # fmt: skip
        launch(lambda _: train_and_note_sources(cfg, tmp_path / f"{rank}.json"), None)

    children = [forked(rank_main, rank) for rank in range(2)]
    assert [wait(child) for child in children] == [0, 0]
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert ranks[0]["weights"] == ranks[1]["weights"]
    for first, second in zip(ranks[0]["seen"], ranks[1]["seen"]):
        assert len({Path(name).parent for name in first + second}) == 1
        assert len(set(first + second)) == len(first + second)
    assert len(ranks[0]["seen"]) == 6


def changed(opts, number, *more):
    sources = [dict(source) for source in opts["DATASETS.SOURCES"]]
    sources[number]["OPTS"] = [*sources[number]["OPTS"], *more]
    return {**opts, "DATASETS.SOURCES": sources}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("DATASETS.TRAIN", ["tiny_trian"]), "Source 'labels' of .*'tiny_trian'.*tiny_train"),
        (("DATASETS.TRAIN", ["labels:/no/file.json"]),
         "Source 'labels' of .*/no/file.json, which does not exist: run `ovd pseudo-label`"),
        (("MODEL.MASK_ON", True), "Source 'labels' of .*OPTS sets MODEL.MASK_ON"),
        (("DATALOADER.NUM_WORKER", 1), "no config key"),
    ],
)  # fmt: skip
def test_wrong_sources_are_known_before_anything_is_built(tmp_path, opts, more, message):
    check_config(config(tmp_path / "out", opts))
    wrong = config(tmp_path / "out", changed(opts, 1, *more))
    with pytest.raises(OVDError, match=message) as caught:
        check_config(wrong)
    assert "\n" not in str(caught.value)
    wrong.MODEL.WEIGHTS = "model_final.pth"
    check_config(wrong, train=False)


def test_pickles_of_a_source_are_not_opened(tmp_path, opts):
    more = ("DATASETS.PROPOSAL_FILES_TRAIN", ["boxes.pkl"])
    cfg = config(tmp_path / "out", changed(opts, 1, *more), "MODEL.LOAD_PROPOSALS", True)
    with pytest.raises(OVDError, match=r"boxes\.pkl"):
        check_config(cfg)


def test_stores_of_all_sources_are_checked(tmp_path, opts, caplog):
    class Heads:
        needs_teacher_regions = True

        def check_teacher(self, encoder_id):
            if encoder_id != "teacher@1":
                raise OVDError(f"{encoder_id}, not teacher@1")

    def check(opts, heads=None):
        model = SimpleNamespace(roi_heads=heads or Heads())
        check_teacher(config(tmp_path / "out", opts), model)

    check(opts)
    other = write_store(tmp_path / "other_store", "anything", range(1, 11), "another@2")
    for number, name in enumerate(("boxes", "labels")):
        with pytest.raises(OVDError, match=rf"Source '{name}' of .*another@2.*teacher@1"):
            check(changed(opts, number, "DATASETS.REGION_STORE", other))
        with pytest.raises(OVDError, match=rf"Source '{name}' of .*nowhere"):
            check(changed(opts, number, "DATASETS.REGION_STORE", "nowhere"))
    with caplog.at_level(logging.INFO):
        check(changed(opts, 0, "DATASETS.REGION_STORE", ""))
    assert "Source 'boxes' has no DATASETS.REGION_STORE" in caplog.text
    none = changed(changed(opts, 0, "DATASETS.REGION_STORE", ""), 1, "DATASETS.REGION_STORE", "")
    with pytest.raises(OVDError, match=r"DATASETS\.REGION_STORE is empty"):
        check(none)
    check(none, heads=SimpleNamespace())
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        check(opts, heads=SimpleNamespace())
    assert caplog.text.count("does not learn from it") == 2


def test_a_store_is_built_for_a_label_file(tmp_path, opts, monkeypatch):
    """And the loader knows it by the data set's name."""
    monkeypatch.setattr(builder, "build_image_text_model", lambda spec, device: tiny_model())
    monkeypatch.delenv("RANK", raising=False)
    name = f"labels:{tmp_path}/labels/labels.json"
    settings = builder.BuildSettings(name, "gt", "tiny", tmp_path / "built", topk=5, crops="1x")
    report = builder.build_region_store(settings)
    assert (report.images, report.regions) == (10, 10)
    more = ("DATASETS.REGION_STORE", str(tmp_path / "built"))
    loader = OpenVocabTrainer.build_train_loader(config(tmp_path / "out", changed(opts, 1, *more)))
    for sample in next(iter(loader.loaders["labels"])):
        label, region = sample["instances"].gt_boxes.tensor
        torch.testing.assert_close(label, region)
        assert sample["instances"].supervision.tolist() == [1, 2]
