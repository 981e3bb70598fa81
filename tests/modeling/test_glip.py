"""GLIP as a whole: training, any vocabulary, captions, batches."""

import pytest
import torch
from detectron2.structures import Instances
from small_glip import (
    CAPTION,
    boxes_of,
    no_boxes,
    same,
    sample,
    small_config,
    small_glip,
    small_text_backbone,
)

from ovd_d2.errors import OVDError
from ovd_d2.language import Vocabulary
from ovd_d2.modeling import GLIP, OpenVocabularyModel, get_vocabulary, set_vocabulary
from ovd_d2.modeling.text_backbone import build_text_backbone
from ovd_d2.structures import TokenSpans

LOSSES = {"loss_token", "loss_box_reg", "loss_centerness"}


def test_it_keeps_the_vocabulary_protocol(monkeypatch):
    model = small_glip(monkeypatch)
    assert isinstance(model, OpenVocabularyModel)
    assert get_vocabulary(model).names == ("cat", "red mug", "zebra crossing")
    with pytest.raises(OVDError, match="makes its class embeddings itself"):
        set_vocabulary(model, "dog", "minilm")


@pytest.mark.parametrize("fusion", [True, False])
def test_a_batch_of_classes_captions_and_nothing_trains_everything(monkeypatch, fusion):
    model = small_glip(monkeypatch, FUSION=fusion, CHECKPOINT=fusion).train()
    batch = [
        sample(seed=1, instances=boxes_of(gt_classes=[0, 2])),
        sample(seed=2, instances=boxes_of(gt_phrases=[1, 0]), caption=CAPTION),
        sample(seed=3, instances=no_boxes()),
        sample(64, 64, seed=4, instances=no_boxes((64, 64), "gt_phrases"), caption=CAPTION),
    ]
    losses = model(batch)
    assert set(losses) == LOSSES
    assert all(torch.isfinite(value) and value > 0 for value in losses.values())
    sum(losses.values()).backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []


def test_images_without_boxes_alone_train_too(monkeypatch):
    model = small_glip(monkeypatch).train()
    losses = model([sample(instances=no_boxes())])
    assert losses["loss_token"] > 0 and losses["loss_box_reg"] == losses["loss_centerness"] == 0
    sum(losses.values()).backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_a_step_on_boxes_learns_them(monkeypatch):
    """Steps on one image: both boxes are found, with their classes."""
    torch.manual_seed(0)
    model = small_glip(monkeypatch, DROPOUT=0.0, DYNAMIC=False).train()
    data = [sample(instances=boxes_of(gt_classes=[0, 1]))]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(110):
        optimizer.zero_grad()
        sum(model(data).values()).backward()
        optimizer.step()
    found = model.eval()([sample()])[0]["instances"]
    for class_number, box in zip((0, 1), boxes_of().gt_boxes):
        best = found[found.pred_classes == class_number][0]
        inner = (best.pred_boxes.tensor[0] - box).abs().max()
        assert inner < 8 and best.scores > 0.3, (class_number, best)


def test_novel_classes_are_no_negatives(monkeypatch):
    model = small_glip(monkeypatch, MAX_NEGATIVES=50).train()
    names = tuple(f"thing {n}" for n in range(12))
    model.set_vocabulary(Vocabulary(names, is_novel=(False,) * 8 + (True,) * 4))
    seen = set()
    for _ in range(20):
        captions, _ = model._training_captions([sample(instances=boxes_of(gt_classes=[0, 1]))])
        seen |= set(captions[0].phrases())
    assert {"thing 0", "thing 1"} <= seen and seen & set(names[8:]) == set()
    assert len(seen) == 8


def test_class_numbers_without_a_class_are_refused(monkeypatch):
    model = small_glip(monkeypatch).train()
    with pytest.raises(OVDError, match="class number 3"):
        model([sample(instances=boxes_of(gt_classes=[0, 3]))])


@pytest.mark.parametrize("fusion", [True, False])
def test_an_image_does_not_depend_on_its_batch(monkeypatch, fusion):
    model = small_glip(monkeypatch, FUSION=fusion)
    small, large = sample(50, 70, seed=1), sample(130, 100, seed=2)
    alone = [model([one])[0]["instances"] for one in (small, large)]
    together = [output["instances"] for output in model([small, large, sample(50, 70, seed=3)])]
    for one, two in zip(alone, together):
        same(one, two)


