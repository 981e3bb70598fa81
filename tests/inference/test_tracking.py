"""Ids that follow objects: those that move, cross, are missed, or are of two classes."""

import builtins

import pytest
import torch
from detectron2.structures import Boxes, Instances

from ovd_d2.errors import OVDError
from ovd_d2.inference.tracking import ObjectTracker

pytest.importorskip("trackers")


def detections(*rows):
    """(x, y, class) of boxes of 20 x 20 pixels, in a frame of 200 x 300."""
    instances = Instances((200, 300))
    corners = torch.tensor([row[:2] for row in rows]).float().reshape(-1, 2)
    instances.pred_boxes = Boxes(torch.cat([corners, corners + 20], dim=1))
    instances.scores = torch.full((len(rows),), 0.1)
    instances.pred_classes = torch.tensor([row[2] for row in rows]).long()
    return instances


def run(frames, rate=25.0, seconds=None):
    tracker = ObjectTracker(rate)
    times = seconds or [k / rate for k in range(len(frames))]
    return [tracker.update(detections(*rows), t).tolist() for rows, t in zip(frames, times)]


def test_an_object_keeps_its_id_from_its_second_frame_on():
    ids = run([[(3 * k, 50, 0)] for k in range(30)])
    assert ids == [[-1]] + [[1]] * 29


def test_two_that_cross_keep_theirs_in_any_order_of_the_rows():
    frames = []
    for k in range(60):
        pair = [(4 * k, 50, 0), (236 - 4 * k, 58, 0)]
        frames.append(pair if k % 2 else pair[::-1])
    ids = run(frames)
    first = [row[0] if k % 2 else row[1] for k, row in enumerate(ids)]
    second = [row[1] if k % 2 else row[0] for k, row in enumerate(ids)]
    assert len(set(first[1:])) == len(set(second[1:])) == 1 and first[-1] != second[-1]


def test_what_is_missed_for_a_while_comes_back_as_itself_and_later_as_another():
    def seen(gap):
        there = [[(100, 50, 0)]] * 10
        return run(there + [[]] * gap + there)

    assert seen(10)[-1] == [1]
    assert seen(40)[-1] == [2]  # more than a second


def test_two_classes_in_one_place_are_two_objects():
    both = [(100, 50, 0), (100, 50, 700)]
    ids = run([both, both, both[::-1], both, [both[1]], both])
    assert ids[1:] == [[1, 2], [2, 1], [1, 2], [2], [1, 2]]


def test_nothing_and_only_once():
    assert run([[], [(5, 5, 0)], [], [(200, 5, 0)], []]) == [[], [-1], [], [-1], []]


@pytest.mark.parametrize("rate", [25.0, 1.0, 0.2, 29.97 / 30])
def test_any_rate(rate):
    """A frame a second or less is no reason to lose an object."""
    ids = run([[(100 + k, 50, 0)] for k in range(8)], rate)
    assert ids == [[-1]] + [[1]] * 7


def test_uneven_times():
    times = [0.0, 0.04, 0.1, 0.6, 0.61, 1.2]
    ids = run([[(100 * t, 50, 0)] for t in times], seconds=times)
    assert ids[1:] == [[1]] * 5


def test_masks_and_orders_do_not_matter_to_it():
    instances = detections((100, 50, 0))
    instances.pred_masks = torch.zeros(1, 200, 300, dtype=torch.bool)
    assert ObjectTracker(25.0).update(instances, 0.0).tolist() == [-1]


def test_without_trackers(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.partition(".")[0] == "trackers":
            raise ImportError("No module named 'trackers'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(OVDError, match=r"pip install 'ovd_d2\[video\]'"):
        ObjectTracker(25.0)
