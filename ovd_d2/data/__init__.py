"""Data sets, their mappers and loaders. Importing it registers the built-in data sets."""

from ovd_d2.data.datasets import builtin as _builtin  # noqa: F401