@pytest.mark.parametrize("fusion", [True, False])
def test_captions_of_a_vocabulary_one_by_one_or_together(monkeypatch, fusion):
    """However captions are batched, and as one model run per caption, the result is the same."""
    names = [f"{colour} {thing}" for colour in ("red", "blue") for thing in
             ("cat", "mug", "zebra crossing", "tree", "very long named object")]  # fmt: skip
    results = []
    for at_once in (1, 3, 64):
        model = small_glip(
            monkeypatch, FUSION=fusion, PAIRS_AT_ONCE=at_once, NAMES_PER_CAPTION=4,
            TOPK_CANDIDATES_TEST=100000,
        )  # fmt: skip
        model.set_vocabulary(names)
        assert [len(p.class_numbers) for p in model._captions] == [4, 4, 2]
        results.append(model([sample()])[0]["instances"])
    same(results[0], results[1])
    same(results[0], results[2])

    apart = []
    for start in (0, 4, 8):
        model.set_vocabulary(names[start : start + 4])
        part = model([sample()])[0]["instances"]
        part.pred_classes += start
        apart.append(part)
    joined = Instances.cat(apart)
    order = joined.scores.argsort(descending=True, stable=True)[: len(results[0])]
    same(results[0], joined[order])


def test_the_backbone_runs_once_and_words_are_read_once(monkeypatch):
    model = small_glip(monkeypatch, NAMES_PER_CAPTION=1)
    model.set_vocabulary([f"thing {n}" for n in range(9)])
    calls = {"backbone": 0, "text_backbone": 0}
    for name in calls:
        part = getattr(model, name)
        part.register_forward_hook(lambda *_, n=name: calls.__setitem__(n, calls[n] + 1))
    model([sample()])
    assert calls == {"backbone": 1, "text_backbone": 3}  # 9 captions, 4 at once
    first = model([sample(seed=1)])[0]["instances"]
    assert calls == {"backbone": 2, "text_backbone": 3}
    with torch.no_grad():
        model.text_backbone.model.embeddings.word_embeddings.weight.mul_(2)
    model.train()
    model.eval()  # after which weights may be others
    second = model([sample(seed=1)])[0]["instances"]
    assert calls["text_backbone"] == 6 and not torch.equal(first.scores, second.scores)


def test_other_weights_are_seen_at_once(monkeypatch):
    model, other = small_glip(monkeypatch), small_glip(monkeypatch, seed=3)
    model([sample()])
    model.load_state_dict(other.state_dict())
    same(model([sample()])[0]["instances"], other([sample()])[0]["instances"])
    assert model.double()._encoded == {}


@pytest.mark.parametrize("count", [1, 5000])
def test_vocabularies_of_any_size(monkeypatch, count):
    model = small_glip(monkeypatch, FUSION=False, NUM_BLOCKS=1, PAIRS_AT_ONCE=200,
                       SCORE_THRESH_TEST=0.001, max_tokens=256)  # fmt: skip
    model.set_vocabulary([f"kind {n}" for n in range(count)])
    found = model([sample(32, 32)])[0]["instances"]
    numbers = torch.cat([p.class_numbers for p in model._captions])
    assert torch.equal(numbers, torch.arange(count))
    assert len(found) and int(found.pred_classes.max()) < count


def test_names_that_clean_to_the_same_text_are_classes_of_their_own(monkeypatch):
    model = small_glip(monkeypatch, FUSION=False)
    model.set_vocabulary(["bat_(animal)", "bat_(stick)"])
    found = model([sample()])[0]["instances"]
    assert set(found.pred_classes.tolist()) == {0, 1}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "at least one class name"),
        (["cat", "cat"], "cat"),
        (["cat", "wort " * 80], "has 160 tokens, but a caption holds at most 62"),
        (["(nothing)"], "no letters left"),
    ],
)
def test_a_vocabulary_that_cannot_be_had_changes_nothing(monkeypatch, names, message):
    model = small_glip(monkeypatch)
    before = model.vocabulary, model._captions
    with pytest.raises(OVDError, match=message):
        model.set_vocabulary(names)
    assert (model.vocabulary, model._captions) == before


def test_without_a_vocabulary_captions_alone(monkeypatch):
    model = small_glip(monkeypatch)
    model.set_vocabulary(None)
    for training in (True, False):
        with pytest.raises(OVDError, match="no classes yet"):
            model.train(training)([sample(instances=boxes_of(gt_classes=[0, 1]))])
    found = model.eval()([sample(caption=CAPTION)])[0]["instances"]
    assert set(found.pred_classes.tolist()) == {0, 1}


def test_phrases_and_classes_in_one_batch(monkeypatch):
    model = small_glip(monkeypatch)
    other = TokenSpans("mug", (((0, 3),),))
    batch = [sample(), sample(seed=1, caption=CAPTION), sample(seed=2, caption=other)]
    apart = [model([one])[0]["instances"] for one in batch]
    for one, output in zip(apart, model(batch)):
        same(one, output["instances"])
    assert set(apart[2].pred_classes.tolist()) == {0}


