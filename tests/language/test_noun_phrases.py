"""Noun phrases as character spans, and captions of mirrored images."""

import sys
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovd_d2.errors import OVDError
from ovd_d2.language.noun_phrases import (
    chosen_way,
    noun_phrase_finder,
    phrases_between_stop_words,
    spacy_noun_phrases,
    swap_left_right,
)
from ovd_d2.structures import TokenSpans


def words(caption, find=phrases_between_stop_words):
    return [caption[begin:end] for begin, end in find(caption)]


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A photo of a red car, an owl and two T-shirts.", ["red car", "owl", "two T-shirts"]),
        ("a man riding a horse in front of the old building", ["man", "horse", "old building"]),
        ("Traffic light", ["Traffic light"]),
        ("a picture of the", []),
        ("the dog's bone on its bed", ["dog's bone", "bed"]),
        ("people on the left", ["people"]),
        ("café, jalapeño & 羽毛球 (green)", ["café", "jalapeño", "羽毛球", "green"]),
        ("one two three four five six", ["three four five six"]),
        ("", []),
        (" ,;. ", []),
        ("2 3", []),
    ],
)
def test_phrases_between_stop_words(caption, expected):
    assert words(caption) == expected


WORDS = st.lists(st.sampled_from(["a", "the", "cat", ".", "left", "dog's", "going"])).map(" ".join)


@given(st.text(max_size=80) | WORDS)
def test_no_caption_breaks_it(caption):
    end = 0
    for span in phrases_between_stop_words(caption):
        assert end <= span[0] < span[1] <= len(caption)
        end = span[1]
    TokenSpans(caption, [[span] for span in phrases_between_stop_words(caption)])


class Pipeline:
    """What spaCy's pipelines give, for given chunks."""

    def __init__(self, *chunks):
        self.chunks = chunks

    def __call__(self, caption):
        starts = [(caption.index(chunk), chunk) for chunk in self.chunks]
        return SimpleNamespace(
            noun_chunks=[SimpleNamespace(start_char=s, end_char=s + len(c)) for s, c in starts]
        )


def test_chunks_of_spacy_begin_behind_their_article():
    caption = "we see a man playing it with his two big dogs, in front of the picture"
    pipeline = Pipeline("we", "a man", "it", "his two big dogs,", "front", "the picture")
    assert words(caption, lambda text: spacy_noun_phrases(text, pipeline)) == [
        "man",
        "two big dogs",
    ]


def test_finders(monkeypatch):
    assert noun_phrase_finder("stop-words") is phrases_between_stop_words
    fake = SimpleNamespace(load=lambda name: Pipeline("a cat"))
    monkeypatch.setitem(sys.modules, "spacy", fake)
    assert words("here is a cat", noun_phrase_finder("en_core_web_lg")) == ["cat"]

    def missing(name):
        raise OSError(f"[E050] Can't find model '{name}'.")

    fake.load = missing
    with pytest.raises(OVDError, match="cannot load the pipeline 'xx'; run: python -m spacy"):
        noun_phrase_finder("xx")
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(OVDError, match="pip install spacy, or find noun phrases by 'stop-words'"):
        noun_phrase_finder("en_core_web_sm")


def test_auto_says_what_it_takes(monkeypatch, caplog):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with caplog.at_level("INFO", logger="ovd_d2"):
        assert noun_phrase_finder() is phrases_between_stop_words
    assert "found by stop-words" in caplog.text
    assert chosen_way() == "stop-words" and chosen_way("de_core_news_sm") == "de_core_news_sm"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "spacy", SimpleNamespace(load=lambda name: Pipeline("a cat")))
    assert words("a cat", noun_phrase_finder()) == ["cat"]
    assert chosen_way() == "en_core_web_sm" and chosen_way("stop-words") == "stop-words"


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("the left dog and the right cat", "the right dog and the left cat"),
        ("Left: LEFT, rightmost right-hand", "Right: RIGHT, leftmost left-hand"),
        ("bright light, leftover, upright", "bright light, leftover, upright"),
        ("no side", "no side"),
        ("", ""),
    ],
)
def test_left_and_right_change_places(caption, expected):
    assert swap_left_right(TokenSpans(caption)).caption == expected


def test_spans_follow_the_swap():
    caption = "the left dog, the right cat and a left"
    phrases = [[(4, 12)], [(18, 27)], [(0, 3), (24, 27)], [(34, 38)], [(5, 7)], [(0, 38)]]
    swapped = swap_left_right(TokenSpans(caption, phrases))
    assert swapped.caption == "the right dog, the left cat and a right"
    wanted = ("right dog", "left cat", "the cat", "right", "right", swapped.caption)
    assert swapped.phrases() == wanted


PIECES = ("left", "right", "Left", "RIGHT", "bright", "leftmost", " ", " ", ".", "dog", "é")


@given(st.lists(st.sampled_from(PIECES), min_size=1), st.data())
def test_twice_swapped_is_as_before(pieces, data):
    caption = "".join(pieces)
    stops = [0]
    for piece in pieces:
        stops.append(stops[-1] + len(piece))
    pair = st.lists(st.sampled_from(stops), min_size=2, max_size=2, unique=True).map(sorted)
    phrases = data.draw(st.lists(st.lists(pair, min_size=1, max_size=2), max_size=3))
    spans = TokenSpans(caption, phrases)
    once = swap_left_right(spans)
    twice = swap_left_right(once)
    assert twice.caption == caption
    if "leftmost" not in pieces:  # a span may begin between "left" and "most", both ways the same
        assert twice.phrases() == spans.phrases()
