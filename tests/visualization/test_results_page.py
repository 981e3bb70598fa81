"""The page of a demo: a table and pictures, whatever stands in them."""

from xml.etree import ElementTree

from ovd_d2.visualization.results_page import results_page

TABLE = {"<oracle> & co": {"AP": 16.123, "AP_novel": None}, "ViLD": {"AP": 9.0, "AP_novel": 0.61}}


def test_every_number_and_picture_is_there():
    page = results_page("Title & more", ["One seed."], TABLE, {"a b.png": 'what "it" shows'})
    body = page[page.index("<body>") : page.index("</html>")]
    tree = ElementTree.fromstring(body)
    cells = [[cell.text for cell in row] for row in tree.iter("tr")]
    assert cells == [
        ["model", "AP", "AP_novel"],
        ["<oracle> & co", "16.1", "-"],
        ["ViLD", "9.0", "0.6"],
    ]
    (picture,) = tree.iter("img")
    assert picture.attrib == {"src": "a b.png", "alt": 'what "it" shows'}
    assert tree.find("h1").text == "Title & more"
    assert [paragraph.text for paragraph in tree.iter("p")] == ["One seed."]
    assert "http" not in page  # nothing is fetched


def test_without_rows():
    assert "<th>model</th>" in results_page("Title", [], {}, {})
