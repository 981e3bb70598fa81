"""``ovd vocab dictionary`` as a process: what it writes, what it says, what it refuses."""

import json
import os
import signal
import sys
import time

import pytest
import warm_processes
from detectron2.data import DatasetCatalog, MetadataCatalog

from ovd_d2.cli.app import main
from ovd_d2.language import ConceptDictionary

OVD = [sys.executable, "-m", "ovd_d2.cli.app", "vocab", "dictionary"]
OUT = ["--out", "concepts.json"]
CAPTIONS = ["A red car beside a dog.", "a red car", "Two dogs and a red car", "the dog", "of the",
            "a dog, a dog and a dog", "a mug"]  # fmt: skip
REGISTERED = """
from detectron2.data import DatasetCatalog, MetadataCatalog
DatasetCatalog.register("mine", lambda: [{"file_name": "x", "caption": "a wug"}] * 3)
DatasetCatalog.register("without", lambda: [{"file_name": "x", "image_id": 1}])
DatasetCatalog.register("stream", lambda: iter(()))
MetadataCatalog.get("mine").thing_classes = ["Gnome", "Emu"]
MetadataCatalog.get("mine").definitions = ["a small man.", ""]
"""


@pytest.fixture
def folder(tmp_path):
    pairs = [{"file_name": "x.png", "caption": caption} for caption in CAPTIONS]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    (tmp_path / "names.txt").write_text("Aerosol_can\nwug\n")
    content = {"names": ["wug", "dax"], "definitions": ["a bird.", ""], "synonyms": [["wug"], []]}
    (tmp_path / "names.json").write_text(json.dumps(content))
    (tmp_path / "mine.py").write_text(REGISTERED)
    grounding = {
        "info": {"image_root": "."},
        "images": [{"id": 1, "file_name": "x.png", "height": 9, "width": 9,
                    "caption": "a mug\0on a table"}],
        "annotations": [],
        "categories": [{"id": 1, "name": "object"}],
    }  # fmt: skip
    (tmp_path / "grounding.json").write_text(json.dumps(grounding))
    return tmp_path


@pytest.fixture
def in_folder(folder, monkeypatch):
    """The current folder; what is registered goes when the test ends."""
    monkeypatch.chdir(folder)
    before = set(DatasetCatalog.list())
    yield folder
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)


