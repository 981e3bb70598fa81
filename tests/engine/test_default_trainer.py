"""Detectron2's own trainer, with nothing of ours, with the helpers, and with the mixin."""

import sys

import pytest
import torch
from default_trainer import (
    SHAPES,
    TEST,
    TRAIN,
    MixinTrainer,
    PlainTrainer,
    TwoLinesTrainer,
    config,
    register,
)
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultPredictor, DefaultTrainer
from detectron2.engine.train_loop import AMPTrainer
from detectron2.evaluation import COCOEvaluator
from tiny_detector import ROOT, weights

import ovd_d2
from ovd_d2.encoders import EncoderScheme, register_encoder
from ovd_d2.engine import OpenVocabTrainer
from ovd_d2.errors import OVDError
from ovd_d2.language import TextEmbeddings, Vocabulary
from ovd_d2.modeling import OpenVocabBoxPredictor, OpenVocabROIHeads, get_vocabulary, set_vocabulary

sys.path.append(str(ROOT / "tests/language"))
from hashing_encoder import HashingEncoder

OTHER_ORDER = "triangle,square,circle"
WIDTH_OF = {16: "circle", 20: "triangle", 24: "square"}


@pytest.fixture(autouse=True)
def shapes(tmp_path, monkeypatch):
    monkeypatch.setenv("OVD_D2_CACHE", str(tmp_path / "cache"))
    encoder = HashingEncoder(8)
    entry = EncoderScheme(lambda _: encoder.encoder_id, lambda *_: encoder, rest=None)
    register_encoder("hashing", entry)
    register(tmp_path)


@pytest.fixture
def labels(monkeypatch):
    """(shape by the width of its box, name by the class that the classifier is given)."""
    seen = set()
    stock = OpenVocabBoxPredictor.losses

    def losses(self, predictions, proposals):
        for p in proposals:
            front = p.gt_classes < self.num_classes
            widths = (p.gt_boxes.tensor[front, 2] - p.gt_boxes.tensor[front, 0]).round().int()
            names = [self.vocabulary.names[k] for k in p.gt_classes[front].tolist()]
            seen.update((WIDTH_OF[w], name) for w, name in zip(widths.tolist(), names))
        return stock(self, predictions, proposals)

    monkeypatch.setattr(OpenVocabBoxPredictor, "losses", losses)
    return seen


@pytest.fixture
def oracle(monkeypatch):
    """The heads find each coloured shape, with the class that has its name in the vocabulary."""

    def boxes_and_scores(self, images, features, proposals):
        boxes, scores = [], []
        for image in images.tensor.flip(1):  # BGR -> RGB
            kind = int(image.flatten(1).sum(1).argmax())
            y, x = (image[kind] > 100).nonzero().T
            boxes.append(torch.tensor([[x.min(), y.min(), x.max() + 1, y.max() + 1]]).float())
            score = torch.zeros(1, len(self.vocabulary) + 1)
            score[0, self.vocabulary.names.index(SHAPES[kind])] = 0.9
            scores.append(score)
        return boxes, scores

    monkeypatch.setattr(OpenVocabROIHeads, "boxes_and_scores", boxes_and_scores)


def right(names=SHAPES):
    return {(name, name) for name in names}


@pytest.mark.parametrize("trainer", [PlainTrainer, TwoLinesTrainer, MixinTrainer, OpenVocabTrainer])
@pytest.mark.parametrize("vocabulary", [OTHER_ORDER, "square,mug,triangle,circle", ""])
def test_the_classifier_sees_the_right_labels(tmp_path, labels, trainer, vocabulary):
    cfg = config(tmp_path, vocabulary, "DATASETS.TEST", (), "SOLVER.IMS_PER_BATCH", 3)
    trainer(cfg).train()
    assert labels == right()


