"""The three pictures that leave the build: in golden.npz and in the demo clip.

All are in the public domain or under CC0; models/default/NOTICE and
agent/demo/ATTRIBUTION.md name their authors.
"""

from __future__ import annotations

from default_model import sources
from default_model.fetch import read_member
from default_model.images import U8Image, decode_rgb


def read_astronaut() -> U8Image:
    """Return Eileen Collins, head and shoulders: uint8[360,360,3] RGB.

    The crop leaves out the helmet on her knee, which the model takes for a mouse.
    """
    return decode_rgb(read_member(sources.ASTRONAUT))[0:360, 30:390]


def read_cat() -> U8Image:
    """Return Chelsea the cat: uint8[300,451,3] RGB."""
    return decode_rgb(read_member(sources.CHELSEA))


def read_coffee() -> U8Image:
    """Return a cup of coffee on a wooden table: uint8[400,600,3] RGB."""
    return decode_rgb(read_member(sources.COFFEE))