def ovd(folder, *words):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return warm_processes.run(
        [*OVD, *map(str, words)], cwd=folder, env=environment,
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip


def test_phrases_and_label_sets_become_concepts_with_definitions(folder):
    result = ovd(folder, "--names", "names.txt", "--names", "names.json", "--captions",
                 "pairs:pairs.jsonl", "--definitions", "lvis", "--noun-phrases", "stop-words",
                 "--out", "new/concepts.json")  # fmt: skip
    assert result.returncode == 0, result.stderr
    concepts = ConceptDictionary.load(str(folder / "new/concepts.json"))
    # in the order of the label sets; then as many captions have them, three each, once a caption
    assert concepts.names == ("aerosol can", "wug", "dax", "dog", "red car")
    assert concepts.definition("wug") == "a bird"
    assert concepts.definition("aerosol can").startswith("a dispenser")
    assert concepts.definition("dog") and not concepts.definition("dax")
    assert result.stdout.splitlines() == [
        "new/concepts.json: 5 concepts, 3 with a definition",
        "3 are names or synonyms of label sets",
        "2 of 4 noun phrases are in at least 2 of 7 captions; 1 captions have none",
        "most frequent: dog (3), red car (3), mug (1), two dogs (1)",
    ]


def test_grounding_data_registered_data_and_every_phrase(folder):
    result = ovd(folder, "--captions", "grounding:grounding.json", "--captions", "mine", "--names",
                 "dataset:mine", "--register", "mine.py", "--min-count", 1, "--noun-phrases",
                 "stop-words", "--out", "concepts.json")  # fmt: skip
    assert result.returncode == 0, result.stderr
    concepts = ConceptDictionary.load(str(folder / "concepts.json"))
    assert concepts == ConceptDictionary(
        {"gnome": "a small man", "emu": "", "wug": "", "mug": "", "table": ""}
    )


def test_a_dictionary_gives_its_definitions_to_another(in_folder):
    given = {"wug": "a bird", "red car": "a car", "zup": "z"}
    ConceptDictionary(given).save(in_folder / "first.json")
    with pytest.raises(SystemExit) as caught:
        main(["vocab", "dictionary", "--captions", "pairs:pairs.jsonl", "--definitions",
              "first.json+lvis", "--names", "names.txt", *OUT])  # fmt: skip
    assert not caught.value.code
    concepts = ConceptDictionary.load("concepts.json")
    assert concepts.definition("red car") == "a car" and concepts.definition("wug") == "a bird"
    assert "zup" not in concepts and concepts.definition("aerosol can")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "give --names (label sets) or --captions"),
        (["--names", "lvs"], "--names lvs: give dataset:NAME"),
        (["--names", "missing.txt"], "missing.txt"),
        (["--names", "dataset:lvs"], "'lvs' is not registered"),
        (["--names", "concepts.json"], "concepts.json"),
        (["--captions", "pairs:missing.jsonl"], "missing.jsonl does not exist"),
        (["--captions", "cars"], "--captions names the dataset 'cars', which is not registered"),
        (["--captions", "without", "--register", "mine.py"], "--captions without has no captions"),
        (["--captions", "stream", "--register", "mine.py"], "is a stream of images"),
        (["--captions", "grounding:x"], "x"),
        (["--names", "names.txt", "--definitions", "wornet"], "'wornet' is none of lvis"),
        (["--names", "names.txt", "--definitions", "names.json"], "no concept dictionary"),
        (["--names", "names.txt", "--definitions", "wordnet"], "pip install nltk"),
        (["--captions", "pairs:pairs.jsonl", "--noun-phrases", "no_such_pipeline"], "spaCy"),
        (["--captions", "pairs:pairs.jsonl", "--min-count", "50"], "no noun phrase is in 50"),
        (["--names", "names.txt", "--out", "names.txt"], "end the name in .json"),
        (["--names", "names.json", "--out", "names.json"], "it is an input"),
        (["--captions", "grounding:grounding.json", "--out", "grounding.json"], "it is an input"),
        (["--names", "names.txt", "--definitions", "lvis+old.json", "--out", "old.json"],
         "it is an input"),
        (["--names", "names.txt", "--out", "names.txt/a.json"], "names.txt is no folder"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_sentence_and_leaves_nothing(in_folder, capsys, words, says):
    (in_folder / "concepts.json").write_text("kept")
    ConceptDictionary({"a": ""}).save(in_folder / "old.json")
    before = {path: path.read_bytes() for path in in_folder.iterdir()}
    with pytest.raises(SystemExit) as caught:
        main(["vocab", "dictionary", *words, *([] if "--out" in words else OUT)])
    stdout, stderr = capsys.readouterr()
    assert caught.value.code == 2 and stdout == "" and says in stderr
    errors = [line for line in stderr.splitlines() if not line.startswith("--register runs")]
    assert len(errors) == 1 and errors[0].startswith("error: ")
    after = {p: p.read_bytes() for p in in_folder.iterdir() if p.name != "__pycache__"}
    assert after == before


def test_a_refusal_as_a_process(folder):
    result = ovd(folder, "--names", "lvs", *OUT)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "error: --names lvs: give dataset:NAME, or a .txt or .json file\n"


@pytest.mark.parametrize(
    ("words", "says"),
    [(["--names", "names.txt"], "--out"), (["--min-count", "0", *OUT], "--min-count")],
)
def test_min_count_and_out_are_checked_by_the_command_line(in_folder, capsys, words, says):
    with pytest.raises(SystemExit) as caught:
        main(["vocab", "dictionary", *words])
    assert caught.value.code == 2 and says in capsys.readouterr().err
    assert not (in_folder / "concepts.json").exists()


def test_killed_at_work_it_leaves_the_old_file_and_shows_its_progress(folder):
    """200,000 captions take longer than the five seconds after which the bar appears."""
    line = json.dumps({"file_name": "x.png", "caption": "a red car beside a dog on a table " * 6})
    (folder / "many.jsonl").write_text("\n".join([line] * 200_000))
    (folder / "concepts.json").write_text("old")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with open(folder / "log", "wb") as log:
        process = warm_processes.start(
            [*OVD, "--captions", "pairs:many.jsonl", "--out", "concepts.json"],
            cwd=folder, env=environment, stdout=log, stderr=log,
        )  # fmt: skip
        deadline = time.monotonic() + 120
        while b"noun phrases:" not in (folder / "log").read_bytes():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert (folder / "concepts.json").read_text() == "old"
    shown = (folder / "log").read_text()
    assert "/200000 [" in shown and "caption/s" in shown
