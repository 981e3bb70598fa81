"""Which concepts an image is trained with, and what the text encoder reads of them."""

from collections import Counter

import pytest
import torch

from ovd_d2.errors import OVDError
from ovd_d2.language import ConceptDictionary, Vocabulary
from ovd_d2.language.concept_prompts import ConceptPrompts, labelled_dictionary, merged

VOCABULARY = Vocabulary(
    ("Cat", "red_mug", "owl", "zebra crossing", "yak"),
    definitions=("a feline.", "", "a bird of the night", "", "an ox"),
    is_novel=(False, False, True, False, True),
)
LABELLED = torch.tensor([0, 1, 3])
DICTIONARY = ConceptDictionary(
    {"cat": "another feline", "red mug": "a cup", "tree": "a plant", "bush": "", "shrub": ""}
)


def prompts(enrich=True, dictionary=DICTIONARY):
    return ConceptPrompts(dictionary, enrich=enrich)


def of_classes(present, most=150, negatives=LABELLED, seed=0, vocabulary=VOCABULARY, **arguments):
    generator = torch.Generator().manual_seed(seed)
    return prompts(**arguments).of_classes(
        torch.tensor(present, dtype=torch.int64), vocabulary, negatives=negatives, most=most,
        generator=generator,
    )  # fmt: skip


def of_phrases(phrases, most=100, seed=0, caption="", **arguments):
    generator = torch.Generator().manual_seed(seed)
    return prompts(**arguments).of_phrases(phrases, most=most, caption=caption, generator=generator)


def test_the_vocabularys_definition_comes_before_the_dictionarys():
    texts = prompts().for_vocabulary(VOCABULARY)
    assert texts == ["cat, a feline", "red mug, a cup", "owl, a bird of the night",
                     "zebra crossing", "yak, an ox"]  # fmt: skip
    assert prompts().text("CAT") == "cat, another feline"
    assert prompts().text("a_Tree.") == "a tree" and prompts().text("Tree.") == "tree, a plant"


def test_without_enrichment_texts_are_names():
    plain = prompts(enrich=False)
    assert plain.for_vocabulary(VOCABULARY) == ["cat", "red mug", "owl", "zebra crossing", "yak"]
    assert plain.text("Cat", "a feline") == "cat"
    assert of_classes([0, 1], enrich=False) == {n: n for n in ("cat", "red mug", "zebra crossing")}
    assert set(of_phrases(["A Tree"], enrich=False).values()) >= {"a tree", "red mug", "cat"}


def test_training_and_testing_read_the_same():
    texts = dict(zip(("cat", "red mug", "owl", "zebra crossing", "yak"),
                     prompts().for_vocabulary(VOCABULARY)))  # fmt: skip
    found = of_classes([4, 2, 0])
    assert found == {name: texts[name] for name in found}


@pytest.mark.parametrize("enrich", [True, False])
def test_a_name_of_which_nothing_is_left_is_refused(enrich):
    with pytest.raises(OVDError, match="no letters left"):
        prompts(enrich).text(" . ")
    with pytest.raises(OVDError, match="no letters left"):
        prompts(enrich).for_vocabulary(Vocabulary(("cat", "...")))


def test_classes_of_the_boxes_come_first_then_negatives():
    found = of_classes([3, 0, 3, 3])
    assert list(found) == ["cat", "zebra crossing", "red mug"]
    assert found == {
        "cat": "cat, a feline", "zebra crossing": "zebra crossing", "red mug": "red mug, a cup"
    }  # fmt: skip


def test_novel_classes_are_drawn_never_but_stay_where_they_have_a_box():
    seen = set()
    for seed in range(30):
        seen |= set(of_classes([0], most=4, seed=seed))
    assert seen == {"cat", "red mug", "zebra crossing"}
    assert set(of_classes([2])) == {"owl", "cat", "red mug", "zebra crossing"}


@pytest.mark.parametrize(("most", "size"), [(0, 2), (1, 2), (2, 2), (3, 3), (150, 3)])
def test_classes_of_the_boxes_always_stay(most, size):
    found = of_classes([0, 1], most=most)
    assert list(found)[:2] == ["cat", "red mug"] and len(found) == size


