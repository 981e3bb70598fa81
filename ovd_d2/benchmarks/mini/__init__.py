"""Draws the data of the mini benchmark; :mod:`ovd_d2.data.datasets.mini` registers it."""