def test_a_plain_evaluation_in_another_order_is_refused_and_the_remedies_work(tmp_path, oracle):
    cfg = config(tmp_path, OTHER_ORDER)
    trainer = PlainTrainer(cfg)
    with pytest.raises(OVDError, match="number 0 is 'circle' there and 'triangle' here") as caught:
        trainer.train()
    for remedy in ("(ovd_d2.OpenVocabTraining, DefaultTrainer)", "ovd_d2.vocabulary_for(cfg, model",
                   "set_vocabulary", "DATASETS.TEST ()"):  # fmt: skip
        assert remedy in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "model_final.pth").exists()  # the training is not lost
    with ovd_d2.vocabulary_for(cfg, trainer.model, TEST):
        assert PlainTrainer.test(cfg, trainer.model)["bbox"]["AP"] == pytest.approx(100)
    assert get_vocabulary(trainer.model).names == tuple(OTHER_ORDER.split(","))
    # What was refused: a wrong score. Whoever asks for a vocabulary gets it, and is responsible.
    assert PlainTrainer.test(cfg, trainer.model)["bbox"]["AP"] < 50
    assert MixinTrainer.test(cfg, trainer.model)["bbox"]["AP"] == pytest.approx(100)


@pytest.mark.parametrize("trainer", [MixinTrainer, OpenVocabTrainer])
def test_the_mixin_evaluates_in_the_order_of_the_data_set(tmp_path, oracle, trainer, caplog):
    register(tmp_path, SHAPES, ("square", "circle", "triangle"))
    run = trainer(config(tmp_path, OTHER_ORDER))
    assert get_vocabulary(run.model).names == tuple(OTHER_ORDER.split(","))
    run.train()
    assert run._last_eval_results["bbox"]["AP"] == pytest.approx(100)
    assert not [r for r in caplog.records if r.name.startswith("ovd_d2.modeling")]


def test_evaluation_without_training_is_refused_too(tmp_path, oracle):
    cfg = config(tmp_path, OTHER_ORDER)
    with pytest.raises(OVDError, match="numbers its classes otherwise"):
        PlainTrainer.test(cfg, PlainTrainer.build_model(cfg))
    register(tmp_path, SHAPES[:2], SHAPES)  # names of the training data, fewer than there are
    cfg = config(tmp_path, "")
    with pytest.raises(OVDError, match="number 2 is 'square' there and nothing here"):
        PlainTrainer.test(cfg, PlainTrainer.build_model(cfg))
    assert MixinTrainer.test(cfg, MixinTrainer.build_model(cfg))["bbox"]["AP"] > 99


@pytest.mark.parametrize("vocabulary", ["", ",".join(SHAPES), ",".join((*SHAPES, "mug"))])
def test_the_same_order_needs_nothing(tmp_path, oracle, labels, vocabulary, caplog):
    trainer = PlainTrainer(config(tmp_path, vocabulary))
    trainer.train()
    assert labels == right()
    assert trainer._last_eval_results["bbox"]["AP"] == pytest.approx(100)
    assert not [r for r in caplog.records if r.name.startswith("ovd_d2.modeling")]


def test_detectron2s_predictor_keeps_its_own_vocabulary(tmp_path, oracle, caplog):
    cfg = config(tmp_path, "mug,circle")
    torch.save({"model": PlainTrainer.build_model(cfg).state_dict()}, tmp_path / "model.pth")
    cfg.MODEL.WEIGHTS = str(tmp_path / "model.pth")
    red = torch.zeros(64, 64, 3, dtype=torch.uint8)
    red[8:24, 8:24, 2] = 255
    predictor = DefaultPredictor(cfg)
    for _ in range(2):
        assert predictor(red.numpy())["instances"].pred_classes.tolist() == [1]
    said = [r.getMessage() for r in caplog.records if r.name.startswith("ovd_d2.modeling")]
    assert len(said) == 1 and "number 0 is 'circle' there and 'mug' here" in said[0]


