"""Names that somebody types are scored beside those that the model was trained with."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image
from random_models import assert_same, make_pixels, write_checkpoint, write_config

from ovd_d2.errors import OVDError
from ovd_d2.inference import ByExamples, OpenVocabPredictor
from ovd_d2.inference.class_embedding_files import embed_names
from ovd_d2.inference.class_rules import class_rules
from ovd_d2.inference.model_folders import KNOWN_ROWS, MODELS, config_of
from ovd_d2.inference.open_detector import trained_vocabulary
from ovd_d2.inference.opening import WantedClasses, open_with_classes
from ovd_d2.language import TextEmbeddingBank, Vocabulary, known_rows
from ovd_d2.language.known_names import competing_names
from ovd_d2.language.known_rows import KnownRows
from ovd_d2.language.text_embeddings import TextEmbeddings, load_text_embeddings

PICTURE = Image.fromarray(make_pixels(120, 160))
TRAINED = Vocabulary(
    names=("mug", "dog", "puppy", "hound", "Traffic_Light"),
    synonyms=(
        ("mug", "cup", "beaker"), ("dog", "pet"), ("puppy", "dog"), ("hound", "pet"),
        ("Traffic_Light",),
    ),
    is_novel=(False, True, False, False, False),
    image_counts=(5, 0, 4, 0, 3),
)  # fmt: skip


@pytest.fixture(autouse=True)
def none_is_close(request, monkeypatch):
    """Rows of the tests' encoder are random, and some of a few names close by chance."""
    if "close" not in request.node.name:
        monkeypatch.setattr(KnownRows, "close_to", lambda self, vocabulary, embedder=None: set())


@pytest.fixture
def predictor(config, checkpoint):
    return OpenVocabPredictor(config, checkpoint, device="cpu", topk=200)


def full(predictor, names, others, is_novel=()):
    """What is found of ``names`` where ``others`` are classes as good as they."""
    both = Vocabulary(names=(*names, *others), is_novel=is_novel)
    limit = predictor.cfg.TEST.DETECTIONS_PER_IMAGE
    choice = predictor.model.roi_heads.detection_choice
    choice.max_detections = 5000
    predictor.set_vocabulary(both)
    found = predictor.predict(PICTURE)
    choice.max_detections = limit
    return found[found.pred_classes < len(names)][:limit]


def competitors(*words, **fields):
    found = competing_names([Vocabulary(names=words, **fields)], TRAINED)
    return () if found is None else found.names


def test_who_competes():
    assert competitors("cat") == TRAINED.names
    assert competitors("Mug", "traffic light") == ("dog", "puppy", "hound")
    assert competitors("cup") == ("dog", "puppy", "hound", "Traffic_Light")
    assert competitors("dog") == (
        "mug",
        "puppy",
        "hound",
        "Traffic_Light",
    )  # puppy is called so too
    assert competitors("pet") == ("mug", "puppy", "Traffic_Light")  # no name, but a word of two
    own = {"synonyms": (("poodle", "Dog"),)}
    assert competitors("poodle", **own) == ("mug", "puppy", "hound", "Traffic_Light")
    known = {"synonyms": (TRAINED.synonyms[2],)}  # what the model itself says of a puppy
    assert competitors("puppy", **known) == ("mug", "dog", "hound", "Traffic_Light")
    assert competitors(*TRAINED.names) == ()
    found = competing_names([Vocabulary.from_names("cat"), Vocabulary.from_names("dog")], TRAINED)
    assert found.names == ("mug", "puppy", "hound", "Traffic_Light")
    assert found.is_novel == (False, False, True, False)
    assert found.synonyms[0] == TRAINED.synonyms[0]


class Directions:
    """Embeds names as directions in a plane, given in degrees."""

    encoder_id = "directions"

    def __init__(self, degrees):
        self.degrees = degrees

    def embed(self, vocabulary):
        angles = torch.tensor([float(self.degrees[name]) for name in vocabulary.names]).deg2rad()
        rows = torch.stack([angles.cos(), angles.sin()], dim=1)
        return TextEmbeddings(rows, vocabulary.names, self.encoder_id)


