"""DetCLIP at test time: any vocabulary, captions, batches, and when texts are encoded."""

import copy

import pytest
import torch
import torch.nn.functional as F
from small_detclip import CAPTION, boxes_of, detclip_config, pair, same, sample, small_detclip

from ovd_d2.errors import OVDError
from ovd_d2.language import RandomEmbeddings, TextEmbeddings, Vocabulary
from ovd_d2.language.concept_prompts import labelled_dictionary
from ovd_d2.modeling import DetCLIP, OpenVocabularyModel, get_vocabulary, set_vocabulary
from ovd_d2.structures import TokenSpans

NAMES = ["cat", "red mug", "zebra crossing"]


def detect(model, *samples):
    return [output["instances"] for output in model(list(samples))]


def counted(model):
    """Number of texts that the tower has read, by a hook."""
    texts = []
    model.text.tower.register_forward_hook(lambda _, given, __: texts.extend(given[0]))
    return texts


def test_it_keeps_the_vocabulary_protocol():
    model = small_detclip()
    assert isinstance(model, OpenVocabularyModel)
    assert get_vocabulary(model).names == tuple(NAMES)
    set_vocabulary(model, "dog, cat")
    assert get_vocabulary(model).names == ("dog", "cat")


def test_scores_are_those_of_the_formula():
    """The best box of a class: sqrt of sigmoid(region . name + bias) and centerness."""
    model = small_detclip()
    (found,) = detect(model, sample())
    images = model._preprocess([sample()["image"]])
    outputs = model.head(model._features(images))
    rows = F.normalize(torch.cat([model.text.tower([name]) for name in NAMES]), dim=1)
    with torch.no_grad():
        probabilities = (outputs.regions[0] @ rows.T + model.head.bias).sigmoid()
        scores = (probabilities * outputs.centerness[0].sigmoid()[:, None]).sqrt()
    for number in range(3):
        best = found.scores[found.pred_classes == number].max()
        torch.testing.assert_close(best, scores[:, number].max(), rtol=1e-5, atol=0)


def test_an_image_does_not_depend_on_its_batch():
    model = small_detclip()
    samples = [sample(50, 70, seed=1), sample(130, 100, seed=2), sample(50, 70, seed=3),
               sample(64, 64, seed=4, caption=CAPTION), sample(64, 64, seed=5)]  # fmt: skip
    alone = [detect(model, one)[0] for one in samples]
    for one, two in zip(alone, detect(model, *samples)):
        same(one, two)
    assert alone[0].image_size == (50, 70)


def test_boxes_are_in_the_frame_that_is_asked_for():
    model = small_detclip()
    (one,) = detect(model, sample())
    (two,) = detect(model, {**sample(), "height": 128, "width": 288})
    scale = torch.tensor([3.0, 2, 3, 2])
    assert two.image_size == (128, 288)
    torch.testing.assert_close(two.pred_boxes.tensor, one.pred_boxes.tensor * scale)


@pytest.mark.parametrize("enrich", [True, False])
def test_phrases_of_a_caption_are_what_classes_of_these_names_are(enrich):
    model = small_detclip(ENRICH=enrich)
    caption = TokenSpans("A red_mug, a cat; an owl", (((2, 9),), ((13, 16),), ((21, 24),)))
    model.set_vocabulary(["red_mug", "cat", "owl"])
    (classes,) = detect(model, sample())
    model.set_vocabulary(None)
    (phrases,) = detect(model, sample(caption=caption))
    same(classes, phrases)
    assert set(phrases.pred_classes.tolist()) == {0, 1, 2}


def test_a_phrase_in_pieces_and_a_caption_without_any():
    model = small_detclip()
    pieces = TokenSpans("a mug that is red", (((14, 17), (2, 5)),))
    assert pieces.phrases() == ("red mug",)
    whole = TokenSpans("red mug", (((0, 7),),))
    one, two, nothing = detect(model, sample(caption=pieces), sample(caption=whole),
                               sample(caption=TokenSpans("nothing", ())))  # fmt: skip
    same(one, two)
    assert len(nothing) == 0 and nothing.has("pred_classes")


