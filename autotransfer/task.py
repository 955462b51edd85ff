"""What is predicted of an image: one class, a set of labels, or numbers."""

from typing import Literal

Task = Literal["classification", "multilabel", "regression"]
"""One class an image, a set of labels an image, or real values."""

TASKS: tuple[Task, ...] = ("classification", "multilabel", "regression")