def test_a_vocabulary_that_somebody_sets_is_theirs(tmp_path, oracle):
    cfg = config(tmp_path, OTHER_ORDER)
    model = PlainTrainer.build_model(cfg)
    names = Vocabulary(SHAPES)
    set_vocabulary(model, names, TextEmbeddings(torch.eye(3, 8), SHAPES, "hashing@000000000000"))
    assert PlainTrainer.test(cfg, model)["bbox"]["AP"] == pytest.approx(100)


@pytest.mark.parametrize(
    "vocabulary, train_names, sentence",
    [
        ("circle,triangle", SHAPES, "has the classes 'square', which the model's vocabulary lacks"),
        ("circle,triangle,square", None, "class number 3, but the model's vocabulary has 3"),
        ("circle,triangle,square", (*SHAPES, "mug"), "'mug', which the model's vocabulary lacks"),
    ],
)
def test_classes_that_nobody_has_are_refused(tmp_path, vocabulary, train_names, sentence):
    from detectron2.data import DatasetCatalog

    cfg = config(tmp_path, vocabulary, "DATASETS.TEST", ())
    if sentence.startswith("class number"):
        found = DatasetCatalog.get(TRAIN)
        for record in found:
            record["annotations"][0]["category_id"] = 3  # K: it would pass for background
        DatasetCatalog.remove(TRAIN)
        DatasetCatalog.register(TRAIN, lambda: found)
    MetadataCatalog.remove(TRAIN)
    if train_names:
        MetadataCatalog.get(TRAIN).set(thing_classes=list(train_names))
    with pytest.raises(OVDError, match=sentence) as caught:
        PlainTrainer(cfg).train()
    assert "\n" not in str(caught.value)


def test_targets_of_another_vocabulary_are_refused(tmp_path):
    cfg = config(tmp_path, OTHER_ORDER, "DATASETS.TEST", ())
    trainer = MixinTrainer(cfg)
    set_vocabulary(
        trainer.model,
        Vocabulary(SHAPES),
        TextEmbeddings(torch.eye(3, 8), SHAPES, "hashing@000000000000"),
    )
    with pytest.raises(OVDError, match="places in another vocabulary than the model's 3 names"):
        trainer.train()


# ---- keys that a trainer must honour


DISTILLED = ("MODEL.REGION_DISTILLATION.WEIGHT", 0.5)
LABELLED = ("MODEL.IMAGE_LABELS.WEIGHT", 0.1, "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", True)


@pytest.mark.parametrize("trainer", [PlainTrainer, TwoLinesTrainer])
@pytest.mark.parametrize(
    "opts, named",
    [(DISTILLED, ("TEACHER_REGION", "DATASETS.REGION_STORE", "MODEL.REGION_DISTILLATION")),
     (LABELLED, ("IMAGE_LABEL", "labels:FILE", "MODEL.IMAGE_LABELS.WEIGHT"))],
)  # fmt: skip
def test_supervision_that_never_comes_ends_training(tmp_path, trainer, opts, named):
    cfg = config(tmp_path, "", "SOLVER.MAX_ITER", 30, "DATASETS.TEST", (), *opts)
    run = trainer(cfg)
    with pytest.raises(OVDError, match="none of the first 20 training batches") as caught:
        run.train()
    assert run.iter == 19
    assert all(word in str(caught.value) for word in (*named, "ovd_d2.build_train_loader(cfg)"))


def test_the_mixin_wants_a_store_before_the_first_step(tmp_path):
    with pytest.raises(OVDError, match=r"DATASETS\.REGION_STORE is empty"):
        MixinTrainer(config(tmp_path, "", *DISTILLED))


UNREAD = ("SOLVER.OPTIMIZER", "ADAMW", "SOLVER.LR_MULTIPLIERS", [["backbone.", 0.5]],
          "SOLVER.ACCUMULATE", 2, "SOLVER.EMA.ENABLED", True, "DATASETS.SOURCES", [{"NAME": "all"}],
          "INPUT.SCALE_JITTER.ENABLED", True, "INPUT.SCALE_JITTER.SIZE", 64)  # fmt: skip