def test_the_order_of_names_is_that_of_classes():
    model = small_detclip()
    (first,) = detect(model, sample())
    order = torch.tensor([2, 0, 1])
    model.set_vocabulary([NAMES[place] for place in order])
    (second,) = detect(model, sample())
    second.pred_classes = order[second.pred_classes]
    same(first, second)


def test_definitions_change_what_is_read_and_are_the_vocabularys():
    model = small_detclip()
    texts = counted(model)
    model.set_vocabulary(Vocabulary(("cat", "owl"), definitions=("a feline.", "")))
    detect(model, sample())
    assert texts == ["cat, a feline", "owl"]
    texts.clear()
    model.prompts.enrich = False
    model.set_vocabulary(model.vocabulary)
    detect(model, sample())
    assert texts == ["cat", "owl"]


def test_phrases_get_the_definitions_that_the_model_was_trained_with():
    """Opened without classes: by what it is told, unless it has a dictionary of its own."""
    trained = Vocabulary(("cat", "owl", "hat"), definitions=("a feline.", "a bird", ""),
                         is_novel=(False, True, False))  # fmt: skip
    captions = TokenSpans("a Cat, an owl", (((2, 5),), ((10, 13),)))
    built = DetCLIP(detclip_config("cat, owl, hat")).eval()
    built.prompts.dictionary = labelled_dictionary(trained)  # as if its data set had defined them
    model = DetCLIP(detclip_config("later")).eval()
    model.load_state_dict(built.state_dict())
    model.set_trained_vocabulary(trained)
    texts = counted(model)
    same(detect(model, sample(caption=captions))[0], detect(built, sample(caption=captions))[0])
    assert texts == ["cat, a feline", "owl"]
    assert model.vocabulary is None
    model.set_trained_vocabulary(Vocabulary(("cat",), definitions=("a pet",)))
    texts.clear()
    model.set_vocabulary("cat")
    detect(model, sample())
    assert texts == ["cat, a feline"]


def test_of_a_long_definition_the_beginning_is_read_and_the_name_stays():
    model = small_detclip()  # 16 tokens with start and end
    words = ["of"] * 20
    texts = {"mug": " ".join(words), "cup": " ".join(words), "mug ": " ".join([*words, "tea"])}
    model.set_vocabulary(Vocabulary(tuple(texts), definitions=tuple(texts.values())))
    mug, cup, again = model._class_rows()
    torch.testing.assert_close(mug, again)  # they differ behind the 16th token
    assert not torch.allclose(mug, cup, atol=1e-3)
    (found,) = detect(model, sample())
    assert set(found.pred_classes.tolist()) == {0, 1, 2}


@pytest.mark.parametrize("count", [1, 5000])
def test_vocabularies_of_any_size(count):
    model = small_detclip(SCORE_THRESH_TEST=0.001)
    model.set_vocabulary([f"kind {n}" for n in range(count)])
    texts = counted(model)
    (found,) = detect(model, sample(32, 32))
    assert len(texts) == count
    assert len(found) and int(found.pred_classes.max()) < count
    number = int(found.pred_classes[0])
    model.set_vocabulary([f"kind {number}"])  # a class has the same boxes whatever is beside it
    (alone,) = detect(model, sample(32, 32))
    torch.testing.assert_close(alone.scores[0], found.scores[0])
    torch.testing.assert_close(alone.pred_boxes.tensor[0], found.pred_boxes.tensor[0])


def test_names_that_clean_to_the_same_text_are_classes_of_their_own():
    model = small_detclip()
    model.set_vocabulary(["red_mug", "Red mug"])
    (found,) = detect(model, sample())
    assert set(found.pred_classes.tolist()) == {0, 1}
    assert found.scores[0] == found.scores[1]


