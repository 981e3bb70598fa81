"""Contact sheets of label files."""

import numpy as np
import pytest
from PIL import Image

from ovd_d2.errors import OVDError
from ovd_d2.pseudo_labelling import LABELS_KIND, LabelledImage, write_label_file
from ovd_d2.visualization.label_sheet import draw_label_sheet

FACTS = {"kind": LABELS_KIND}
CATEGORIES = [{"id": 7, "name": "red_mug"}]


def write(folder, sizes):
    names, found = {}, []
    for number, (width, height) in enumerate(sizes):
        names[number] = str(folder / f"{number}.png")
        Image.new("RGB", (width, height), (10, 10, 10)).save(names[number])
        found.append(LabelledImage(number, height, width, ((0, (1.0, 1.0, 9.0, 9.0), 0.5),)))
    write_label_file(folder / "labels.json", FACTS, names, found, CATEGORIES)
    return folder / "labels.json"


def test_a_sheet_shows_every_image_with_its_box(tmp_path):
    file = write(tmp_path, [(20, 20), (60, 30), (30, 60), (20, 20), (900, 20)])
    out = draw_label_sheet(file, tmp_path / "new/sheet.png", num=9, side=100)
    sheet = np.asarray(Image.open(out))
    assert sheet.shape == (206, 418, 3)
    for row, column in ((0, 0), (0, 1), (0, 2), (0, 3), (1, 0)):
        tile = sheet[row * 106 : row * 106 + 100, column * 106 : column * 106 + 100]
        assert (np.ptp(tile.astype(int), axis=2) > 60).any()  # a box has a colour
    assert (sheet[106:, 106:] == 255).all()
    one = draw_label_sheet(file, tmp_path / "one.png", num=1, side=50)
    assert Image.open(one).size == (50, 50)


def test_what_cannot_be_drawn_is_named(tmp_path):
    file = write(tmp_path, [(20, 20)])
    with pytest.raises(OVDError, match=r"Cannot write .*sheet"):
        draw_label_sheet(file, tmp_path / "sheet.nonsense")
    (tmp_path / "0.png").unlink()
    with pytest.raises(OVDError, match=r"0\.png"):
        draw_label_sheet(file, tmp_path / "sheet.png")
    write_label_file(file, FACTS, {}, [], CATEGORIES)
    with pytest.raises(OVDError, match="there is nothing to draw"):
        draw_label_sheet(file, tmp_path / "sheet.png")
