"""Concepts of captions, and the keys of INPUT.PAIRS that give pairs their own resolution."""

import importlib.machinery
import pickle
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ovd_d2.config import add_ovd_config
from ovd_d2.data.mappers.caption_concepts import CaptionConcepts, LeftOutError
from ovd_d2.data.mappers.image_text_pairs import ImageTextPairMapper
from ovd_d2.data.random_state import seeded
from ovd_d2.errors import OVDError
from ovd_d2.language import clean_name
from ovd_d2.structures import TokenSpans


def concepts(caption, **options):
    return CaptionConcepts("stop-words", **options)({"file_name": "x.png", "caption": caption})


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A red Car beside a dog.", ["A red Car beside a dog.", "red car", "dog"]),
        ("a dog, a Dog and a dog", ["a dog, a Dog and a dog", "dog"]),
        ("Red car", ["Red car"]),  # it is its own noun phrase
        ("red  car.", ["red car."]),
        ("  a\tdog \n", ["a dog", "dog"]),
        ("traffic_light", ["traffic_light", "traffic", "light"]),
        ("a mug/cup", ["a mug/cup", "mug", "cup"]),
        ("of the", ["of the"]),
        ("ein Hündchen", ["ein Hündchen"]),
        (TokenSpans("a dog", (((2, 5),),)), ["a dog", "dog"]),
    ],
)
def test_the_caption_then_its_distinct_phrases(caption, expected):
    assert concepts(caption) == expected


@pytest.mark.parametrize("policy", ["keep", "skip"])
@pytest.mark.parametrize("caption", ["", "...", " _ ", "?!"])
def test_a_caption_without_a_word_is_left_out(caption, policy):
    """Nothing of it could be encoded; also where captions without nouns are kept."""
    with pytest.raises(LeftOutError, match="neither letter nor digit") as caught:
        concepts(caption, without_noun_phrase=policy)
    assert caught.value.file_name == "x.png" and "\n" not in str(caught.value)


def test_long_captions_are_cut_in_messages():
    with pytest.raises(OVDError) as caught:
        concepts("of the " * 100, without_noun_phrase="refuse")
    assert len(str(caught.value)) < 250 and "x.png" in str(caught.value)
    assert not isinstance(caught.value, LeftOutError)


@pytest.mark.parametrize("record", [{}, {"caption": None}, {"caption": 3}, {"label": 4}])
def test_a_record_without_a_caption(record):
    with pytest.raises(OVDError, match='x.png has no caption .*NOUN_PHRASES ""'):
        CaptionConcepts("stop-words")({"file_name": "x.png", **record})


@pytest.mark.parametrize("policy", ["drop", "", None])
def test_an_unknown_policy(policy):
    with pytest.raises(OVDError, match=r"WITHOUT_NOUN_PHRASE is .*must be keep, skip or refuse"):
        CaptionConcepts("stop-words", policy)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="aeÄ_/ .,-'ofthe\n\0\u00a0", max_size=40))
def test_any_caption_gives_distinct_concepts_or_one_sentence(caption):
    """What is found can always be cleaned, as models do."""
    if not any(map(str.isalnum, caption)):
        with pytest.raises(LeftOutError):
            concepts(caption)
        return
    first, *phrases = concepts(caption)
    assert first == " ".join(caption.split())
    cleaned = [clean_name(text) for text in (first, *phrases)]
    assert len(set(cleaned)) == len(cleaned) and cleaned[1:] == phrases


@pytest.fixture
def stand_in_spacy(monkeypatch):
    """A spaCy whose noun chunks are the words in capitals."""

    def pipeline(caption):
        words, place = [], 0
        for word in caption.split(" "):
            if word.isupper():
                words.append(SimpleNamespace(start_char=place, end_char=place + len(word)))
            place += len(word) + 1
        return SimpleNamespace(noun_chunks=words)

    def load(name):
        if name != "my_pipeline":
            raise OSError("Can't find model\nlines")
        return pipeline

    spacy = ModuleType("spacy")
    spacy.load = load
    spacy.__spec__ = importlib.machinery.ModuleSpec("spacy", None)
    monkeypatch.setitem(sys.modules, "spacy", spacy)


