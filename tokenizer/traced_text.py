"""A text that remembers, through replacements and stripping, which characters of the original it stands for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class TracedText:
    """`text`, and for each of its characters the characters `(start, end)` of the original it stands for.

    It has the methods of a str that the steps of encoding use, so that one program text does both: ids from a
    str, ids and offsets from this.
    """

    text: str
    spans: list[Span]

    @classmethod
    def of(cls, original: str, valid: str) -> TracedText:
        """`valid` is the text without surrogates: itself, or with U+FFFD or the character of a pair in place."""
        if len(valid) == len(original):
            return cls(valid, [(index, index + 1) for index in range(len(valid))])
        spans, start = [], 0
        for character in valid:
            is_pair = ord(character) > 0xFFFF and original[start] != character
            spans.append((start, start + 1 + is_pair))
            start += 1 + is_pair
        return cls(valid, spans)

    def span(self, start: int, end: int) -> Span:
        """The characters of the original for which `text[start:end]` (not empty) stands."""
        return self.spans[start][0], self.spans[end - 1][1]

    def __str__(self) -> str:
        return self.text

    def __len__(self) -> int:
        return len(self.text)

    def __contains__(self, part: str) -> bool:
        return part in self.text

    def __getitem__(self, part: slice) -> TracedText:
        return TracedText(self.text[part], self.spans[part])

    def __add__(self, other: TracedText) -> TracedText:
        return TracedText(self.text + other.text, self.spans + other.spans)

    def startswith(self, part: str) -> bool:
        """As of a str."""
        return self.text.startswith(part)

    def endswith(self, part: str) -> bool:
        """As of a str."""
        return self.text.endswith(part)

    def lstrip(self) -> TracedText:
        """As of a str."""
        return self[len(self) - len(self.text.lstrip()) :]

    def rstrip(self) -> TracedText:
        """As of a str."""
        return self[: len(self.text.rstrip())]

    def replace(self, old: str, new: str) -> TracedText:
        """As of a str; every character of `new` stands for all that the `old` in its place stood for."""
        spans: list[Span] = []
        done = 0
        while (start := self.text.find(old, done)) >= 0:
            end = start + len(old)
            spans += self.spans[done:start]
            spans += [self.span(start, end)] * len(new)
            done = end
        return TracedText(self.text.replace(old, new), spans + self.spans[done:])


#: A text of either kind: what a function takes, it gives back.
Text = TypeVar("Text", str, TracedText)
