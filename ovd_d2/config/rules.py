"""What the value of a config key must be: the words that ``RULES`` of the groups are made of.

A rule looks at one value; yacs has compared the types of whole values with the defaults' by then,
not those inside lists.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple


class Rule(NamedTuple):
    """A condition on a value, and what to call a value that meets it ("it must be ...")."""

    good: Callable[[Any], bool]
    wanted: str


def is_number(value: Any) -> bool:
    """Whether ``value`` is a finite number; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def at_least(least: float) -> Rule:
    """A finite number."""
    return Rule(
        lambda v: is_number(v) and v >= least, f"at least {least:g}" if least else "0 or more"
    )


def whole(least: int) -> Rule:
    """An integer."""
    number = at_least(least)
    return Rule(lambda v: number.good(v) and v == int(v), number.wanted)


def one_of(*names: str) -> Rule:
    """A word of a list."""
    return Rule(lambda v: v in names, " or ".join(map(repr, names)))


def each(rule: Rule, count: int | None = None) -> Rule:
    """A list that is not empty, or has ``count`` elements, each of which follows ``rule``."""
    words = "a list that is not empty" if count is None else f"a list of {count}"
    return Rule(
        lambda v: (
            isinstance(v, list | tuple)
            and (len(v) == count if count is not None else len(v) > 0)
            and all(map(rule.good, v))
        ),
        f"{words}, of values that are {rule.wanted}",
    )


def either(first: Rule, second: Rule) -> Rule:
    """A value that follows one of two rules."""
    return Rule(lambda v: first.good(v) or second.good(v), f"{first.wanted}, or {second.wanted}")


def empty_or(rule: Rule) -> Rule:
    """An empty list, or what ``rule`` says."""
    return Rule(lambda v: len(v) == 0 or rule.good(v), f"empty or {rule.wanted}")


NUMBER = Rule(is_number, "a finite number")
ABOVE_0 = Rule(lambda v: is_number(v) and v > 0, "above 0")
SHARE = Rule(lambda v: is_number(v) and 0 <= v <= 1, "between 0 and 1")
BELOW_1 = Rule(lambda v: is_number(v) and 0 <= v < 1, "at least 0 and below 1")
COUNT, COUNT_OR_0 = whole(1), whole(0)
NAMES = each(Rule(lambda v: isinstance(v, str) and bool(v), "names"))
ALL_OR_COUNT = Rule(lambda v: whole(1).good(v) or v == -1, "at least 1, or -1 for all")
NORM = one_of(
    "", "BN", "SyncBN", "FrozenBN", "GN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N", "LN"
)

Row = tuple[Rule, str, str]  # with the prefix of keys and, between spaces, what follows it
Rows = tuple[Row, ...]


def by_key(rows: Iterable[Row]) -> dict[str, Rule]:
    """The rule of each key, by its whole name."""
    return {prefix + key: rule for rule, prefix, keys in rows for key in keys.split()}
