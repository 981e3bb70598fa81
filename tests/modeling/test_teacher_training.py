"""Distillation in training: optimizer, checks before it starts, several processes, the bench."""

import json
import math
import os

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from small_detectors import DIM, make_batch, make_embeddings, make_vocabulary
from test_region_distillation import METHODS, two_images, with_regions
from two_processes import in_two_processes

from ovd_d2.benchmarks.speed.roi_pass import measure_roi_part
from ovd_d2.benchmarks.speed.train_step import PLAIN, StepTimes, measure_step
from ovd_d2.cli.app import main
from ovd_d2.engine.optimizer import build_optimizer
from ovd_d2.engine.teacher_check import check_teacher
from ovd_d2.errors import OVDError
from ovd_d2.modeling import set_vocabulary
from ovd_d2.region_store import RegionStoreWriter, StoreFacts


@pytest.fixture
def store(tmp_path):
    """``store(encoder_id)``: a finished store without an image."""

    def make(encoder_id):
        facts = StoreFacts.for_dataset(
            "tiny", [], encoder_id=encoder_id, dim=DIM, crop_rule="1x", proposals="gt"
        )
        with RegionStoreWriter(tmp_path / encoder_id, facts):
            pass
        return str(tmp_path / encoder_id)

    return make


def test_learning_rate_of_the_second_head(build, zoo_cfg):
    factors = [["roi_heads.image_branch.", 3.0], ["backbone.", 0.1]]
    cfg = zoo_cfg("fpn", 5, *METHODS["ensemble"], "SOLVER.BASE_LR", 0.01,
                  "SOLVER.LR_MULTIPLIERS", factors)  # fmt: skip
    model = build_model(cfg)
    lr = {id(p): g["lr"] for g in build_optimizer(cfg, model).param_groups for p in g["params"]}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            factor = 0.1 if name.startswith("backbone.") else 1.0
            factor = 3.0 if name.startswith("roi_heads.image_branch.") else factor
            assert lr[id(parameter)] == pytest.approx(0.01 * factor), name


@pytest.mark.parametrize("method", ["vild", "ensemble", "control"])
def test_store_and_model_are_compared_before_training(zoo_cfg, store, method, caplog):
    cfg = zoo_cfg("fpn", 5, *METHODS[method])
    model = build_model(cfg)
    vocabulary = make_vocabulary(5)
    set_vocabulary(model, vocabulary, make_embeddings(vocabulary, encoder_id="minilm@1"))
    if method == "control":
        check_teacher(cfg, model)
        cfg.DATASETS.REGION_STORE = store("clip@2")
        check_teacher(cfg, model)
        assert "does not learn from it" in caplog.text
        return
    with pytest.raises(OVDError, match=r"DATASETS.REGION_STORE is empty"):
        check_teacher(cfg, model)
    cfg.DATASETS.REGION_STORE = store("minilm@1")
    check_teacher(cfg, model)
    cfg.DATASETS.REGION_STORE = store("clip@2")
    with pytest.raises(OVDError, match=r"clip@2.*minilm@1"):
        check_teacher(cfg, model)
    cfg.DATASETS.REGION_STORE = "nowhere"
    with pytest.raises(OVDError, match="nowhere does not exist"):
        check_teacher(cfg, model)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_two_processes_with_uneven_regions(zoo_cfg, tmp_path):
    """DDP without find_unused_parameters: every step ends, with the same gradients on both."""
    cfg = zoo_cfg("fpn", 5, *METHODS["ensemble"])

    def learn(rank):
        torch.manual_seed(0)
        model = torch.nn.parallel.DistributedDataParallel(build_model(cfg).train())
        totals = []
        # One process has regions, then the other, then none.
        for step, counts in enumerate([(3, 0), (0, 4), (0, 0), (2, 2)]):
            batch = make_batch([with_regions(two_images()[0], counts[rank], seed=step)])
            model.zero_grad()
            torch.manual_seed(step)
            with EventStorage():
                sum(model(batch).values()).backward()
            learned = [p.grad.double().sum() for p in model.parameters() if p.requires_grad]
            totals.append(float(sum(learned)))
        return totals

    left, right = in_two_processes(learn, tmp_path)
    assert left == right and len(set(left)) == 4 and all(map(math.isfinite, left))


SMALL = (
    "SOLVER.IMS_PER_BATCH", 2, "INPUT.MIN_SIZE_TRAIN", (64,), "DATASETS.TRAIN", (),
)  # fmt: skip