def test_texts_are_encoded_once_and_again_when_weights_may_have_changed():
    model = small_detclip()
    texts = counted(model)
    (first, *_) = detect(model, sample(seed=1), sample(40, 40, seed=2))
    detect(model, sample(seed=3))
    assert texts == NAMES
    model.train()
    sum(model([sample(instances=boxes_of(gt_classes=[0, 1]))]).values()).backward()
    with torch.no_grad():
        for parameter in model.text.parameters():
            parameter -= parameter.grad + 0.05 * torch.randn(parameter.shape)
    model.eval()
    texts.clear()
    (second,) = detect(model, sample(seed=1))
    assert texts == NAMES and not torch.equal(first.scores, second.scores)
    other = small_detclip(seed=3)
    model.load_state_dict(other.state_dict())
    same(detect(model, sample())[0], detect(other, sample())[0])
    assert len(texts) == 6
    model.to(torch.float64).to(torch.float32)
    detect(model, sample())
    assert len(texts) == 9
    model.set_vocabulary(model.vocabulary)
    detect(model, sample())
    assert len(texts) == 12


def test_setting_a_vocabulary_encodes_nothing_yet():
    """The weights may come afterwards."""
    model = DetCLIP(detclip_config("later"))
    texts = counted(model)
    assert model.vocabulary is None
    for training in (True, False):
        with pytest.raises(OVDError, match=r"no classes yet .*call set_vocabulary"):
            model.train(training)([sample(instances=boxes_of(gt_classes=[0, 1]))])
    model.set_vocabulary(NAMES)
    assert texts == []
    detect(model, sample())
    assert texts == NAMES
    model.set_vocabulary(None)
    found = detect(model, sample(caption=CAPTION))
    assert set(found[0].pred_classes.tolist()) <= {0, 1}


def test_without_a_vocabulary_captions_and_pairs_train():
    model = DetCLIP(detclip_config("later")).train()
    phrases = sample(instances=boxes_of(gt_phrases=[0, 1]), caption=CAPTION)
    losses = model([phrases, pair("a cat", seed=1), pair("a hat", seed=2)])
    assert set(losses) == {"loss_alignment", "loss_word_region"}


def test_class_embeddings_are_not_in_the_state_dict():
    model = small_detclip()
    before = copy.deepcopy(model.state_dict())
    model.set_vocabulary([f"kind {n}" for n in range(50)])
    detect(model, sample())
    set_vocabulary(model, NAMES, RandomEmbeddings(12))
    detect(model, sample())
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in before.items())
    assert not any("vocab" in key or "class" in key.split(".")[-1] for key in before)


def test_embeddings_from_elsewhere():
    """Ready ones of the model's own tower give the same; others are taken as they are."""
    model = small_detclip()
    (wanted,) = detect(model, sample())
    own = model.class_embedder.embed(model.vocabulary)
    assert own.encoder_id.startswith("own-text-tower@") and own.embeddings.shape == (3, 12)
    texts = counted(model)
    set_vocabulary(model, NAMES, TextEmbeddings(own.embeddings * 7, own.names, "elsewhere"))
    same(detect(model, sample())[0], wanted)
    assert texts == []
    with pytest.raises(OVDError, match="embeddings are of 3 names that differ"):
        model.set_vocabulary("dog")
    assert get_vocabulary(model).names == tuple(NAMES)
    set_vocabulary(model, "dog", RandomEmbeddings(12))
    assert len(detect(model, sample())[0]) and texts == []
    model.train().eval()
    assert len(detect(model, sample())[0]) and texts == []
    found = detect(model, sample(caption=CAPTION))  # phrases are read by the model
    assert len(found[0]) and texts == list(CAPTION.phrases())