def test_a_caption_that_is_too_long_is_one_sentence(monkeypatch):
    model = small_glip(monkeypatch)
    caption = TokenSpans("a cat " * 60, (((2, 5),),))
    with pytest.raises(OVDError, match="at most 64 can be read"):
        model([sample(caption=caption)])
    # In training its end is cut off; a phrase behind that teaches boxes alone.
    cut = TokenSpans("a cat " * 60, (((2, 5),), ((350, 353),)))
    rows = boxes_of(gt_phrases=[0, 1])
    losses = model.train()([sample(instances=rows, caption=cut)])
    assert all(torch.isfinite(value) for value in losses.values())


@pytest.mark.parametrize(
    ("tune", "trained"),
    [
        ("linear_probe", {"head.alignment", "head.box_deltas", "head.centerness"}),
        ("prompt", {"prompt_offset"}),
    ],
)
def test_what_is_tuned(monkeypatch, tune, trained):
    model = small_glip(monkeypatch, TUNE=tune).train()
    sum(model([sample(instances=boxes_of(gt_classes=[0, 1]))]).values()).backward()
    changed = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert {".".join(name.split(".")[:2]) for name in changed} == trained


def test_prompt_tuning_starts_where_the_model_is(monkeypatch):
    plain, tuned = small_glip(monkeypatch), small_glip(monkeypatch, TUNE="prompt")
    same(plain([sample()])[0]["instances"], tuned([sample()])[0]["instances"])
    with torch.no_grad():
        tuned.prompt_offset += torch.randn(tuned.prompt_offset.shape)
    tuned.train().eval()
    first, second = plain([sample()])[0]["instances"], tuned([sample()])[0]["instances"]
    assert not torch.allclose(first.scores[:5], second.scores[:5])


def test_the_first_factor_on_products(monkeypatch):
    with pytest.raises(OVDError, match="initial_scale is 0"):
        small_glip(monkeypatch, LOGIT_SCALE_INIT=0.0)
    model = small_glip(monkeypatch, LOGIT_SCALE_INIT=40.0)
    assert float(model.head.alignment.log_scale.exp()) == pytest.approx(1 / 40)


def test_an_unknown_tune_is_refused(monkeypatch):
    with pytest.raises(OVDError, match="MODEL.GLIP.TUNE is 'all'"):
        small_glip(monkeypatch, TUNE="all")


def test_boxes_of_a_caption_must_say_their_phrase(monkeypatch):
    model = small_glip(monkeypatch).train()
    with pytest.raises(OVDError, match="set INPUT.MAPPER GroundingMapper"):
        model([sample(instances=boxes_of(gt_classes=[0, 1]), caption=CAPTION)])
    with pytest.raises(OVDError, match="caption of an image is a str"):
        model([sample(instances=boxes_of(gt_phrases=[0, 1]), caption="a cat")])


def test_one_anchor_per_location(monkeypatch):
    cfg = small_config()
    cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS = [[0.5, 1.0]]
    monkeypatch.setattr(
        "ovd_d2.modeling.meta_arch.glip.build_text_backbone", lambda cfg: small_text_backbone()
    )
    with pytest.raises(OVDError, match="2 anchors per location"):
        GLIP(cfg)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("bert", "MODEL.TEXT_BACKBONE.MODEL is 'bert'; write hf:"),
        ("hf:/nowhere/at/all", "neither a folder nor a Hugging Face model"),
    ],
)
def test_text_backbones_that_cannot_be_had(spec, message):
    cfg = small_config()
    cfg.MODEL.TEXT_BACKBONE.MODEL = spec
    with pytest.raises(OVDError, match=message):
        build_text_backbone(cfg)
    cfg.MODEL.TEXT_BACKBONE.NAME = "Nobody"
    with pytest.raises(OVDError, match="'Nobody'; there are: HuggingFaceTextBackbone"):
        build_text_backbone(cfg)


def test_a_text_backbone_of_a_folder_is_fine_tuned_or_kept(tmp_path):
    from transformers import AutoTokenizer, BertConfig, BertModel

    from ovd_d2.encoders.huggingface import packaged_minilm_folder

    shape = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                       intermediate_size=32)  # fmt: skip
    saved = BertModel(shape)
    saved.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(packaged_minilm_folder()).save_pretrained(tmp_path)
    cfg = small_config()
    cfg.MODEL.TEXT_BACKBONE.MODEL = f"hf:{tmp_path}"
    for freeze in (False, True):
        cfg.MODEL.TEXT_BACKBONE.FREEZE = freeze
        backbone = build_text_backbone(cfg).train()
        assert (backbone.dim, backbone.num_heads) == (16, 2)
        assert backbone.model.training != freeze
        tokens = backbone.tokenizer(["a cat", "a very red mug"])
        text = backbone(tokens)
        assert text.shape == (2, tokens.ids.shape[1], 16) and text.requires_grad != freeze
    with torch.no_grad():
        alone = backbone(backbone.tokenizer(["a cat"]))[0]
    torch.testing.assert_close(text[0, : len(alone)], alone)  # padding changes nothing
