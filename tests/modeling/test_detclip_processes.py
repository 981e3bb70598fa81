"""Two processes of DetCLIP learn what one with both of their batches does."""

import pytest
import torch
from small_detclip import CAPTION, boxes_of, in_double, no_boxes, pair, sample, small_detclip
from torch.nn.parallel import DistributedDataParallel
from two_processes import in_two_processes

from ovd_d2.errors import OVDError
from ovd_d2.structures import TokenSpans

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

TREE = TokenSpans("A Cat, a tall tree, a bush", (((0, 5),), ((7, 18),), ((20, 26),)))


def classes(seed, numbers):
    return sample(seed=seed, instances=boxes_of(gt_classes=numbers))


def phrases(seed, caption, numbers):
    rows = boxes_of(gt_phrases=numbers) if numbers else no_boxes(field="gt_phrases")
    return sample(seed=seed, instances=rows, caption=caption)


PAIRS = (
    [pair("a cat on a red_mug", "a cat", "a red mug", "a mug", seed=1), pair("an owl", seed=2)],
    [pair("two hats", "hats", seed=3), pair("An  owl", "owl", seed=4)],
)
# Batch of each process, and keys. A process's own words choose its regions, so that the choice is
# that of one process only where an image's own text alone counts, or all are kept.
CASES = {
    "classes": ([classes(1, [0, 1]), sample(seed=2, instances=no_boxes())],
                [classes(3, [2, 2]), classes(4, [2, 0])], {"CONCEPTS_DETECTION": 0}),
    "classes, all negatives": ([classes(1, [0, 1])], [classes(3, [2, 2])], {}),
    "no box in one process": ([classes(1, [0, 1])], [sample(seed=2, instances=no_boxes())],
                              {"CONCEPTS_DETECTION": 0, "REGION_SCORE": "iou"}),
    "phrases": ([phrases(1, CAPTION, [0, 0]), phrases(2, TREE, [1, 0])],
                [phrases(3, TokenSpans("a cat", (((0, 5),),)), [0, 0]), phrases(4, CAPTION, [])],
                {"CONCEPTS_GROUNDING": 0, "LOCALIZE_GROUNDING": True}),
    "no concept in one process": (
        [phrases(1, CAPTION, [0, 0])], [phrases(4, TokenSpans("nothing", ()), [])],
        {"CONCEPTS_GROUNDING": 0}),
    "pairs": (*PAIRS, {"REGION_SCORE": "own_text", "REGIONS": 20}),
    "pairs, all regions": (*PAIRS, {"REGIONS": 200, "NMS_THRESH_TEST": 1.0}),
    "pairs, softmax": (*PAIRS, {"REGION_SCORE": "own_text", "MATCH": "softmax", "REGIONS": 9}),
    "pairs, largest": (*PAIRS, {"REGION_SCORE": "centerness", "MATCH": "largest", "REGIONS": 9}),
    "pairs, image to text": (
        *PAIRS, {"REGION_SCORE": "own_text", "DIRECTION": "image_to_text", "REGIONS": 20}),
    "pairs, both": (*PAIRS, {"REGION_SCORE": "own_text", "DIRECTION": "both", "REGIONS": 20}),
    "all kinds": (
        [classes(1, [0, 1]), *PAIRS[0], phrases(2, TREE, [1, 0])],
        [phrases(3, CAPTION, [1, 0]), *PAIRS[1], classes(4, [2, 0]), classes(5, [1, 1])],
        {"REGION_SCORE": "own_text", "REGIONS": 20}),
}  # fmt: skip


def learned(model, batch):
    losses = model(batch)
    sum(losses.values()).backward()
    gradients = {n.removeprefix("module."): p.grad for n, p in model.named_parameters()}
    return {name: value.detach() for name, value in losses.items()}, gradients


def of_rank(rank):
    """Losses and gradients of every case, as DistributedDataParallel averages them."""
    found = {}
    for name, (*batches, keys) in CASES.items():
        model = DistributedDataParallel(small_detclip(**keys).double().train())
        found[name] = learned(model, batches[rank])
    return found


def test_two_processes_equal_one(monkeypatch, tmp_path):
    in_double(monkeypatch)
    ranks = in_two_processes(of_rank, tmp_path)
    for case, (first, second, keys) in CASES.items():
        losses, gradients = learned(small_detclip(**keys).double().train(), first + second)
        found = [of_one[case] for of_one in ranks]
        for name, value in losses.items():
            mean = (found[0][0][name] + found[1][0][name]) / 2
            torch.testing.assert_close(mean, value, rtol=1e-9, atol=0, msg=f"{case}: {name}")
        assert losses["loss_word_region" if "pairs" in case else "loss_alignment"] > 0
        for name, wanted in gradients.items():
            size = max(wanted.abs().max().item(), 1e-6)
            for of_one in found:
                torch.testing.assert_close(
                    of_one[1][name], wanted, rtol=1e-6, atol=1e-8 * size, msg=f"{case}: {name}"
                )


def read_texts(rank):
    """Texts that the tower of this process has read, and the batches that were refused."""
    model, read = small_detclip(CONCEPTS_DETECTION=0).train(), []
    model.text.tower.register_forward_hook(lambda _, given, __: read.extend(given[0]))
    model([classes(1, [0, 1])] if rank == 0 else [classes(2, [2, 1])])
    refused = []
    for batches in (
        ([classes(1, [0, 1])], PAIRS[0]),
        ([classes(1, [0, 1])], [phrases(1, CAPTION, [0, 1])]),
        ([classes(1, [0, 1]), *PAIRS[0]], PAIRS[1]),
        (PAIRS[0], PAIRS[1][:1]),
    ):
        try:
            model(batches[rank])
        except OVDError as error:
            refused.append(str(error))
    return {"read": read, "refused": refused}


def test_texts_are_shared_out_and_different_batches_are_refused_by_both(tmp_path):
    first, second = in_two_processes(read_texts, tmp_path)
    # Three concepts for two processes; one text is read for the shape alone.
    assert first["read"] == ["cat", "zebra crossing"] and second["read"] == ["red mug", "cat"]
    assert first["refused"] == second["refused"] and len(first["refused"]) == 4
    *kinds, numbers = first["refused"]
    for message in kinds:
        assert message.startswith("The processes have batches of different kinds ([['boxes")
        assert message.endswith("DATASETS.SOURCES, which gives all processes the same kind.")
    assert numbers == (
        "The processes have 2, 1 pairs, but each must have as many as the others: make "
        "SOLVER.IMS_PER_BATCH a multiple of their number."
    )
