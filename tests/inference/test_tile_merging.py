"""Detections of overlapping tiles become one set: against a plain greedy version, and by hand."""

import pytest
import torch

from ovd_d2.inference.tile_merging import MIN_IOU, merge_tiles

# A picture of 300 x 100: two tiles of 200 x 100 that share 100 columns, and the whole.
TILES = [(0, 0, 200, 100), (100, 0, 300, 100), (0, 0, 300, 100)]
LEFT, RIGHT, WHOLE = range(3)


def merge(*rows, tiles=TILES):
    """(tile, box, score, class) each -> rows that stay, and their boxes."""
    tile_of, boxes, scores, classes = zip(*rows)
    merged = merge_tiles(
        torch.tensor(boxes).float(), torch.tensor(scores), torch.tensor(classes),
        torch.tensor(tiles).float(), torch.tensor(tile_of),
    )  # fmt: skip
    return merged.rows.tolist(), merged.boxes.tolist(), merged


def test_the_better_of_two_views_of_an_object_stays():
    seen = [(LEFT, (120, 20, 170, 60), 0.5, 0), (RIGHT, (121, 20, 171, 61), 0.8, 0)]
    assert merge(*seen)[0] == [1]
    other_class = [seen[0], (*seen[1][:3], 1)]
    assert merge(*other_class)[0] == [1, 0]


def test_a_part_goes_whatever_it_scores():
    """The left tile sees the first 20 of 70 columns, and is surer of them than the right one."""
    part, whole = (LEFT, (180, 20, 199.5, 60), 0.9, 0), (RIGHT, (180, 20, 250, 60), 0.3, 0)
    assert merge(part, whole)[0] == [1]
    assert merge(whole, part)[0] == [0]
    assert merge(part, (WHOLE, (181, 20, 251, 60), 0.2, 0))[0] == [1]


def test_a_small_object_in_front_of_a_large_one_of_its_class_stays():
    small, large = (LEFT, (120, 40, 140, 60), 0.4, 0), (RIGHT, (110, 10, 250, 90), 0.9, 0)
    assert merge(small, large)[0] == [1, 0]


def test_parts_of_what_no_tile_sees_whole_become_their_hull():
    left, right = (LEFT, (30, 20, 200, 60), 0.6, 0), (RIGHT, (100, 21, 270, 62), 0.7, 0)
    lone = (LEFT, (10, 70, 30, 90), 0.65, 0)
    rows, boxes, merged = merge(left, right, lone)
    assert rows == [1, 2] and merged.scores.tolist() == pytest.approx([0.7, 0.65])
    assert boxes == [[30, 20, 270, 62], [10, 70, 30, 90]]
    assert merged.parts == {1: [0, 1]}
    assert merge(left, right, (WHOLE, (30, 20, 270, 61), 0.1, 0))[0] == [2]  # seen whole after all


def test_a_part_alone_and_the_edge_of_the_picture():
    alone = (LEFT, (150, 20, 200, 60), 0.6, 0)
    assert merge(alone)[0] == [0]
    at_border = (LEFT, (0, 0, 120, 100), 0.3, 0)  # reaches edges of the picture alone: whole
    assert merge(at_border, (WHOLE, (0, 0, 122, 100), 0.2, 0))[0] == [0]


def test_boxes_of_one_tile_are_not_compared():
    twice = [(LEFT, (120, 20, 170, 60), 0.5, 0), (LEFT, (120, 20, 170, 60), 0.4, 0)]
    assert merge(*twice)[0] == [0, 1]
    assert merge(*twice, (RIGHT, (120, 20, 170, 60), 0.9, 0))[0] == [2]


def test_nothing():
    empty = merge_tiles(
        torch.zeros(0, 4), torch.zeros(0), torch.zeros(0).long(), torch.tensor(TILES).float(),
        torch.zeros(0).long(),
    )  # fmt: skip
    assert empty.boxes.shape == (0, 4) and len(empty.rows) == 0 and not empty.parts


