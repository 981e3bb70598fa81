"""Comparisons that anyone can repeat: the mini benchmark, recipes side by side, speed."""
