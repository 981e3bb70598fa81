"""Ours and the usual way, timed in turn in one run."""
