"""Words of captions that images are asked for."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from ovd_d2.errors import OVDError
from ovd_d2.language.nouns import last_words_of_phrases, noun_finder, tagged_nouns

GOLDEN = Path(__file__).parents[1] / "golden/groupvit/text_processing.json"
CASES = json.loads(GOLDEN.read_text())["word_augmentation"]


def pipeline(words):
    """A pipeline of spaCy that tags as the file says."""
    return lambda caption: [SimpleNamespace(text=word, tag_=tag) for word, tag in words]


@pytest.mark.parametrize("case", CASES)
def test_tagged_words_are_the_public_codes(case):
    words = CASES[case]["tagged_words_given_to_the_public_code"]
    assert tagged_nouns("", pipeline(words)) == CASES[case]["candidate_words"]


@pytest.mark.parametrize(
    ("caption", "nouns"),
    [
        ("a man riding a horse on the beach at sunset", ["man", "horse", "beach", "sunset"]),
        ("Red car parked by the Eiffel Tower", ["car", "Tower"]),
        ("dog and dog", ["dog", "dog"]),
        ("two big T-shirts", ["T-shirts"]),
        ("very nice", ["nice"]),
        ("", []),
        ("of the", []),
    ],
)
def test_without_a_tagger_they_are_the_last_words_of_phrases(caption, nouns):
    assert last_words_of_phrases(caption) == nouns


def test_spacy_is_asked_where_it_is_named(monkeypatch):
    loaded = SimpleNamespace(load=lambda name: pipeline([("cat", "NN"), (name, "JJ")]))
    monkeypatch.setitem(sys.modules, "spacy", loaded)
    assert noun_finder("en_core_web_sm")("a cat") == ["cat"]
    assert noun_finder("stop-words")("a red cat") == ["cat"]
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(OVDError, match="pip install spacy"):
        noun_finder("en_core_web_sm")
