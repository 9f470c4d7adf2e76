"""Texts on which tokenizers get slow: one thing over and over, for every rule that could go wrong.

A quadratic step, harmless on prose, takes minutes on a megabyte of these.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from refimpl.cli.bench.texts import filled

Make = Callable[[int], str]


def _repeated(unit: str) -> Make:
    return lambda size: filled(unit, size)


def _drawn(ranges: list[tuple[int, int]]) -> Make:
    """Characters drawn from ranges of code points, both ends included; the same ones in every run."""
    alphabet = [chr(code) for first, last in ranges for code in range(first, last + 1)]
    bytes_each = len("".join(alphabet).encode()) / len(alphabet)

    def make(size: int) -> str:
        count = int(size / bytes_each * 1.1) + 8
        return filled("".join(random.Random(1).choices(alphabet, k=count)), size)

    return make


#: family -> its text of a given size in bytes
FAMILIES: dict[str, Make] = {
    "digits": _repeated("1234567890"),
    "letter a": _repeated("a"),
    "spaces": _repeated(" "),
    "open brackets": _repeated("<"),
    "nested emoji": _repeated("👨🏽‍❤️‍💋‍👨🏿👩‍👩‍👧‍👦🏴󠁧󠁢󠁥󠁮󠁧󠁿"),
    "combining marks": _repeated("e\u0301\u0323\u0302\u0316"),
    "no-break spaces": _repeated("\u00a0"),
    "line feeds": _repeated("\n"),
    "at signs": _repeated("@"),
    "quotes": _repeated("'"),
    "joiners": _repeated("\u200d"),
    "jamo": _repeated("\u1112\u1161\u11ab"),
    "full stops": _repeated("."),
    "CRLF": _repeated("\r\n"),
    "hexadecimal": _repeated("0x1F"),
    "prices": _repeated("1,234億5678万円"),
    "mixed case": _repeated("aBcDeFgHiJ"),
    "long URL": lambda size: filled("https://" + "example-path/" * (size // 13 + 1), size),
    "ideographs": _drawn([(0x4E00, 0x9FFF)]),
    "bytes as Latin-1": _drawn([(0x00, 0xFF)]),
    "astral letters": _drawn([(0x1D400, 0x1D454), (0x10400, 0x1044F), (0x20000, 0x203FF)]),
}