@pytest.mark.parametrize("method", ["vild", "ensemble"])
def test_step_bench(zoo_cfg, method):
    cfg = zoo_cfg("fpn", 5, *METHODS[method], *SMALL)
    seen = []

    def progress(turns):
        seen.extend(turns)
        return turns

    times = measure_step(cfg, "tiny", regions=[2, 9], rounds=3, progress=progress)
    assert len(seen) == 5
    assert times.seconds.keys() == {PLAIN, 0, 2, 9}
    assert all(len(s) == 3 and min(s) > 0 for s in times.seconds.values())
    rows = times.table()
    assert [row["regions"] for row in rows] == [PLAIN, 0, 2, 9]
    assert rows[1]["median_ratio"] == 1 and rows[1]["quartiles"] == (1, 1)
    assert rows[0]["median_ratio_to_plain"] == 1 and rows[0]["quartiles_to_plain"] == (1, 1)


@pytest.mark.parametrize("kind", ["fpn", "cascade", "c4"])
def test_roi_part_bench(zoo_cfg, kind):
    cfg = zoo_cfg(kind, 5, *METHODS["vild"], *SMALL)
    few, many = measure_roi_part(cfg, [2, 9], images=2, rounds=3)
    assert (few.regions, many.regions) == (2, 9)
    for part in (few, many):
        assert len(part.shared) == len(part.separate) == 3
        assert min(part.shared + part.separate) > 0
        ratios = [a / b for a, b in zip(part.shared, part.separate)]
        assert part.median_ratio == sorted(ratios)[1]


def test_roi_part_bench_refuses_other_heads(zoo_cfg):
    cfg = zoo_cfg("fpn", 5, *METHODS["vild"], *SMALL, "MODEL.ROI_HEADS.NAME", "StandardROIHeads")
    with pytest.raises(OVDError, match="ovd_d2's ROI heads"):
        measure_roi_part(cfg, [2], rounds=1)


def test_ratios_are_paired():
    times = StepTimes("x", {0: [1.0, 10.0, 2.0], 5: [1.1, 11.0, 2.4], PLAIN: [1.0, 11.0, 2.0]})
    assert times.ratios(5, PLAIN) == pytest.approx([1.1, 1.0, 1.2])
    assert times.ratios(5) == pytest.approx([1.1, 1.1, 1.2])
    assert times.median_ratio(5) == pytest.approx(1.1)
    assert times.spread(5) == pytest.approx((1.1, 1.15))
    assert StepTimes("x", {0: [2.0], 5: [3.0]}).spread(5) == (1.5, 1.5)


@pytest.mark.parametrize("numbers", [{"rounds": 0}, {"regions": [0]}, {"images": -1}])
def test_step_bench_refuses_bad_numbers(zoo_cfg, numbers):
    with pytest.raises(OVDError, match="1 or more"):
        measure_step(zoo_cfg("fpn", 5, *METHODS["vild"], *SMALL), "tiny", **numbers)


def test_step_bench_refuses_a_model_without_teacher(zoo_cfg):
    with pytest.raises(OVDError, match=r"configs/mini/vild.yaml"):
        measure_step(zoo_cfg("fpn", 5, *METHODS["control"], *SMALL), "tiny", rounds=1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--regions", "5,many"], "--regions 5,many: give whole numbers"),
        (["--config-file", "nowhere.yaml"], "nowhere.yaml does not exist"),
    ],
)
def test_step_bench_bad_input(words, message, capsys):
    config = os.path.join(os.path.dirname(__file__), "../../configs/mini/vild.yaml")
    with pytest.raises(SystemExit) as ended:
        main(["speed", "step", "--config-file", config, *words])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.slow
def test_step_bench_of_a_gpu_config_runs_without_one(mini_root, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = os.path.join(os.path.dirname(__file__), "../../configs/mini/vild.yaml")
    words = ["--images", "1", "--rounds", "1", "--regions", "2", "--json", "MODEL.DEVICE", "cuda"]
    with pytest.raises(SystemExit) as ended:
        main(["speed", "step", "--config-file", config, *words])
    assert not ended.value.code
    facts = json.loads(capsys.readouterr().out)
    assert facts["device"] == "cpu"
    assert [row["regions"] for row in facts["steps"]] == [PLAIN, 0, 2]
