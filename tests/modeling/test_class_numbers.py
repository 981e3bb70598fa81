"""Class numbers of target rows become places in the vocabulary, or are refused."""

import pytest
import torch
from detectron2.data import MetadataCatalog
from small_detectors import make_target

from ovd_d2.errors import OVDError
from ovd_d2.language import Vocabulary
from ovd_d2.modeling.class_numbers import ClassNumbers
from ovd_d2.structures.class_numbering import CLASS_NUMBERING, mark_numbering, numbering_of

DATASET, NAMES = "class_numbers_test", ("cat", "dog", "mug")
VOCABULARY = Vocabulary(("mug", "bird", "cat", "dog"))


@pytest.fixture(autouse=True)
def dataset():
    MetadataCatalog.get(DATASET).thing_classes = list(NAMES)
    yield
    MetadataCatalog.remove(DATASET)


def target(classes):
    return make_target([[0, 0, 9, 9]] * len(classes), classes)


def marked(classes, names=VOCABULARY.names):
    rows = target(classes)
    mark_numbering(rows, numbering_of(names))
    return rows


def mapped(rows, vocabulary=VOCABULARY):
    found = ClassNumbers(DATASET).of_vocabulary(rows, vocabulary)
    return [r.gt_classes.tolist() for r in found]


def test_rows_are_mapped_by_name_unless_they_are_marked():
    rows = [target([0, 1, 2]), marked([0, 1, 3]), target([]), marked([])]
    assert mapped(rows) == [[2, 3, 0], [0, 1, 3], [], []]
    assert rows[0].gt_classes.tolist() == [0, 1, 2]  # the caller's rows stay
    assert mapped([]) == []


def test_the_vocabulary_may_change_between_batches():
    numbers = ClassNumbers(DATASET)
    for names, places in (((*NAMES, "bird"), [0, 1, 2]), (NAMES[::-1], [2, 1, 0]),
                          (VOCABULARY.names, [2, 3, 0])):  # fmt: skip
        (found,) = numbers.of_vocabulary([target([0, 1, 2])], Vocabulary(names))
        assert found.gt_classes.tolist() == places


def test_the_mark_survives_moving_and_indexing():
    rows = marked([0, 1, 3]).to("cpu")[torch.tensor([True, False, True])]
    assert rows.get(CLASS_NUMBERING).tolist() == [numbering_of(VOCABULARY.names)] * 2
    assert mapped([rows]) == [[0, 3]]


def test_a_numbering_is_of_names_and_their_order():
    digests = {numbering_of(n) for n in (NAMES, NAMES[::-1], NAMES[:2], ("catdog", "mug"))}
    assert len(digests) == 4 and all(0 <= d < 2**63 for d in digests)
    assert numbering_of(list(NAMES)) == numbering_of(NAMES) == 6878306356254792469


@pytest.mark.parametrize(
    "rows, sentence",
    [
        (
            target([0, 3]),
            f"class number 3, but DATASETS.TRAIN {DATASET} has 3 classes, from 0 to 2",
        ),
        (target([-1]), "class number -1"),
        (marked([4]), "class number 4, but the model's vocabulary has 4 classes, from 0 to 3"),
        (marked([-1, 0]), "class number -1"),
        (marked([0], NAMES), "places in another vocabulary than the model's 4 names"),
    ],
)
def test_numbers_that_no_class_has_are_refused(rows, sentence):
    with pytest.raises(OVDError, match=sentence) as caught:
        mapped([target([0]), rows])
    assert "\n" not in str(caught.value)


def test_names_that_the_vocabulary_lacks_are_refused():
    with pytest.raises(OVDError, match=r"has the classes 'mug', which .* DATASETS\.TRAIN \(\)"):
        mapped([target([0])], Vocabulary(("cat", "dog")))


def test_names_that_tell_nothing_leave_the_numbers_with_a_warning(caplog, tmp_path):
    """A vocabulary in other words, and one with some of the words of a data set that is not here:
    but never one with some of the words of a data set that is."""
    assert mapped([target([0, 2])], Vocabulary(("Katze", "Hund", "Tasse"))) == [[0, 2]]
    assert "has the classes 'cat', 'dog', 'mug'" in caplog.text
    assert "numbers of targets are taken as places in the vocabulary" in caplog.text
    with pytest.raises(OVDError, match="class number 2, but the model's vocabulary has 2 classes"):
        mapped([target([2])], Vocabulary(("Katze", "Hund")))
    file = tmp_path / "annotations.json"
    MetadataCatalog.get(DATASET).json_file = str(file)
    assert mapped([target([2])], Vocabulary(("mug", "bird", "fish"))) == [[2]]
    assert mapped([target([0, 1, 2])]) == [[2, 3, 0]]  # all names: mapped even so
    file.touch()
    with pytest.raises(OVDError, match="has the classes 'cat', 'dog', which"):
        mapped([target([2])], Vocabulary(("mug", "bird", "fish")))


def test_without_names_the_numbers_are_of_the_vocabulary():
    rows = [target([3, 0])]
    for dataset in ("", "a data set that nobody has registered"):
        numbers = ClassNumbers(dataset, [dataset])
        assert numbers.of_vocabulary(rows, VOCABULARY) == rows
        assert numbers.numbered_otherwise(VOCABULARY) is None
        assert dataset not in MetadataCatalog.list()
        with pytest.raises(OVDError, match="class number 4"):
            numbers.of_vocabulary([target([4])], VOCABULARY)


def test_which_test_data_sets_are_numbered_otherwise():
    numbers = ClassNumbers("", [DATASET])
    assert numbers.numbered_otherwise(Vocabulary((*NAMES, "bird"))) is None
    for names in (NAMES[::-1], NAMES[:2], VOCABULARY.names):
        assert numbers.numbered_otherwise(Vocabulary(names)) == (DATASET, list(NAMES))
