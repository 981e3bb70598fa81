"""What packages set in the environment while a test runs is gone after it."""

import os

import pytest


@pytest.fixture(scope="module")
def imported():
    os.environ["HF_SET_BY_A_PACKAGE"] = os.environ["HOME"] = "/nowhere"


def test_a_package_sets_variables(imported):
    assert "HF_SET_BY_A_PACKAGE" not in os.environ and os.environ["HOME"] != "/nowhere"
    os.environ["PYTORCH_SET_BY_A_PACKAGE"] = os.environ["HOME"] = "/elsewhere"


def test_the_next_test_has_none_of_them():
    assert "PYTORCH_SET_BY_A_PACKAGE" not in os.environ and os.environ["HOME"] != "/elsewhere"
