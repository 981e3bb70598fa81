"""Boxes in images, by detectors of ours or of others, or from files."""