def test_an_image_without_boxes_has_negatives_alone():
    assert set(of_classes([])) == {"cat", "red mug", "zebra crossing"}
    assert len(of_classes([], most=2)) == 2
    assert of_classes([], negatives=torch.zeros(0, dtype=torch.int64)) == {}


def test_negatives_are_drawn_evenly_and_repeatably():
    vocabulary = Vocabulary(tuple(f"thing {n}" for n in range(20)))
    everything = torch.arange(20)
    counts = Counter()
    for seed in range(400):
        found = of_classes([5], most=6, negatives=everything, seed=seed, vocabulary=vocabulary)
        assert len(found) == 6 and list(found)[0] == "thing 5"
        counts.update(list(found))
    assert counts.pop("thing 5") == 400 and len(counts) == 19
    assert all(abs(count - 400 * 5 / 19) < 50 for count in counts.values())  # five deviations
    one = of_classes([5], most=6, negatives=everything, seed=1, vocabulary=vocabulary)
    assert one == of_classes([5], most=6, negatives=everything, seed=1, vocabulary=vocabulary)


def test_names_that_are_equal_when_cleaned_are_one_concept():
    vocabulary = Vocabulary(("red_mug", "Red mug", "cat"), definitions=("one", "two", ""))
    found = of_classes([1], negatives=torch.arange(3), vocabulary=vocabulary)
    assert found == {"red mug": "red mug, two", "cat": "cat, another feline"}
    assert of_classes([0, 1], most=0, vocabulary=vocabulary) == {"red mug": "red mug, one"}
    phrases = ["A Red_Mug", "a red  mug", "cat", "a red mug."]
    assert list(of_phrases(phrases, most=0)) == ["a red mug", "cat"]


def test_phrases_come_first_then_names_that_are_no_phrase():
    found = of_phrases(["Tree", "a hat"], most=4)
    assert list(found)[:2] == ["tree", "a hat"] and len(found) == 4
    assert found["tree"] == "tree, a plant" and found["a hat"] == "a hat"
    everything = of_phrases(["Tree", "a hat"])
    assert set(everything) == {"tree", "a hat", "cat", "red mug", "bush", "shrub"}
    assert everything["red mug"] == "red mug, a cup" and everything["bush"] == "bush"
    assert list(of_phrases(["Tree", "a hat"], most=1)) == ["tree", "a hat"]
    assert of_phrases([], dictionary=ConceptDictionary({})) == {}
    assert len(of_phrases([], most=3)) == 3


def test_what_the_caption_says_is_no_negative():
    """The phrase is "the cat", and the caption's other words are no phrases of it."""
    caption = "The CAT, a red mug; and bushes at a zebra crossing."
    dictionary = labelled_dictionary(VOCABULARY)
    concepts = ConceptDictionary(
        {**dict.fromkeys(dictionary.names, ""), "bush": "", "mug": "", "crossing": "", "ca": ""}
    )
    found = of_phrases(["The CAT"], caption=caption, dictionary=concepts)
    assert set(found) == {"the cat", "bush", "ca"}
    assert "cat" in of_phrases(["The CAT"], dictionary=concepts)


def test_synonyms_of_a_phrase_are_no_negatives_of_it():
    dictionary = ConceptDictionary({"sofa": "a seat", "couch": "a seat", "cat": "a feline"})
    for seed in range(10):
        assert "couch" not in of_phrases(["sofa"], seed=seed, dictionary=dictionary)


def test_the_dictionary_of_a_vocabulary_holds_no_novel_class():
    dictionary = labelled_dictionary(VOCABULARY)
    assert dictionary.names == ("cat", "red mug", "zebra crossing")
    assert dictionary.definition("cat") == "a feline"
    drawn = set()
    for seed in range(20):
        drawn |= set(of_phrases(["a hat"], seed=seed, dictionary=dictionary))
    assert drawn == {"a hat", "cat", "red mug", "zebra crossing"}


def test_merging_keeps_the_first_text_and_the_order():
    found = merged([{"cat": "cat, 1", "owl": "owl"}, {}, {"yak": "yak", "cat": "cat, 2"}])
    assert list(found.items()) == [("cat", "cat, 1"), ("owl", "owl"), ("yak", "yak")]
    assert merged([]) == {}
