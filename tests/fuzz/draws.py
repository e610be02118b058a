"""Choices, by hypothesis, by atheris, or at random; and values that nobody expects."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, Protocol

WHOLE = [
    *(0, 1, -1, 2, 3, 5, 7, 8, 64, 127, 128, 255, 256, 1000, 4096, 2**15 - 1, 2**15, 2**16, 2**20),
    *(2**24, 2**27, 2**28, 2**30, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**53, 2**62),
    *(2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**30, 10**400, -2, -(2**31), -(2**63)),
]
REAL = [0.5, -0.5, 1e-300, 5e-324, 1e300, 1.7976931348623157e308, -0.0, 1e10, 2.0**-149, 3.5e38]
REAL += [float("nan"), float("inf"), float("-inf")]
TEXT = ["", "nan", "inf", "x", "0", "-1", "1e999", "9" * 400, "0x1F", "1_0", "../../outside/secret"]
TEXT += ["/etc/passwd", "a/b", "a\0b", "\ud800", "é", "x" * 5000, "\n", "{}", "None", "True", "|O"]
TEXT += ["file:///etc/passwd", "__class__", "%s%s%n", "1;2", "1,2", "NaT", "٣", "1e3"]


class Draws(Protocol):
    """Where choices come from."""

    def whole(self, low: int, high: int) -> int:
        """A whole number in [low, high]."""

    def raw(self, most: int) -> bytes:
        """Some bytes, at most so many."""


class Random:
    """Choices at random."""

    def __init__(self, seed: int | str) -> None:
        self.rng = random.Random(seed)

    def whole(self, low: int, high: int) -> int:
        return self.rng.randint(low, high)

    def raw(self, most: int) -> bytes:
        return self.rng.randbytes(self.rng.randint(0, most))


class Hypothesis:
    """Choices by hypothesis."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def whole(self, low: int, high: int) -> int:
        from hypothesis import strategies as st

        return self.data.draw(st.integers(low, high))

    def raw(self, most: int) -> bytes:
        from hypothesis import strategies as st

        return self.data.draw(st.binary(max_size=most))


class Atheris:
    """Choices by what libFuzzer has in store."""

    def __init__(self, provider: Any) -> None:
        self.provider = provider

    def whole(self, low: int, high: int) -> int:
        return self.provider.ConsumeIntInRange(low, high)

    def raw(self, most: int) -> bytes:
        return self.provider.ConsumeBytes(self.provider.ConsumeIntInRange(0, most))


def pick(draws: Draws, items: Sequence[Any]) -> Any:
    """One of several."""
    return items[draws.whole(0, len(items) - 1)]


def chance(draws: Draws, n: int) -> bool:
    """True once in ``n``."""
    return draws.whole(1, n) == 1


def weird(draws: Draws, depth: int = 0) -> Any:
    """A value of JSON."""
    kind = draws.whole(0, 11 if depth < 3 else 7)
    if kind <= 2:
        return pick(draws, WHOLE)
    if kind == 3:
        return pick(draws, REAL)
    if kind <= 5:
        return pick(draws, TEXT)
    if kind <= 7:
        return pick(draws, [None, True, False, [], {}, "", 0, 1.0])
    if kind <= 9:
        return [weird(draws, depth + 1) for _ in range(draws.whole(0, 4))]
    if kind == 10:
        return {str(pick(draws, TEXT)): weird(draws, depth + 1) for _ in range(draws.whole(0, 3))}
    return nested(pick(draws, [10, 63, 64, 65, 200, 900]), draws.whole(0, 1) == 1)


def nested(depth: int, dicts: bool) -> Any:
    """Lists within lists, or dicts within dicts."""
    value: Any = 1
    for _ in range(depth):
        value = {"a": value} if dicts else [value]
    return value
