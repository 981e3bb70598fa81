"""Captions to classes: delimiters, plurals, longest match; and what no caption can break."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovd_d2.language import Vocabulary
from ovd_d2.pseudo_labelling import CaptionLabeller
from ovd_d2.pseudo_labelling.caption_labels import plurals

NAMES = ("dog", "hot_dog", "cup", "bow_(weapon)", "bow_(ribbon)", "T-shirt", "person", "scissors",
         "knife", "jalapeño", "street sign", "glass", "house")  # fmt: skip
SYNONYMS = (*((name,) for name in NAMES[:2]), ("cup", "mug"), *((name,) for name in NAMES[3:]))
VOCABULARY = Vocabulary(NAMES, synonyms=SYNONYMS)
FIND = CaptionLabeller(VOCABULARY)


def names(caption, find=FIND):
    return {NAMES[k] for k in find(caption)}


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("", set()),
        ("a dog and a cup.", {"dog", "cup"}),
        ("DOG!", {"dog"}),
        ("The dog's mug", {"dog", "cup"}),
        ("two dogs, three mugs", {"dog", "cup"}),
        ("dogged hotdog dogma cupboard", set()),  # whole words only
        ("a hot dog", {"hot_dog"}),
        ("hot dogs and a dog", {"hot_dog", "dog"}),
        ("a hot-dog", {"hot_dog"}),
        ("it is hot. Dog days", {"dog"}),  # a sentence ends between the words
        ("hot, dog", {"dog"}),
        ("a hot dog house", {"hot_dog", "house"}),
        ("a t shirt / T-Shirts", {"T-shirt"}),
        ("people, knives and women", {"person", "knife"}),
        ("a scissor", set()),
        ("scissors", {"scissors"}),
        ("jalapeno", {"jalapeño"}),
        ("a bow and arrow", set()),  # which of the two bows?
        ("street signs", {"street sign"}),
        ("streets sign", set()),  # only the last word has a plural
        ("wine glasses", {"glass"}),
        ("\x00\ud800 dog", {"dog"}),
    ],
)
def test_what_a_caption_names(caption, expected):
    assert names(caption) == expected


def test_phrases_that_are_no_class_keep_their_words():
    vocabulary = Vocabulary.from_names(["dog", "glass"])
    assert CaptionLabeller(vocabulary)("a hot dog and wine glasses") == (0, 1)
    find = CaptionLabeller(vocabulary, ["hot dog", "wine glass"])
    assert find("a hot dog and wine glasses") == ()
    assert find("a hot dog, a dog") == (0,)
    assert CaptionLabeller(vocabulary, ["dog"])("dog") == (0,)  # a class is a class


def test_the_longest_match_wins_wherever_it_begins():
    vocabulary = Vocabulary.from_names(["red wine", "wine glass holder", "glass"])
    assert CaptionLabeller(vocabulary)("a red wine glass holder") == (1,)


def test_a_name_beats_another_class_s_synonym():
    vocabulary = Vocabulary(("cat", "kitten"), synonyms=(("cat", "kitten"), ("kitten",)))
    assert CaptionLabeller(vocabulary)("a kitten") == (1,)


def test_names_without_words_are_never_found():
    assert CaptionLabeller(Vocabulary.from_names(["?!", "( )", "dog"]))("? ( ) dog") == (2,)


@pytest.mark.parametrize(
    ("word", "expected"),
    [("box", "boxes"), ("fly", "flies"), ("toy", "toys"), ("potato", "potatoes"), ("tie", "ties"),
     ("snowman", "snowmen"), ("woman", "women"), ("caiman", "caimans"), ("leaf", "leaves"),
     ("mouse", "mice"), ("giraffe", "giraffes"), ("brush", "brushes"), ("y", "ys")],
)  # fmt: skip
def test_plurals(word, expected):
    assert expected in plurals(word)


@given(st.text())
def test_any_text_gives_sorted_classes(text):
    found = FIND(text)
    assert list(found) == sorted(set(found)) and all(0 <= k < len(NAMES) for k in found)


@given(st.sampled_from(["dog", "hot_dog", "cup", "T-shirt", "street sign"]), st.text(max_size=20),
       st.text(max_size=20))  # fmt: skip
def test_a_name_between_full_stops_is_found_whatever_surrounds_it(name, before, after):
    assert name in names(f"{before}. {name.replace('_', ' ')}. {after}")
    assert name in names(f"{before}. {name.upper()}s! {after}")


@given(st.lists(st.sampled_from(["dog", "hot", "cup", "glass", "street", "sign", "a"])))
def test_every_word_belongs_to_one_name(words):
    """As many words as the found names have are there at least."""
    found = names(" ".join(words))
    assert sum(len(name.replace("_", " ").split()) for name in found) <= len(words)
    assert ("hot_dog" in found) == any(p == ("hot", "dog") for p in zip(words, words[1:]))


@given(st.lists(st.text(min_size=1), min_size=1, unique=True))
def test_any_vocabulary_can_be_looked_for(raw):
    try:
        vocabulary = Vocabulary(tuple(raw))
    except ValueError:
        return
    find = CaptionLabeller(vocabulary)
    for name in raw:
        assert set(find(name)) <= set(range(len(raw)))


def test_cocos_classes_are_found_by_lviss_words_for_them():
    """As in RKD's labels: a man is a person; among all 80 names a sausage is a hot dog."""
    import ovd_d2

    ovd_d2.register()
    for name, sausage in (("coco_2017_ovd_train_base", []), ("coco_2017_ovd_80_val", ["hot dog"])):
        vocabulary = Vocabulary.load(f"dataset:{name}")
        caption = "Two women on a sofa watch an aeroplane, one eats a sausage."
        found = [vocabulary.names[k] for k in CaptionLabeller(vocabulary)(caption)]
        assert found == ["person", "airplane", *sausage, "couch"]
