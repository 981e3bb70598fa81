"""The trainer on a tiny stock detector: resuming, precision, accumulation, failures."""

import gc
import json
import logging
import math
import multiprocessing
import shutil
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from detectron2.engine import DefaultTrainer
from detectron2.evaluation import DatasetEvaluator
from tiny_detector import (
    TEST,
    assert_same_weights,
    register,
    run_trainer,
    tiny_config,
    weights,
    write_dataset,
)

from ovd_d2 import OpenVocabTraining
from ovd_d2.engine import NonFiniteLossError, OpenVocabTrainer
from ovd_d2.engine.dataset_vocabulary import vocabulary_for
from ovd_d2.errors import OVDError
from ovd_d2.language import Vocabulary


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    write_dataset(folder)
    return folder


@pytest.fixture(autouse=True)
def _registered(data):
    torch.set_num_threads(1)
    register(data)


class EndOfProcessError(Exception):
    """Stands for whatever ends a process."""


def stopping_at(iteration):
    class Stopping(OpenVocabTrainer):
        def run_step(self):
            if self.iter == iteration:
                raise EndOfProcessError
            super().run_step()

    return Stopping


@pytest.mark.parametrize(
    "opts",
    [
        (),
        ("SOLVER.ACCUMULATE", 2, "DATALOADER.NUM_WORKERS", 2),
        ("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler", "SEED", 3,
         "SOLVER.OPTIMIZER", "ADAMW", "DATALOADER.ASPECT_RATIO_GROUPING", False),
        ("SOLVER.AMP.ENABLED", True, "SOLVER.AMP.DTYPE", "bfloat16", "TEST.EVAL_PERIOD", 2,
         "SOLVER.CLIP_GRADIENTS.ENABLED", True, "MODEL.CHANNELS_LAST", True),
        ("TEST.PRECISE_BN.ENABLED", True, "TEST.PRECISE_BN.NUM_ITER", 2, "TEST.EVAL_PERIOD", 2),
    ],
    ids=["sgd", "accumulate-workers", "repeat-factor-adamw", "bf16-eval-clip", "precise-bn"],
)  # fmt: skip
def test_an_interrupted_run_ends_with_the_same_weights(tmp_path, opts):
    whole = run_trainer(tiny_config(tmp_path / "whole", *opts))
    cfg = tiny_config(tmp_path / "parts", *opts)
    with pytest.raises(EndOfProcessError):
        run_trainer(cfg, trainer_class=stopping_at(5))
    # Other numbers must not leak in from this process.
    torch.manual_seed(99)
    resumed = OpenVocabTrainer(cfg)
    resumed.resume_or_load(resume=True)
    assert resumed.start_iter == 4
    resumed.train()
    assert_same_weights(
        weights(tmp_path / "whole/model_final.pth"), weights(tmp_path / "parts/model_final.pth")
    )
    first = torch.load(tmp_path / "whole/model_final.pth", weights_only=True)["trainer"]
    second = torch.load(tmp_path / "parts/model_final.pth", weights_only=True)["trainer"]
    assert torch.equal(first["random_states"][0]["torch"], second["random_states"][0]["torch"])
    assert first["data_loader"] == second["data_loader"]
    assert first["hooks"] == second["hooks"]
    assert whole.scheduler.last_epoch == resumed.scheduler.last_epoch


def test_a_random_seed_is_resumed_too(tmp_path):
    cfg = tiny_config(tmp_path, "SEED", -1)
    with pytest.raises(EndOfProcessError):
        run_trainer(cfg, trainer_class=stopping_at(5))
    shutil.copytree(tmp_path, tmp_path / "copy")
    trainers = []
    for folder in (tmp_path, tmp_path / "copy"):
        trainer = OpenVocabTrainer(tiny_config(folder, "SEED", -1))
        trainer.resume_or_load(resume=True)
        trainer.train()
        trainers.append(trainer)
    assert_same_weights(*(t.model.state_dict() for t in trainers))


class MixedIn(OpenVocabTraining, DefaultTrainer):
    pass


