import math

import pytest

from ovd_d2.errors import OVDError
from ovd_d2.web.limits import Limits, TooLargeError, check_threshold

LIMITS = Limits(names=3, characters=10, caption=20)


def test_names_are_cleaned_and_distinct():
    assert LIMITS.wanted_names(" cat , red   mug\ncat,, ") == ["cat", "red mug"]
    assert LIMITS.wanted_names("  ") == []


@pytest.mark.parametrize("text", ["dataset:x", "/etc.txt", "everything", "a.json"])
def test_names_are_never_looked_up(text):
    assert LIMITS.wanted_names(text) == [text]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a,b,c,d", "4 names: give at most 3"),
        ("a" * 11, "has 11 characters: use at most 10"),
        ("a" * 1000, "1000 characters: give at most 3 names of at most 10"),
    ],
)
def test_too_much_is_said(text, sentence):
    with pytest.raises(TooLargeError, match=sentence):
        LIMITS.wanted_names(text)


@pytest.mark.parametrize("text", ["a\x00b", "\ud800", "!?", "a\x1b"])
def test_what_is_no_text_is_refused(text):
    with pytest.raises(OVDError, match="names hold"):
        LIMITS.wanted_names(text)


def test_captions():
    assert LIMITS.wanted_caption(" a  cat ") == "a cat"
    with pytest.raises(TooLargeError, match="21 characters: write at most 20"):
        LIMITS.wanted_caption("a" * 21)
    with pytest.raises(OVDError, match="caption hold"):
        LIMITS.wanted_caption("\udfff")


@pytest.mark.parametrize("value", [math.nan, math.inf, -0.1, 1.1])
def test_thresholds_are_from_0_to_1(value):
    with pytest.raises(OVDError, match="threshold must be"):
        check_threshold(value)
    assert check_threshold(1) == 1.0