def test_classes_close_to_a_new_name_do_not_compete(monkeypatch):
    """The closest of ten pairs are 20 degrees apart; a name that is known is no new one."""
    monkeypatch.setattr(known_rows, "_FEWEST_PAIRS", 10)
    trained = dict(zip(("mug", "dog", "puppy", "hound", "Traffic_Light"), (0, 60, 80, 120, 170)))
    rows = KnownRows(Directions({**trained, "pet animal": 70, "cat": 104, "cup": 0}), TRAINED)
    assert rows.close_to(Vocabulary.from_names("pet animal")) == {1, 2}
    assert rows.close_to(Vocabulary.from_names("cat")) == {3}
    assert rows.close_to(Vocabulary.from_names("cup, dog")) == set()
    assert rows.close_to(Vocabulary.from_names("cup, pet animal, cat")) == {1, 2, 3}
    found = competing_names([Vocabulary.from_names("pet animal")], TRAINED, {1, 2})
    assert found.names == ("mug", "hound", "Traffic_Light")


def test_rows_of_competitors_come_last():
    names, negatives = Vocabulary.from_names("cat, cup"), Vocabulary.from_names("bow")
    names = replace(names, synonyms=(("cat", "kitty"), ("cup",)))
    others = competing_names([names, negatives], TRAINED)
    rules = class_rules(names, negatives, "max", others)
    first = ("cat", "kitty", "cup", "bow")
    assert rules.scored.names == (*first, "dog", "puppy", "hound", "Traffic_Light")
    assert rules.owner == (0, 0, 1, 2, 3, 4, 5, 6) and rules.most_words == 2
    assert (rules.found_rows, rules.competitors) == (4, 4)


def test_scores_are_those_of_the_full_softmax(predictor, tmp_path):
    """Whoever gives the names, and whatever else was looked for before."""
    wanted = full(predictor, ["dog", "cat"], ["red mug", "traffic light"])
    assert len(wanted) > 5
    (tmp_path / "names.txt").write_text("dog\ncat\n")
    for names in ("dog, cat", ["dog", "cat"], tmp_path / "names.txt", {"dog": None, "cat": None}):
        predictor.set_vocabulary(names)
        assert predictor.vocabulary.names == ("dog", "cat")
        assert predictor.rules.facts == {"competitors": 2}
        assert_same(predictor.predict(PICTURE), wanted, tolerance=1e-5)
    scores = predictor.predict(PICTURE).scores
    predictor.set_vocabulary("dog, cat", alone=True)
    assert predictor.rules is None
    assert predictor.predict(PICTURE).scores[0] > scores[0] + 0.01
    predictor.set_vocabulary("cat, traffic light, red mug")  # nobody is left to compete
    assert predictor.rules is None


def test_the_constructor_and_the_command_line_do_so_too(config, checkpoint, predictor):
    options = {"device": "cpu", "topk": 200}
    for alone in (False, True):
        predictor.set_vocabulary("dog, cat", alone=alone)
        wanted = predictor.predict(PICTURE)
        made = OpenVocabPredictor(
            config, checkpoint, vocabulary=iter(["dog", "cat"]), alone=alone, **options
        )
        assert_same(made.predict(PICTURE), wanted)
        for rules in ({}, {"negatives": "wolf"}):
            classes = WantedClasses("dog, cat", alone=alone, **rules)
            made = open_with_classes(
                classes, "", config, checkpoint, default_threshold=0.0, **options
            )
            if rules:
                assert made.rules.facts.get("competitors") == (None if alone else 2)
            else:
                assert_same(made.predict(PICTURE), wanted)


