"""What is set in the environment while a test runs is gone after it."""

import os

from detectron2.utils.env import seed_all_rng
from warm_processes import AT_START


def test_a_trainer_sets_a_variable():
    seed_all_rng(7)
    assert os.environ["PYTHONHASHSEED"] == "7"
    os.environ["HOME"] = "/elsewhere"


def test_the_next_test_has_none_of_it():
    for name in ("PYTHONHASHSEED", "HOME"):
        assert os.environ.get(name) == AT_START.get(name)