@pytest.mark.parametrize("base", [OpenVocabTrainer, MixedIn])
@pytest.mark.parametrize("stop", [2, 99])
def test_loading_processes_end_with_the_training(tmp_path, base, stop):
    """Collected as garbage, they would be waited for, five seconds each."""
    options = ("DATALOADER.NUM_WORKERS", 2, "TEST.PRECISE_BN.ENABLED", True,
               "TEST.PRECISE_BN.NUM_ITER", 1, "DATASETS.TEST", "()")  # fmt: skip
    cfg = tiny_config(tmp_path, *options, "SOLVER.MAX_ITER", 3)
    alive = set(multiprocessing.active_children())

    class Trainer(base):
        def run_step(self):
            assert set(multiprocessing.active_children()) - alive or self.iter == 0
            if self.iter == stop:
                raise EndOfProcessError
            super().run_step()

    trainer = Trainer(cfg)
    gc.disable()
    try:
        with pytest.raises(EndOfProcessError) if stop < 3 else nullcontext():
            trainer.train()
        assert not set(multiprocessing.active_children()) - alive
    finally:
        gc.enable()


def test_evaluation_leaves_training_alone(tmp_path):
    run_trainer(tiny_config(tmp_path / "plain"))
    run_trainer(tiny_config(tmp_path / "evaluated", "TEST.EVAL_PERIOD", 1))
    assert_same_weights(
        weights(tmp_path / "plain/model_final.pth"), weights(tmp_path / "evaluated/model_final.pth")
    )


def test_accumulation_equals_the_larger_batch(tmp_path):
    """Two micro-batches of 2 against one batch of 4: losses that average over images."""

    class MeanModel(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(3))

        def forward(self, batch):
            means = torch.stack([d["image"].float().mean((1, 2)) for d in batch]) / 255
            return {"loss_a": ((means @ self.weight - 1) ** 2).mean()}

    class MeanTrainer(OpenVocabTrainer):
        @classmethod
        def build_model(cls, cfg):
            return MeanModel()

    common = ("DATALOADER.ASPECT_RATIO_GROUPING", False, "DATASETS.TEST", "()")
    once = run_trainer(
        tiny_config(tmp_path / "a", *common, "SOLVER.IMS_PER_BATCH", 4), trainer_class=MeanTrainer
    )
    twice = run_trainer(
        tiny_config(tmp_path / "b", *common, "SOLVER.ACCUMULATE", 2), trainer_class=MeanTrainer
    )
    assert not torch.equal(once.model.weight, torch.ones(3))
    torch.testing.assert_close(once.model.weight, twice.model.weight, atol=1e-6, rtol=1e-6)


def test_float16_on_cpu_warns_once_and_trains(tmp_path, caplog):
    cfg = tiny_config(tmp_path, "SOLVER.AMP.ENABLED", True, "SOLVER.MAX_ITER", 1)
    with caplog.at_level(logging.WARNING):
        trainer = run_trainer(cfg)
    assert trainer._trainer.autocast_dtype is torch.bfloat16
    assert sum("float16 is for GPUs" in r.message for r in caplog.records) == 1


class PoisonedTrainer(OpenVocabTrainer):
    """Iteration 3 sees nan in what the subclass hook returns."""

    poison = "loss"

    def run_step(self):
        if self.iter == 3:
            self.before = {k: v.clone() for k, v in self.model.state_dict().items()
                           if "running" not in k and "num_batches" not in k}  # fmt: skip
            predictor = self.model.roi_heads.box_predictor
            if self.poison == "loss":
                predictor.loss_weight = {"loss_cls": math.nan}
            else:
                self.model.backbone.body[0].weight.register_hook(lambda g: g * math.inf)
        super().run_step()


@pytest.mark.parametrize(
    "poison, named", [("loss", "loss_cls = nan"), ("gradient", "gradient norm is nan")]
)
def test_what_is_not_finite_is_named_before_the_weights_move(tmp_path, poison, named):
    trainers = []

    class Poisoned(PoisonedTrainer):
        def __init__(self, cfg):
            super().__init__(cfg)
            self.poison = poison
            trainers.append(self)

    with pytest.raises(NonFiniteLossError) as caught:
        run_trainer(tiny_config(tmp_path, "SOLVER.BASE_LR", 0.001), trainer_class=Poisoned)
    message = str(caught.value)
    if poison == "gradient":
        named = "gradient norm is "
    assert named in message
    assert "iteration 3" in message
    assert message.count(".png") == 2
    assert "loss_box_reg" not in message
    assert isinstance(caught.value, FloatingPointError)
    assert isinstance(caught.value, OVDError)
    state = trainers[0].model.state_dict()
    assert all(torch.equal(state[k], v) for k, v in trainers[0].before.items())


