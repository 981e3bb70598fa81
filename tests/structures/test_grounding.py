"""Phrases as character spans: what is refused, and which tokens belong to a phrase."""

import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ovd_d2.errors import OVDError
from ovd_d2.structures import CaptionTokens, TokenSpans

CAPTION = "a hot dog. cat"
OFFSETS = torch.tensor(
    [(0, 0), (0, 1), (2, 5), (6, 9), (9, 10), (11, 14), (0, 0), (0, 0)]  # [CLS] ... [SEP] padding
)


def test_tokens_of_phrases():
    spans = TokenSpans(CAPTION, [[(2, 9)], [[11, 14]], [(0, 1), (6, 9)], [(5, 6)]])
    assert spans.spans == (((2, 9),), ((11, 14),), ((0, 1), (6, 9)), ((5, 6),))
    assert spans.phrases() == ("hot dog", "cat", "a dog", " ")
    tokens = [row.nonzero()[:, 0].tolist() for row in spans.token_map(OFFSETS)]
    assert tokens == [[2, 3], [5], [1, 3], []]  # a phrase of white space has none
    assert len(spans) == 4


def test_white_space_at_the_ends_of_a_span_does_not_matter():
    wide = TokenSpans(CAPTION, [[(1, 10)], [(10, 14)]]).token_map(OFFSETS)
    assert wide.tolist() == TokenSpans(CAPTION, [[(2, 10)], [(11, 14)]]).token_map(OFFSETS).tolist()


def test_no_phrase_and_no_token():
    assert TokenSpans(CAPTION).token_map(OFFSETS).shape == (0, 8)
    no_tokens = torch.zeros(0, 2, dtype=torch.int64)
    assert TokenSpans(CAPTION, [[(0, 1)]]).token_map(no_tokens).shape == (1, 0)
    assert TokenSpans("").spans == ()


@given(st.data())
def test_the_map_is_that_of_the_characters(data):
    caption = data.draw(st.text(st.sampled_from("ab .é羽"), min_size=1, max_size=20))
    places = st.lists(st.integers(0, len(caption)), min_size=2, max_size=2, unique=True)
    span = places.map(lambda ends: (min(ends), max(ends)))
    phrases = data.draw(st.lists(st.lists(span, min_size=1, max_size=3), max_size=4))
    tokens = data.draw(st.lists(span | st.just((0, 0)), max_size=8))
    found = TokenSpans(caption, phrases).token_map(torch.tensor(tokens).long().reshape(-1, 2))
    for phrase, row in zip(phrases, found.tolist(), strict=True):
        letters = {place for begin, end in phrase for place in range(begin, end)}
        assert row == [bool(letters & set(range(begin, end))) for begin, end in tokens]


@pytest.mark.parametrize(
    ("phrase", "message"),
    [
        ([(3, 3)], r"phrase 1 of caption 'a hot dog. cat' has the span \[3, 3\]; it must be"),
        ([(5, 2)], "begin < end <= 14, the length of the caption"),
        ([(-1, 2)], r"\[-1, 2\]"),
        ([(10, 15)], r"\[10, 15\]"),
        ([(True, 2)], "must be"),
        ([(0.0, 2)], "must be"),
        ([], "has no span"),
        ([(1, 2, 3)], "must be lists of"),
        ([4], "must be lists of"),
    ],
)
def test_wrong_spans_are_refused(phrase, message):
    with pytest.raises(OVDError, match=message):
        TokenSpans(CAPTION, [[(0, 1)], phrase])


def test_a_caption_is_text():
    with pytest.raises(OVDError, match="caption is a NoneType; give it as text"):
        TokenSpans(None)


def test_long_captions_are_cut_in_messages():
    with pytest.raises(OVDError) as error:
        TokenSpans("x" * 10_000, [[(0, 10_001)]])
    assert len(str(error.value)) < 300


def test_spans_survive_processes_and_are_equal_by_value():
    spans = TokenSpans(CAPTION, [[[2, 9]]])
    assert pickle.loads(pickle.dumps(spans)) == spans == TokenSpans(CAPTION, (((2, 9),),))
    assert hash(spans) == hash(TokenSpans(CAPTION, (((2, 9),),)))


def test_tokens_move_together():
    tokens = CaptionTokens(torch.ones(2, 3).long(), torch.ones(2, 3).bool(), torch.ones(2, 3, 2))
    moved = tokens.to("meta")
    assert len(moved) == 2
    assert {value.device.type for value in (moved.ids, moved.mask, moved.offsets)} == {"meta"}