def test_embeddings_of_another_width_change_nothing():
    model = small_detclip()
    before = model.vocabulary, model.class_embedder
    (wanted,) = detect(model, sample())
    with pytest.raises(OVDError, match=r"have 9 values, regions of this model have 12: .*tower\.$"):
        set_vocabulary(model, "dog, owl", RandomEmbeddings(9))
    assert (model.vocabulary, model.class_embedder) == before
    same(detect(model, sample())[0], wanted)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "at least one class name"),
        (["cat", "cat"], "cat"),
        (["cat", "..."], "no letters left"),
        (7, "vocabulary is 7; give names"),
    ],
)
def test_a_vocabulary_that_cannot_be_had_changes_nothing(names, message):
    model = small_detclip()
    (wanted,) = detect(model, sample())
    before = model.vocabulary
    with pytest.raises(OVDError, match=message):
        model.set_vocabulary(names)
    assert model.vocabulary == before
    same(detect(model, sample())[0], wanted)


def test_the_id_of_the_own_tower_is_that_of_its_weights():
    first, second, other = small_detclip(), small_detclip(), small_detclip(seed=1)
    ids = [model.class_embedder.encoder_id for model in (first, second, other)]
    assert ids[0] == ids[1] != ids[2]
    with torch.no_grad():
        next(first.text.parameters()).add_(1)
    assert first.class_embedder.encoder_id != ids[0]
    locked = small_detclip(TEXT_TOWER="locked:minilm", EMBED_DIM=384)
    assert list(locked.text.state_dict()) == []
    before = locked.class_embedder.encoder_id
    locked.text.tower.encoder.encoder_id = "another@1"
    assert locked.class_embedder.encoder_id != before


def test_long_names_are_cut_at_the_towers_length():
    model = small_detclip(MAX_TOKENS=8)
    model.set_vocabulary(["cat " * 40, "cat " * 6, "cat " * 5])
    first, second, third = model._class_rows()
    torch.testing.assert_close(first, second)
    assert not torch.allclose(first, third)


def test_dropout_and_gradients_stay_away_from_class_names():
    """Names are encoded as at test time even if the tower is in training mode, which it stays."""
    model = small_detclip().train()
    assert model.text.training
    rows = model.text.encode(NAMES)
    assert model.text.training and not rows.requires_grad
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(3))
    assert model.text.encode([]).shape == (0, 12)


def test_a_caption_as_a_text_is_one_sentence():
    with pytest.raises(OVDError, match="caption of an image is a str, but DetCLIP needs"):
        small_detclip()([sample(caption="a cat")])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[0.5, 1.0]]}, "2 anchors per location, DETCLIP"),
        ({"MODEL.DETCLIP.IN_FEATURES": ["p3", "p9"]}, "MODEL.DETCLIP.IN_FEATURES names 'p9'"),
        ({"MODEL.DETCLIP.TEXT_TOWER": "minilm"}, "MODEL.DETCLIP.TEXT_TOWER is 'minilm'; it must"),
        ({"MODEL.DETCLIP.REGION_SCORE": "size"}, "size"),
        ({"MODEL.DETCLIP.MATCH": "worst"}, "worst"),
        ({"MODEL.DETCLIP.DIRECTION": "none"}, "none"),
        ({"MODEL.DETCLIP.NORM_GROUPS": 5}, "NORM_GROUPS"),
    ],
)
def test_parts_that_do_not_fit_are_refused(change, message):
    cfg = detclip_config()
    cfg.merge_from_list([word for key in change for word in (key, change[key])])
    with pytest.raises(OVDError, match=message):
        DetCLIP(cfg)


def test_every_part_of_a_trained_text_tower_learns(tmp_path):
    """From the folder of a whole CLIP, whose image side would wait for a gradient."""
    from tiny_clip_models import save_hf_clip

    save_hf_clip(tmp_path)
    model = small_detclip(TEXT_TOWER=f"trained:hf:{tmp_path}").train()
    sum(model([sample(instances=boxes_of(gt_classes=[0, 2]))]).values()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