def test_results_and_metrics_files(tmp_path):
    cfg = tiny_config(tmp_path)
    trainer = run_trainer(cfg)
    report = json.loads((tmp_path / "results.json").read_text())
    assert report["iteration"] == 6
    assert "AP" in report["results"][TEST]["bbox"]
    rows = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert {"total_loss", "loss_cls", "grad_norm", "lr", "data_time"} <= rows[0].keys()
    assert trainer._last_eval_results["bbox"].keys() == report["results"][TEST]["bbox"].keys()
    assert sorted(p.name for p in tmp_path.glob("model_*")) == [
        "model_0000001.pth", "model_0000003.pth", "model_0000005.pth", "model_final.pth",
    ]  # fmt: skip


def test_keep_and_expected_results(tmp_path):
    opts = ("SOLVER.CHECKPOINT_KEEP", 1, "TEST.EXPECTED_RESULTS", "[['bbox', 'AP', 99.0, 0.5]]")
    with pytest.raises(SystemExit) as ended:
        run_trainer(tiny_config(tmp_path, *opts))
    assert ended.value.code == 1
    assert sorted(p.name for p in tmp_path.glob("model_*")) == [
        "model_0000005.pth", "model_final.pth",
    ]  # fmt: skip


def test_a_broken_metrics_file_does_not_stop_resuming(tmp_path):
    cfg = tiny_config(tmp_path, "SOLVER.MAX_ITER", 4, "SOLVER.STEPS", "(3,)")
    run_trainer(cfg)
    with open(tmp_path / "metrics.json", "a") as file:
        file.write('{"iteration": 100, "total_loss": 1}\n{"iterat')
    run_trainer(tiny_config(tmp_path), resume=True)
    rows = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    iterations = [row["iteration"] for row in rows]
    assert iterations == sorted(iterations)
    assert max(iterations) <= 6


def test_a_failed_start_writes_nothing(tmp_path):
    cfg = tiny_config(tmp_path / "out", "MODEL.WEIGHTS", tmp_path / "missing.pth")
    with pytest.raises(OVDError, match="missing.pth"):
        run_trainer(cfg)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "opts, named",
    [
        (("SOLVER.STEPS", "(6,)"), "STEPS"),
        (("SOLVER.LR_SCHEDULER_NAME", "Nonsense"), "LR_SCHEDULER_NAME"),
        (("MODEL.META_ARCHITECTURE", "Nonsense"), "'Nonsense' found in 'META_ARCH'"),
        (("MODEL.ROI_HEADS.NAME", "Nonsense"), "'Nonsense' found in 'ROI_HEADS'"),
        (("DATALOADER.SAMPLER_TRAIN", "Nonsense"), "SAMPLER_TRAIN: Unknown training sampler"),
        (("INPUT.MAPPER", "Nonsense"), "INPUT.MAPPER is 'Nonsense'"),
        (("DATASETS.TRAIN", "('tiny_trian',)"), "did you mean tiny_train"),
        (("DATASETS.TRAIN", "()"), "DATASETS.TRAIN is empty"),
        (("SOLVER.IMS_PER_BATCH", "0"), "SOLVER.IMS_PER_BATCH is 0"),
        (("MODEL.WEIGHTS", "detectron2://ImageNetPretrained/MSRA/R-50.pkl"), "--trust"),
    ],
)
def test_bad_configs_are_one_sentence(tmp_path, opts, named):
    with pytest.raises(OVDError) as caught:
        run_trainer(tiny_config(tmp_path / "out", *opts))
    assert named in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_no_evaluation_after_a_failure_in_the_last_step(tmp_path):
    with pytest.raises(EndOfProcessError):
        run_trainer(tiny_config(tmp_path), trainer_class=stopping_at(5))
    assert not (tmp_path / "results.json").exists()


class CountingEvaluator(DatasetEvaluator):
    def reset(self):
        self.seen = 0

    def process(self, inputs, outputs):
        self.seen += len(inputs)

    def evaluate(self):
        return {"bbox": {"AP": float(self.seen)}}


