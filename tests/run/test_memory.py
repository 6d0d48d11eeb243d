"""What the C library is told about freed memory."""

from __future__ import annotations

import ctypes

import pytest

from metarl.run import memory


class _Library:
    """A C library that takes no more than ``most`` for the size from which memory is mapped."""

    def __init__(self, most):
        self.most, self.told = most, {}

    def mallopt(self, parameter, value):
        if parameter == -3 and value > self.most:
            return 0
        self.told[parameter] = value
        return 1


@pytest.mark.parametrize(
    ("most", "told"),
    [
        (1 << 30, {-3: 1 << 30, -1: 1 << 30}),
        (32 << 20, {-3: 32 << 20, -1: 1 << 30}),
        (0, {}),  # the other alone would switch off what the library does by itself, and map every activation afresh
    ],
)
def test_a_library_that_refuses_the_size_keeps_its_own_ways(monkeypatch, most, told):
    library = _Library(most)
    monkeypatch.setattr(ctypes, "CDLL", lambda _: library)
    assert memory.keep_freed_memory(2) is bool(told)
    assert library.told == told


def test_a_single_thread_shares_the_main_arena(monkeypatch):
    """Several would wait for each other there: two take half as long again on convolutions."""
    library = _Library(1 << 30)
    monkeypatch.setattr(ctypes, "CDLL", lambda _: library)
    assert memory.keep_freed_memory(1)
    assert library.told[-8] == 1


def test_a_library_without_it_is_left_alone(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    assert memory.keep_freed_memory(1) is False
