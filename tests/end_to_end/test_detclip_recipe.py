"""The mini DetCLIP by commands: trained on boxes, grounded captions and pairs, killed in between,
evaluated, used, and with a concept dictionary."""

import json
import signal
import sys
import time
from functools import partial

import pytest
import torch
from recipe_commands import (
    ROOT,
    note_losses,
    note_texts,
    noted,
    run,
    run_copy,
    start_copy,
    weights,
)

from ovd_d2.language import ConceptDictionary

pytestmark = [pytest.mark.slow, pytest.mark.timeout(580)]
ITERATIONS = 9
KINDS = [
    {"loss_alignment", "loss_box_reg", "loss_centerness"}, {"loss_alignment"}, {"loss_word_region"},
]  # fmt: skip
SOURCES = [
    {"NAME": "boxes", "RATIO": 1},
    {"NAME": "captions", "RATIO": 1,
     "OPTS": ["DATASETS.TRAIN", ["mini_v1_grounding_train"], "INPUT.MAPPER", "GroundingMapper"]},
    {"NAME": "pairs", "RATIO": 1,
     "OPTS": ["DATASETS.TRAIN", ["mini_v1_scene_pairs"], "INPUT.MAPPER", "ImageTextPairMapper",
              "INPUT.PAIRS.IMAGE_SIZE", 64, "INPUT.PAIRS.RESIZE", "squash",
              "INPUT.PAIRS.NOUN_PHRASES", "stop-words", "SOLVER.IMS_PER_BATCH", 3]},
]  # fmt: skip
RECIPE = ["--config-file", "configs/mini/detclip_pairs.yaml"]
SMALL = [
    "DATASETS.SOURCES", SOURCES, "SOLVER.IMS_PER_BATCH", 2, "MODEL.TIMM.WEIGHTS", "",
    "SOLVER.MAX_ITER", ITERATIONS, "SOLVER.CHECKPOINT_PERIOD", 4,
    "MODEL.DETCLIP.SCORE_THRESH_TEST", 0.0,
    "INPUT.MIN_SIZE_TRAIN", "(80, 96)", "INPUT.MIN_SIZE_TEST", 96,
    "DATASETS.TEST", "('mini_v1_val', 'mini_v1_grounding_val')",
]  # fmt: skip


def opened(out):
    return ["--config-file", f"{out}/config.yaml", "--weights", f"{out}/model_final.pth"]


@pytest.fixture(scope="module")
def trained(folder):
    """The folder with an uninterrupted ``run`` and its losses in ``run.jsonl``."""
    watch = [partial(note_losses, "run.jsonl")]
    run_copy(folder, "train_net.py", *RECIPE, *SMALL, "OUTPUT_DIR", "run", watch=watch)
    return folder


@pytest.fixture
def image(folder):
    return next((folder / "datasets/mini-v1/images/test").iterdir())


def read(path):
    return json.loads(path.read_text())


def test_each_iteration_learns_from_one_kind_and_metrics_tell_all(trained):
    rows = noted(trained / "run.jsonl")
    assert [row["iteration"] for row in rows] == list(range(ITERATIONS))
    for row in rows:
        assert {*row} - {"iteration", "total_loss"} == KINDS[row["iteration"] % 3]
    written = [json.loads(line) for line in (trained / "run/metrics.json").open()]
    losses = {key for row in written for key in row if key.startswith("loss_")}
    assert losses == set().union(*KINDS)


def test_killed_and_resumed_losses_and_weights_are_the_same(trained):
    words = [*RECIPE, "--resume", *SMALL, "OUTPUT_DIR", "killed", "DATASETS.TEST", "()"]
    watch = [partial(note_losses, "killed.jsonl")]
    process = start_copy(trained, "train_net.py", *words, watch=watch)
    while len(noted(trained / "killed.jsonl")) < 6 and process.is_alive():  # saved after 4
        time.sleep(0.002)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    before = noted(trained / "killed.jsonl")
    assert (trained / "killed/last_checkpoint").exists()
    assert not (trained / "killed/model_final.pth").exists()

    run_copy(trained, "train_net.py", *words, watch=watch)
    wanted = {row["iteration"]: row for row in noted(trained / "run.jsonl")}
    rows = noted(trained / "killed.jsonl")
    assert all(row == wanted[row["iteration"]] for row in rows)
    after = [row["iteration"] for row in rows[len(before) :]]
    assert after == list(range(after[0], ITERATIONS)) and after[0] in (4, 8)
    straight, resumed = weights(trained, "run"), weights(trained, "killed")
    assert straight.keys() == resumed.keys()
    assert [key for key in straight if not torch.equal(straight[key], resumed[key])] == []


def test_eval_only_finds_what_the_training_run_found(trained):
    """A process of its own: base and novel AP, and phrases of captions."""
    run(trained, sys.executable, ROOT / "train_net.py", "--eval-only", "--config-file",
        "run/config.yaml", "MODEL.WEIGHTS", "run/model_final.pth",
        "OUTPUT_DIR", "evaluated")  # fmt: skip
    results = read(trained / "evaluated/results.json")["results"]
    for metric in ("AP", "AP_base", "AP_novel", "AP50_base", "AP50_novel"):
        assert 0 <= results["mini_v1_val"]["bbox"][metric] <= 100, metric
    phrases = results["mini_v1_grounding_val"]["phrase_grounding"]
    assert 0 <= phrases["R@1"] <= phrases["R@10"] <= phrases["upper_bound"] <= 100
    assert results == read(trained / "run/results.json")["results"]
    file = "inference/lvis_instances_results.json"
    found = read(trained / "evaluated" / file)
    assert len(found) > 100 and found == read(trained / "run" / file)