def recording(model):
    """Makes an open-vocabulary model of ``model``; returns the list of all its classes, in turn."""
    known = []

    def set_vocabulary(vocabulary):
        known.append(vocabulary.names)
        model.vocabulary = vocabulary

    model.vocabulary, model.set_vocabulary = Vocabulary(("a", "b")), set_vocabulary
    return known


def test_each_test_dataset_gets_its_vocabulary(tmp_path):
    cfg = tiny_config(tmp_path)
    cfg.DATASETS.TEST = (TEST, "tiny_train")
    model = OpenVocabTrainer.build_model(cfg)
    known, colours = recording(model), ("red", "green", "blue")
    results = OpenVocabTrainer.test(cfg, model, [CountingEvaluator(), CountingEvaluator()])
    assert results == {TEST: {"bbox": {"AP": 12.0}}, "tiny_train": {"bbox": {"AP": 12.0}}}
    assert known == [colours, ("a", "b"), colours, ("a", "b")]

    class Failing(CountingEvaluator):
        def evaluate(self):
            raise EndOfProcessError

    cfg.DATASETS.TEST = (TEST,)
    with pytest.raises(EndOfProcessError):
        OpenVocabTrainer.test(cfg, model, Failing())
    assert known[-1] == ("a", "b")


def test_distractors_join_the_vocabulary_of_every_test_dataset(tmp_path):
    cfg, model = tiny_config(tmp_path), torch.nn.Identity()
    known = recording(model)
    cfg.TEST.DISTRACTORS = "imagenet21k:7"

    def enter():
        with vocabulary_for(cfg, model, TEST):
            assert model.vocabulary.names == known[-1]

    enter()
    assert known[0][:3] == ("red", "green", "blue") and len(known[0]) == 10
    assert known[1:] == [("a", "b")]
    cfg.TEST.DISTRACTORS = "openimages:7"
    with pytest.raises(OVDError, match="TEST.DISTRACTORS"):
        enter()
    cfg.TEST.DISTRACTORS, cfg.MODEL.OPEN_VOCAB.TEXT_EMBEDDINGS = "imagenet21k:7", "x.npy"
    with pytest.raises(OVDError, match="TEXT_EMBEDDINGS"):
        enter()


def open_vocabulary(folder):
    """Options for text classes from a file of embeddings, named by the dataset."""
    np.save(folder / "embeddings.npy", np.eye(3, 8, dtype=np.float32) + 0.1)
    return ("MODEL.ROI_HEADS.NAME", "OpenVocabROIHeads",
            "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True, "MODEL.OPEN_VOCAB.EMBED_DIM", 8,
            "MODEL.OPEN_VOCAB.TEXT_EMBEDDINGS", folder / "embeddings.npy")  # fmt: skip


def test_an_open_vocabulary_detector_trains_evaluates_and_resumes(tmp_path):
    from ovd_d2.modeling import get_vocabulary

    opts = (*open_vocabulary(tmp_path), "TEST.EVAL_PERIOD", 2)
    whole = run_trainer(tiny_config(tmp_path / "whole", *opts))
    assert get_vocabulary(whole.model).names == ("red", "green", "blue")
    assert math.isfinite(whole._last_eval_results["bbox"]["AP"])
    with pytest.raises(EndOfProcessError):
        run_trainer(tiny_config(tmp_path / "parts", *opts), trainer_class=stopping_at(3))
    run_trainer(tiny_config(tmp_path / "parts", *opts), resume=True)
    assert_same_weights(
        weights(tmp_path / "whole/model_final.pth"), weights(tmp_path / "parts/model_final.pth")
    )


def test_augmented_evaluation_comes_at_the_end(tmp_path):
    """Once, after the last step, beside the plain one; with one size and no flip it is the same."""
    opts = (*open_vocabulary(tmp_path), "TEST.EVAL_PERIOD", 3, "TEST.AUG.ENABLED", True,
            "TEST.AUG.MIN_SIZES", (64,), "TEST.AUG.FLIP", False,
            "INPUT.MIN_SIZE_TEST", 64)  # fmt: skip
    results = run_trainer(tiny_config(tmp_path / "run", *opts))._last_eval_results
    assert list(results) == ["bbox", "bbox_TTA"]
    assert results["bbox_TTA"]["AP"] == pytest.approx(results["bbox"]["AP"], abs=0.05)
    written = json.loads((tmp_path / "run/results.json").read_text())["results"][TEST]
    assert written["bbox_TTA"]["AP"] == pytest.approx(results["bbox_TTA"]["AP"])
    folder = tmp_path / "run/inference_TTA/inference"
    assert (folder / "coco_instances_results.json").stat().st_size > 10