def test_places_are_not_taken_by_competitors(config, checkpoint):
    """Two places in an image of which competitors would fill hundreds, at any score."""
    predictor = OpenVocabPredictor(config, checkpoint, device="cpu", topk=2, score_threshold=0.0)
    predictor._trained = Vocabulary.from_names([f"thing {k}" for k in range(60)])
    predictor._words_beside_trained = KnownRows(predictor.words, predictor._trained)
    predictor.set_vocabulary("cat")
    found = predictor.predict(PICTURE)
    assert len(found) == 2 and predictor.rules.facts == {"competitors": 60}
    wanted = full(predictor, ["cat"], predictor._trained.names)
    assert_same(found, wanted, tolerance=1e-5)


def test_negatives_and_thresholds_work_beside_competitors(predictor):
    predictor.set_vocabulary("dog, cat", negatives="bow, red mug")
    assert predictor.rules.scored.names == ("dog", "cat", "bow", "red mug", "traffic light")
    assert predictor.rules.facts["competitors"] == 1
    got = predictor.predict(PICTURE)
    of_all = full(predictor, ["dog", "cat", "bow", "red mug"], ["traffic light"])
    rules = class_rules(Vocabulary.from_names("dog, cat"), Vocabulary.from_names("bow, red mug"))
    assert_same(got, rules.apply(of_all, 0.5)[:200], tolerance=1e-5)
    assert 0 < len(got) < int((of_all.pred_classes < 2).sum())
    predictor.set_vocabulary("dog, cat")
    plain = predictor.predict(PICTURE)
    least = float(plain.scores.median())
    predictor.set_vocabulary("dog, cat", thresholds={"dog": 1.0, "cat": least})
    kept = plain[(plain.pred_classes == 1) & (plain.scores >= least)]
    assert_same(predictor.predict(PICTURE), kept, tolerance=1e-5)


