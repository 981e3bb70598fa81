"""Names times attributes."""

import pytest
import torch

from ovd_d2.errors import OVDError
from ovd_d2.language import (
    Vocabulary,
    attribute_probabilities,
    expand_with_attributes,
    vocabulary_product,
)


def test_probabilities_are_products_in_the_order_of_the_names():
    names = Vocabulary(names=("mug", "hat"), is_novel=(False, True))
    attributes = ["red", "dark blue", "striped"]
    p_name = torch.rand(4, 2, dtype=torch.float64).softmax(dim=1)
    p_attribute = torch.rand(4, 3, dtype=torch.float64).softmax(dim=1)
    both = expand_with_attributes(p_name, p_attribute)
    product = vocabulary_product(names, attributes)
    assert both.shape == (4, len(product)) == (4, 6)
    for r in range(4):
        for k, name in enumerate(names.names):
            for a, attribute in enumerate(attributes):
                column = product.names.index(f"{attribute} {name}")
                assert abs(both[r, column] - p_name[r, k] * p_attribute[r, a]) < 1e-12
    torch.testing.assert_close(both.sum(dim=1), torch.ones(4, dtype=torch.float64))
    assert product.is_novel == (False,) * 3 + (True,) * 3


def test_a_softmax_over_cosines():
    regions, attributes = torch.randn(3, 5) * 4, torch.randn(2, 5) * 9
    found = attribute_probabilities(regions, attributes, logit_scale=7.0)
    for r in range(3):
        cosines = [torch.cosine_similarity(regions[r], a, dim=0) for a in attributes]
        expected = (7 * torch.stack(cosines)).softmax(dim=0)
        torch.testing.assert_close(found[r], expected)


def test_synonyms_and_definitions_follow():
    names = Vocabulary(names=("mug",), synonyms=(("mug", "cup"),), definitions=("to drink from",))
    product = vocabulary_product(names, ("red", " green "))
    assert product.names == ("red mug", "green mug")
    assert product.synonyms == (("red mug", "red cup"), ("green mug", "green cup"))
    assert product.definitions == ("to drink from",) * 2


@pytest.mark.parametrize("attributes", [[], ["red", "red"], ["red", "red "], [" "]])
def test_bad_attributes_are_named(attributes):
    with pytest.raises(OVDError, match="Attributes must be distinct"):
        vocabulary_product(Vocabulary(names=("mug",)), attributes)


def test_ambiguous_pairs_are_refused():
    with pytest.raises(OVDError, match="red hot dog"):
        vocabulary_product(Vocabulary(names=("dog", "hot dog")), ["red hot", "red"])


def test_other_regions_are_refused():
    with pytest.raises(OVDError, match="2 regions.*of 3"):
        expand_with_attributes(torch.rand(2, 4), torch.rand(3, 2))