class SeesItsVocabulary(CountingEvaluator):
    model = None

    def process(self, inputs, outputs):
        from ovd_d2.modeling import get_vocabulary

        self.names = get_vocabulary(self.model).names

    def evaluate(self):
        return {"names": self.names}


def test_the_vocabulary_is_swapped_for_a_real_detector(tmp_path):
    from detectron2.data import MetadataCatalog

    from ovd_d2.modeling import get_vocabulary

    cfg = tiny_config(tmp_path, *open_vocabulary(tmp_path), "MODEL.OPEN_VOCAB.VOCABULARY", "a,b,c")
    model = OpenVocabTrainer.build_model(cfg)
    assert get_vocabulary(model).names == ("a", "b", "c")
    evaluator = SeesItsVocabulary()
    evaluator.model = model
    MetadataCatalog.get(TEST).thing_classes = ["red", "green", "blue"]
    assert OpenVocabTrainer.test(cfg, model, evaluator)["names"] == ("red", "green", "blue")
    assert get_vocabulary(model).names == ("a", "b", "c")


def test_stock_models_keep_their_classes(tmp_path):
    cfg = tiny_config(tmp_path)
    model = OpenVocabTrainer.build_model(cfg)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    assert OpenVocabTrainer.test(cfg, model, CountingEvaluator()) == {"bbox": {"AP": 12.0}}
    assert_same_weights(before, model.state_dict())
    assert model.training


def test_optimizers_follow_the_config(tmp_path):
    from detectron2.solver import build_optimizer as stock_optimizer

    from ovd_d2.engine.optimizer import build_optimizer

    cfg = tiny_config(tmp_path)
    model = OpenVocabTrainer.build_model(cfg)
    ours, stock = build_optimizer(cfg, model), stock_optimizer(cfg, model)
    assert ours.defaults == stock.defaults
    assert [{k: v for k, v in g.items() if k != "params"} for g in ours.param_groups] == [
        {k: v for k, v in g.items() if k != "params"} for g in stock.param_groups
    ]
    cfg.SOLVER.OPTIMIZER = "ADAMW"
    cfg.SOLVER.LR_MULTIPLIERS = [["backbone.", 0.1]]
    cfg.SOLVER.WEIGHT_DECAY_NORM = 0.0
    optimizer = build_optimizer(cfg, model)
    assert type(optimizer) is torch.optim.AdamW
    found = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups
             for p in g["params"]}  # fmt: skip
    norm = model.backbone.body[1].weight
    assert found[id(model.backbone.body[0].weight)] == pytest.approx((0.001, 1e-4))
    assert found[id(norm)] == pytest.approx((0.001, 0.0))
    assert found[id(model.roi_heads.box_predictor.cls_score.weight)] == pytest.approx((0.01, 1e-4))
    assert len(found) == len(list(model.parameters()))
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(OVDError, match="needs a gradient"):
        build_optimizer(cfg, model)


def test_gradient_clipping_is_applied(tmp_path):
    cfg = tiny_config(tmp_path, "SOLVER.CLIP_GRADIENTS.ENABLED", True,
                      "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 0.001, "SOLVER.MAX_ITER", 1,
                      "SOLVER.WARMUP_ITERS", 0, "SOLVER.BASE_LR", 1.0, "SOLVER.STEPS", "()",
                      "SOLVER.WEIGHT_DECAY", 0.0, "SOLVER.MOMENTUM", 0.0,
                      "DATASETS.TEST", "()")  # fmt: skip
    from detectron2.utils.env import seed_all_rng

    seed_all_rng(7)
    trainer = OpenVocabTrainer(cfg)
    before = {k: v.clone() for k, v in trainer.model.named_parameters()}
    trainer.train()
    moved = [(v - before[k]).abs().max().item() for k, v in trainer.model.named_parameters()]
    assert 0 < max(moved) <= 0.001 + 1e-6