def test_a_pipeline_of_spacy(stand_in_spacy):
    find = CaptionConcepts("my_pipeline", "skip")
    assert find({"file_name": "x", "caption": "the OWL eats"}) == ["the OWL eats", "owl"]
    with pytest.raises(LeftOutError):
        find({"file_name": "x", "caption": "the owl eats"})
    with pytest.raises(OVDError, match="cannot load the pipeline 'other'"):
        CaptionConcepts("other")


# ---- keys


@pytest.fixture
def record(tmp_path):
    """Left half white, right half black, twice as wide as high."""
    pixels = np.zeros((32, 64, 3), np.uint8)
    pixels[:, :32] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return {"file_name": str(tmp_path / "a.png"), "caption": "a white half"}


def configured(record, *opts, is_train=True):
    cfg = get_cfg()
    add_ovd_config(cfg)
    cfg.INPUT.RANDOM_FLIP = "none"
    cfg.MODEL.CLIP.IMAGE_SIZE = 16
    cfg.INPUT.PAIRS.CROP_AREA = [1.0, 1.0]
    cfg.merge_from_list(list(opts))
    with seeded(0):
        return ImageTextPairMapper(cfg, is_train)(record)


def test_the_size_of_pairs_is_their_own_or_clips(record):
    assert configured(record)["image"].shape == (3, 16, 16)
    assert configured(record, "INPUT.PAIRS.IMAGE_SIZE", 24)["image"].shape == (3, 24, 24)


@pytest.mark.parametrize(
    ("opts", "squashed"),
    [
        ([], False),
        (["MODEL.CLIP.RESIZE", "squash"], True),
        (["INPUT.PAIRS.RESIZE", "squash"], True),
        (["INPUT.PAIRS.RESIZE", "crop", "MODEL.CLIP.RESIZE", "squash"], False),
    ],
)
def test_the_shape_of_pairs_is_their_own_or_clips(record, opts, squashed):
    """Squashed, white and black are halves; a square crop is 32 of 64 pixels, here from 35 on."""
    white = (configured(record, *opts)["image"].float() > 127).float().mean()
    assert abs(float(white) - 0.5) < 0.02 if squashed else abs(float(white) - 0.5) > 0.03


def test_concepts_are_of_training_and_where_they_are_asked_for(record):
    asked = ["INPUT.PAIRS.NOUN_PHRASES", "stop-words"]
    sample = configured(record, *asked)
    assert sample["concepts"] == ["a white half", "white half"]
    assert sample["caption"] == "a white half" and "concepts" not in record
    assert "concepts" not in configured(record)
    assert "concepts" not in configured(record, *asked, is_train=False)
    assert torch.equal(sample["image"], configured(record)["image"])


def test_a_caption_is_refused_before_its_image_is_read():
    missing = {"file_name": "missing.png", "caption": "of the"}
    opts = ["INPUT.PAIRS.NOUN_PHRASES", "stop-words", "INPUT.PAIRS.WITHOUT_NOUN_PHRASE", "skip"]
    with pytest.raises(LeftOutError):
        configured(missing, *opts)


def test_a_missing_pipeline_is_found_when_the_mapper_is_built(record, monkeypatch):
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(OVDError, match="pip install spacy"):
        configured(record, "INPUT.PAIRS.NOUN_PHRASES", "en_core_web_sm")


def test_the_mapper_can_go_to_another_process(record):
    cfg = get_cfg()
    add_ovd_config(cfg)
    cfg.INPUT.PAIRS.NOUN_PHRASES = "stop-words"
    again = pickle.loads(pickle.dumps(ImageTextPairMapper(cfg, True)))
    assert again(record)["concepts"] == ["a white half", "white half"]