def test_attributes_describe_the_names_alone(predictor):
    predictor.set_vocabulary("dog, cat")
    plain = predictor.predict(PICTURE)
    predictor.set_attributes("red, striped")
    assert predictor.vocabulary.names == ("red dog", "striped dog", "red cat", "striped cat")
    found = predictor.predict(PICTURE)
    assert len(found) == len(plain) and found.scores.max() <= plain.scores.max()
    assert sorted((found.pred_classes // 2).tolist()) == sorted(plain.pred_classes.tolist())
    predictor.set_attributes("blue")
    assert predictor.vocabulary.names == ("blue dog", "blue cat")


def test_examples_compete_with_words(predictor):
    example = [(PICTURE, (10, 20, 70, 90))]
    predictor.set_vocabulary({"my cat": example, "cat": example})
    assert predictor.rules.scored.names == ("my cat", "cat", "red mug", "traffic light")
    rows = predictor.model.roi_heads.box_predictor.cls_score.class_embeddings
    words = predictor.words.embed(Vocabulary.from_names("cat, red mug, traffic light")).embeddings
    torch.testing.assert_close(rows[2:], words[1:])
    assert not torch.allclose(rows[1], words[0], atol=0.1)  # a name that is known, by its example
    assert set(predictor.predict(PICTURE).pred_classes.tolist()) <= {0, 1}
    given = ByExamples({"my cat": example}, words=Vocabulary.from_names("dog"))
    predictor.set_vocabulary(given)
    assert predictor.rules is None


def test_data_sets_and_vocabularies_stay_as_they_are(predictor):
    from detectron2.data import MetadataCatalog

    MetadataCatalog.get("test_competing_names").set(thing_classes=["dog", "cat"])
    try:
        for classes in ("dataset:test_competing_names", Vocabulary.from_names("dog, cat")):
            predictor.set_vocabulary(classes)
            assert predictor.rules is None
            rows = predictor.model.roi_heads.box_predictor.cls_score.class_embeddings
            assert len(rows) == 2
            predictor.set_vocabulary(classes, negatives="bow")
            assert predictor.rules.scored.names == ("dog", "cat", "bow")
    finally:
        MetadataCatalog.remove("test_competing_names")
    predictor._trained = None
    predictor.set_vocabulary("dog, cat")
    assert predictor.rules is None


def test_classes_that_share_no_probability_stay_as_they_are(tmp_path, config):
    yaml = write_config(tmp_path / "config.yaml")
    with yaml.open("a") as file:
        file.write("\n")
    text = yaml.read_text().replace("FC_DIM: 32", "FC_DIM: 32, USE_SIGMOID_CE: True")
    yaml.write_text(text)
    predictor = OpenVocabPredictor(
        yaml, write_checkpoint(yaml, tmp_path / "model_final.pth"), device="cpu"
    )
    predictor.set_vocabulary("dog")
    assert predictor.rules is None
    found = predictor.predict(PICTURE)
    predictor.set_vocabulary("dog", alone=True)  # as it is anyway
    assert_same(predictor.predict(PICTURE), found)


def test_trained_names_are_embedded_once(predictor, monkeypatch):
    asked = []
    embed = TextEmbeddingBank.embed
    monkeypatch.setattr(
        TextEmbeddingBank, "embed", lambda *args: asked.append(args[1].names) or embed(*args)
    )
    for names in ("dog, cat", "bow", "red mug", "dog"):
        predictor.set_vocabulary(names)
    assert asked == [predictor.trained.names, ("dog",), ("bow",), ("dog",)]


def test_an_exported_folder_brings_their_embeddings(exported, monkeypatch, caplog, tmp_path):
    predictor = OpenVocabPredictor.from_pretrained(exported, device="cpu")
    predictor.set_vocabulary("cat")
    wanted = predictor.predict(PICTURE)
    predictor = OpenVocabPredictor.from_pretrained(exported, device="cpu")
    monkeypatch.setattr(TextEmbeddingBank, "embed", lambda *_: pytest.fail("embeds"))
    predictor.set_vocabulary("cat")
    assert_same(predictor.predict(PICTURE), wanted)
    monkeypatch.undo()
    file = exported / "class_embeddings.safetensors"
    words = TextEmbeddingBank("hashing", "imagenet80", cache_dir=tmp_path)
    rows = KnownRows(words, predictor.trained, file)
    torch.testing.assert_close(
        rows.embed(predictor.trained).embeddings, words.embed(predictor.trained).embeddings
    )
    assert "was made with another templates" in caplog.text


def test_the_shipped_model_brings_them_too():
    """Made by ``predictor.words.write(file, predictor.trained)``."""
    cfg = config_of(MODELS / "mini")
    trained, keys = trained_vocabulary(cfg), cfg.MODEL.OPEN_VOCAB
    words = TextEmbeddingBank(keys.TEXT_ENCODER, keys.PROMPTS, keys.USE_SYNONYMS)
    rows = words.read(MODELS / "mini" / KNOWN_ROWS, trained)
    assert rows is not None and len(rows) == len(trained) == 160


def test_files_of_embeddings_say_who_competes(config, checkpoint, tmp_path):
    path, options = tmp_path / "n.safetensors", {"config_file": config, "weights": checkpoint}
    rows, count = embed_names("dog, cat", path, **options)
    assert rows.names == ("dog", "cat", "red mug", "traffic light") and count == 2
    assert load_text_embeddings(path, Vocabulary.from_names("dog, cat")).names == ("dog", "cat")
    manifest = json.loads((tmp_path / "n.safetensors.json").read_text())
    assert manifest["competitors"] == 2 and len(manifest["is_novel"]) == 4
    for wrong in (4, -1, "2", True):
        (tmp_path / "n.safetensors.json").write_text(json.dumps({**manifest, "competitors": wrong}))
        with pytest.raises(OVDError, match='"competitors" is .*, but it counts some of the 4 rows'):
            load_text_embeddings(path)
    rows, count = embed_names("dog, cat", path, alone=True, **options)
    assert rows.names == ("dog", "cat") and count == 0
    assert "competitors" not in json.loads((tmp_path / "n.safetensors.json").read_text())


def test_alone_without_names_is_refused(predictor):
    with pytest.raises(OVDError, match="alone is for names of a vocabulary and for examples"):
        WantedClasses(alone=True).check()
    WantedClasses("cat", alone=True).check()
    with pytest.raises(OVDError, match="finds named classes alone"):
        predictor.set_vocabulary(None, alone=True)
