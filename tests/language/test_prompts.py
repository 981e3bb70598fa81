import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovd_d2.errors import OVDError
from ovd_d2.language import PROMPT_SETS, article, clean_name, fill, load_prompts


def test_published_sets_are_complete():
    counts = {name: len(templates) for name, templates in PROMPT_SETS.items()}
    assert counts == {
        "name": 1,
        "photo": 1,
        "article_photo": 1,
        "vild63": 63,
        "vild63_this_is": 63,
        "imagenet80": 80,
        "imagenet7": 7,
    }
    for templates in PROMPT_SETS.values():
        assert len(set(templates)) == len(templates)
        assert all("{}" in template for template in templates)
    vild, imagenet = PROMPT_SETS["vild63"], PROMPT_SETS["imagenet80"]
    assert vild[0] == "There is {article} {} in the scene." and vild[-1] == "a painting of a {}."
    assert imagenet[0] == "a bad photo of a {}." and imagenet[-1] == "a tattoo of the {}."
    # CLIP's best seven by forward search are among its eighty.
    assert {"itap of a {}.", "a origami {}.", "a {} in a video game."} < set(imagenet)
    assert not any("{article}" in template for template in imagenet)


def test_this_is_variant_prefixes_what_starts_with_an_article():
    pairs = dict(zip(PROMPT_SETS["vild63"], PROMPT_SETS["vild63_this_is"]))
    assert pairs["a photo of my {}."] == "This is a photo of my {}."
    assert pairs["the toy {}."] == "This is the toy {}."
    assert pairs["itap of the {}."] == "itap of the {}."
    assert pairs["There is the {} in the scene."] == "There is the {} in the scene."


@pytest.mark.parametrize(
    "name, cleaned, its_article",
    [
        ("aerosol_can", "aerosol can", "an"),
        ("bow_(decorative_ribbons)", "bow (decorative ribbons)", "a"),
        ("traffic light/signal", "traffic light or signal", "a"),
        ("Apple", "apple", "an"),
        ("iPod", "ipod", "an"),
        ("hour_glass", "hour glass", "a"),  # by letter, not by sound: ViLD's rule
        ("unicycle", "unicycle", "an"),
        ("  double   space ", "double space", "a"),
        ("etc.", "etc", "an"),
        ("cup / mug", "cup or mug", "a"),
        (
            "monitor_(computer_equipment) computer_monitor",
            "monitor (computer equipment) computer monitor",
            "a",
        ),
    ],
)
def test_names_are_cleaned_and_get_their_article(name, cleaned, its_article):
    assert clean_name(name) == cleaned
    assert article(cleaned) == its_article
    assert fill("a photo of {article} {}.", name) == f"a photo of {its_article} {cleaned}."
    assert fill("a photo of a {}", name) == f"a photo of a {cleaned}"


def test_braces_in_a_name_are_text():
    assert fill("see {article} {} and {}", "{article} {}") == "see a {article} {} and {article} {}"


@pytest.mark.parametrize("name", ["___", " . ", "..."])
def test_name_without_letters_is_refused(name):
    with pytest.raises(OVDError, match="no letters left"):
        clean_name(name)


@given(st.text(max_size=20) | st.text("aE ._/", max_size=8))
def test_cleaning_is_stable(name):
    try:
        once = clean_name(name)
    except OVDError:
        return
    assert clean_name(once) == once
    assert "_" not in once and "/" not in once and "  " not in once


def test_custom_templates(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("# my own\n\na sketch of {article} {}\r\n# not {}\n{} on a table\n")
    assert load_prompts(path) == ("a sketch of {article} {}", "{} on a table")
    assert load_prompts("a {}") == ("a {}",)


@pytest.mark.parametrize(
    "content, message",
    [
        ("", "holds no template"),
        ("# only a comment\n", "holds no template"),
        ("a photo\n", "must hold {}"),
        ("a {} with {colour}\n", "no other field"),
        ("a {{}}\n", "no other field"),
        ("a {article} thing\n", "must hold {}"),
    ],
)
def test_unusable_template_files_are_refused_by_name(tmp_path, content, message):
    path = tmp_path / "mine.txt"
    path.write_text(content)
    with pytest.raises(OVDError, match=message) as caught:
        load_prompts(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("spec", ["vild64", "", "missing.txt", "."])
def test_unknown_sets_are_refused_with_the_known_ones(spec):
    with pytest.raises(OVDError, match="vild63, vild63_this_is, imagenet80, imagenet7"):
        load_prompts(spec)


def test_undecodable_template_file_is_refused(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_bytes(b"\xff\xfe{\x00}\x00")
    with pytest.raises(OVDError, match=r"mine\.txt"):
        load_prompts(path)


@given(st.text(max_size=30))
def test_any_template_line_is_loaded_or_refused(tmp_path_factory, line):
    path = tmp_path_factory.mktemp("prompts") / "any.txt"
    path.write_bytes(line.encode("utf-8", "surrogatepass"))
    try:
        templates = load_prompts(path)
    except OVDError:
        return
    assert all("dog" in fill(template, "dog") for template in templates)