def ovd(folder, *words, watch=()):
    return run_copy(folder, "ovd", *words, watch=watch)


def scores_of(path):
    """(phrase or class, score) of every box, the best first."""
    content = read(path)
    if "boxes" in content:
        return [(box["phrase"], box["score"]) for box in content["boxes"]]
    return [(found["category_id"], found["score"]) for found in content["annotations"]]


def assert_close(found, wanted):
    """Exported weights are in half precision."""
    found, wanted = ([score for _, score in rows] for rows in (found, wanted))
    assert len(wanted) > 3
    assert found[:3] == pytest.approx(wanted[:3], abs=2e-3)


def test_run_and_exported_model_predict_and_ground(trained, image):
    said = ovd(trained, "export", "run/model_final.pth", "--config-file", "run/config.yaml",
               "--out", "exported")  # fmt: skip
    assert "160 classes" in said
    for name, model in (("run", opened("run")), ("exported", ["--model", "exported"])):
        ovd(trained, "predict", image, *model, "--vocab", "owl, red_mug", "--score-threshold", 0,
            "--out", name, "--json", f"{name}_found.json")  # fmt: skip
        assert (trained / name / image.name).is_file()
        categories = read(trained / f"{name}_found.json")["categories"]
        assert [category["name"] for category in categories] == ["owl", "red_mug"]
        ovd(trained, "ground", image, "an owl and a red mug", *model, "--out", f"{name}.png",
            "--json", f"{name}_ground.json", "--score-threshold", 0)  # fmt: skip
        assert (trained / f"{name}.png").is_file()
        phrases = read(trained / f"{name}_ground.json")["phrases"]
        assert [phrase["text"] for phrase in phrases] == ["owl", "red mug"]
    for file in ("found", "ground"):
        of_run, of_export = (
            scores_of(trained / f"{name}_{file}.json") for name in ("run", "exported")
        )
        assert_close(of_export, of_run)
    # A class and the phrase of its name are one concept, with one score.
    best = [max(scores_of(trained / f"run_{file}.json"), key=lambda row: row[1])[1]
            for file in ("found", "ground")]  # fmt: skip
    assert best[0] == pytest.approx(best[1], rel=1e-5)


def test_definitions_of_a_dictionary_are_read_in_training_and_at_test(folder, image):
    ovd(folder, "vocab", "dictionary", "--names", "dataset:mini_v1_train_base", "--captions",
        "mini_v1_scene_pairs", "--noun-phrases", "stop-words", "--min-count", 1, "--out",
        "concepts.json")  # fmt: skip
    dictionary = ConceptDictionary.load(str(folder / "concepts.json"))
    enriched = ["MODEL.DETCLIP.ENRICH", True, "MODEL.DETCLIP.DICTIONARY", "concepts.json"]
    run_copy(folder, "train_net.py", *RECIPE, *SMALL, *enriched, "SOLVER.MAX_ITER", 3,
             "DATASETS.TEST", "('mini_v1_grounding_val',)", "OUTPUT_DIR", "enriched",
             watch=[partial(note_texts, "training.jsonl")])  # fmt: skip
    read_in_training = {text for row in noted(folder / "training.jsonl") for text in row["texts"]}
    caption = "an axe and a teapot and a wug"
    texts = [dictionary.text("axe"), dictionary.text("teapot"), "wug"]
    assert texts[0] == "axe, a tool with a heavy blade on a wooden handle for chopping wood"
    assert set(texts[:2]) <= read_in_training
    assert not {"axe", "teapot"} & read_in_training

    ovd(folder, "export", "enriched/model_final.pth", "--config-file", "enriched/config.yaml",
        "--out", "exported_enriched")  # fmt: skip
    for number, model in enumerate((opened("enriched"), ["--model", "exported_enriched"])):
        if number == 1:
            (folder / "concepts.json").unlink()  # the exported model brings its own
        watch = [partial(note_texts, f"test{number}.jsonl")]
        options = [*model, "--score-threshold", 0]
        ovd(folder, "ground", image, caption, *options, "--json", f"ground{number}.json",
            watch=watch)  # fmt: skip
        ovd(folder, "predict", image, *options, "--vocab", "axe, Teapot, wug", "--no-pictures",
            "--json", f"found{number}.json", watch=watch)  # fmt: skip
        assert [row["texts"] for row in noted(folder / f"test{number}.jsonl")] == [texts] * 2
    for file in ("ground", "found"):
        of_run, of_export = (scores_of(folder / f"{file}{number}.json") for number in (0, 1))
        assert_close(of_export, of_run)


def test_without_definitions_the_same_weights_score_otherwise(trained, image):
    """ENRICH is what changes the scores; without a DICTIONARY definitions are the classes' own."""
    yaml = trained / "run/config.yaml"
    (trained / "defined").mkdir()
    (trained / "defined/config.yaml").write_text(
        yaml.read_text().replace("ENRICH: false", "ENRICH: true")
    )
    scores = []
    for name in ("run", "defined"):
        model = ["--config-file", f"{name}/config.yaml", "--weights", "run/model_final.pth"]
        ovd(trained, "ground", image, "an anvil beside a teapot", *model, "--score-threshold", 0,
            "--json", f"{name}_teapot.json",
            watch=[partial(note_texts, f"{name}_texts.jsonl")])  # fmt: skip
        scores.append(scores_of(trained / f"{name}_teapot.json"))
    (plain,), (defined,) = (noted(trained / f"{n}_texts.jsonl") for n in ("run", "defined"))
    assert plain["texts"] == ["anvil", "teapot"]
    assert [text.partition(", ")[0] for text in defined["texts"]] == ["anvil", "teapot"]
    assert defined["texts"][1] != "teapot"
    assert scores[0] != scores[1]