def greedy(boxes, scores, classes, tiles, tile_of):
    """The rule of the module's text, row by row: rows that stay as they are, and groups."""

    def clip(box, frame):
        x0, y0 = max(box[0], frame[0]), max(box[1], frame[1])
        return x0, y0, max(x0, min(box[2], frame[2])), max(y0, min(box[3], frame[3]))

    def area(box):
        return (box[2] - box[0]) * (box[3] - box[1])

    def same(i, j):
        if tile_of[i] == tile_of[j] or classes[i] != classes[j]:
            return False
        both = clip(tiles[tile_of[i]], tiles[tile_of[j]])
        a, b = clip(boxes[i], both), clip(boxes[j], both)
        inside = area(clip(a, b))
        return inside > 0 and inside >= MIN_IOU * (area(a) + area(b) - inside)

    def is_part(i):
        tile, picture = tiles[tile_of[i]], tiles[-1]
        side = (tile[2] - tile[0], tile[3] - tile[1]) * 2
        return any(
            abs(boxes[i][k] - tile[k]) <= 0.01 * side[k] and tile[k] != picture[k] for k in range(4)
        )

    order = sorted(range(len(boxes)), key=lambda i: -scores[i])
    kept, gone = [], set()
    for i in (i for i in order if not is_part(i)):
        if i not in gone:
            kept.append(i)
            gone |= {j for j in order if same(i, j) and j != i}
    left = [i for i in order if is_part(i) and i not in gone]
    groups = []
    for i in left:
        touching = [group for group in groups if any(same(i, j) for j in group)]
        groups = [group for group in groups if group not in touching]
        groups.append(sorted([i, *(j for group in touching for j in group)]))
    return sorted(kept), sorted(groups)


@pytest.mark.parametrize("seed", range(6))
def test_as_the_plain_version_on_random_boxes(seed):
    generator = torch.Generator().manual_seed(seed)
    starts = (0, 60, 120, 180)
    tiles = [(x, y, x + 100, y + 100) for y in starts for x in starts] + [(0, 0, 280, 280)]
    frames = torch.tensor(tiles).float()
    tile_of = torch.randint(len(tiles), (250,), generator=generator)
    # Few objects, seen by many tiles with some noise, and cut at the tiles' edges.
    objects = torch.rand(12, 4, generator=generator) * 200
    objects[:, 2:] = objects[:, :2] + 20 + objects[:, 2:] / 2
    boxes = objects[torch.randint(12, (250,), generator=generator)]
    boxes = boxes + torch.randn(250, 4, generator=generator) * 2
    own = frames[tile_of]
    boxes = torch.maximum(torch.minimum(boxes, own[:, [2, 3, 2, 3]]), own[:, [0, 1, 0, 1]])
    seen = ((boxes[:, 2:] - boxes[:, :2]) > 1).all(dim=1)
    boxes, tile_of = boxes[seen], tile_of[seen]
    scores = torch.rand(len(boxes), generator=generator)
    classes = torch.randint(2, (len(boxes),), generator=generator)
    merged = merge_tiles(boxes, scores, classes, frames, tile_of)
    rows = merged.rows.tolist()
    whole, groups = greedy(
        boxes.tolist(), scores.tolist(), classes.tolist(), tiles, tile_of.tolist()
    )
    wanted = sorted([*([i] for i in whole), *groups])
    assert sorted(sorted(merged.parts.get(row, [row])) for row in rows) == wanted
    assert any(len(group) > 1 for group in groups) and len(whole) < len(boxes) / 2
    assert (merged.scores.diff() <= 0).all()
    for row, box in zip(rows, merged.boxes):
        members = boxes[merged.parts.get(row, [row])]
        assert box.tolist() == [*members[:, :2].amin(0).tolist(), *members[:, 2:].amax(0).tolist()]