def unread(caplog):
    said = [r.getMessage() for r in caplog.records if r.getMessage().startswith("Nobody has read")]
    assert len(said) < 2
    return said[0] if said else ""


def test_keys_that_the_trainer_ignores_are_named(tmp_path, caplog):
    PlainTrainer(config(tmp_path, "", *UNREAD, "DATASETS.TEST", ())).train()
    said = unread(caplog)
    assert all(key in said for key in UNREAD[::2] if key != "INPUT.SCALE_JITTER.SIZE")
    assert "ovd_d2.OpenVocabTraining" in said


def test_keys_that_are_honoured_are_not_named(tmp_path, caplog):
    opts = (*UNREAD, "DATASETS.TEST", ())
    OpenVocabTrainer(config(tmp_path / "a", "", *opts)).train()
    honoured = (*opts, "SOLVER.ACCUMULATE", 1, "SOLVER.EMA.ENABLED", False)
    trainer = MixinTrainer(config(tmp_path / "b", "", *honoured))
    assert isinstance(trainer.optimizer, torch.optim.AdamW)
    trainer.train()
    assert unread(caplog) == ""
    with pytest.raises(OVDError, match=r"SOLVER\.ACCUMULATE is 2"):
        MixinTrainer(config(tmp_path / "c", "", *opts))
    with pytest.raises(OVDError, match=r"SOLVER\.EMA\.ENABLED is True, but DefaultTrainer saves"):
        MixinTrainer(config(tmp_path / "c", "", *opts, "SOLVER.ACCUMULATE", 1))


def test_a_late_source_is_waited_for(tmp_path):
    cfg = config(tmp_path, "", "DATASETS.SOURCES", [{"NAME": "all"}], *DISTILLED)
    checks = PlainTrainer.build_model(cfg).roi_heads.target_checks
    assert checks.patience == 1000


def test_distractors_that_nobody_adds_are_named(tmp_path, oracle, caplog):
    cfg = config(tmp_path, "", "TEST.DISTRACTORS", "imagenet21k:5")
    PlainTrainer.test(cfg, PlainTrainer.build_model(cfg))
    assert len([r for r in caplog.records if "TEST.DISTRACTORS imagenet21k:5" in r.message]) == 1


def test_the_mixin_sets_the_type_of_mixed_precision(tmp_path):
    opts = ("SOLVER.AMP.ENABLED", True, "SOLVER.AMP.DTYPE", "bfloat16", "DATASETS.TEST", ())
    trainer = MixinTrainer(config(tmp_path, "", *opts))
    assert isinstance(trainer._trainer, AMPTrainer)
    assert trainer._trainer.precision is torch.bfloat16


def test_the_mixin_resumes_in_the_data(tmp_path):
    opts = ("SOLVER.CHECKPOINT_PERIOD", 2, "DATASETS.TEST", ())
    MixinTrainer(config(tmp_path, "", *opts)).train()
    trainer = MixinTrainer(config(tmp_path, "", *opts, "SOLVER.MAX_ITER", 5))
    trainer.resume_or_load(resume=True)
    assert trainer.start_iter == 3
    assert trainer.data_loader.state_dict()["batches"] == 3
    trainer.train()
    assert weights(tmp_path / "model_final.pth")


def test_a_mixin_without_effect_is_refused():
    with pytest.raises(OVDError, match="name OpenVocabTraining before the trainer"):

        class Wrong(DefaultTrainer, ovd_d2.OpenVocabTraining):
            pass


def test_helpers_are_had_from_the_package(tmp_path):
    for name in ovd_d2.__all__:
        assert getattr(ovd_d2, name)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        ovd_d2.__getattr__("nonsense")
    evaluator = ovd_d2.build_evaluator(config(tmp_path, ""), TEST)
    assert isinstance(evaluator, COCOEvaluator)
