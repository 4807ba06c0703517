"""What can be wrong with the images or labels that are handed over for measuring."""

from __future__ import annotations


class EvaluationInputError(ValueError):
    """Images, labels or a file that cannot be measured; the message says what was expected."""
