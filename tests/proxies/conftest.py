"""Fixtures of the proxy tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from examples import Example, make_example


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Small matrices: threads that wait for each other cost more than they give on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


SHAPES = {
    "tall": (90, 6, 3, 0.5),
    "many classes": (120, 10, 12, 0.7),
    "wide": (30, 45, 3, 0.4),
    "one feature": (40, 1, 2, 1.0),
    "square": (24, 24, 4, 0.3),
}


@pytest.fixture(params=SHAPES, ids=str)
def example(request: pytest.FixtureRequest) -> Example:
    return make_example(*SHAPES[request.param], seed=7)
