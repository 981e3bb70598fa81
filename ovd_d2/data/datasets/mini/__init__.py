"""The embedded benchmark `mini`: a small stand-in for LVIS that anyone can build.

160 categories (120 base, 40 novel) of emoji artwork in five art styles, one of which is held out
of training, in scenes of 192 x 192 pixels. ``ovd mini build`` builds it; datasets/README.md
describes it.
"""

from ovd_d2.data.datasets.mini.registration import register_mini

__all__ = ["register_mini"]
