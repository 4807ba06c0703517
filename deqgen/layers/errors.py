"""The mistakes that a layer can name."""

from __future__ import annotations


class LabelError(ValueError):
    """A class label that the model cannot use: unwanted, missing, or out of range."""


class NoiseLevelError(ValueError):
    """A noise level that the model cannot use: unwanted, missing, or no positive number."""


class ShapeError(ValueError):
    """A tensor whose shape does not fit: an image of another size, a patch that does not divide,
    a cell that changes the shape of its state.
    """
