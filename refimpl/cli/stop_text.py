"""Ending a text before certain strings, without ever showing the beginning of one."""

from __future__ import annotations

from collections.abc import Sequence


class StopText:
    """A text that comes in pieces and ends before the first of some strings.

    What may become such a string is held back until it is one, or is none.

    Attributes:
        text: all of it, up to the string that ended it.
        found: that string, or None.
    """

    def __init__(self, stops: Sequence[str]):
        self.text = ""
        self.found: str | None = None
        self._stops = tuple(stops)
        self._given = 0  # how many characters were handed out

    def put(self, piece: str) -> str:
        """What can be shown now that `piece` is there; nothing after the end."""
        if self.found is not None:
            return ""
        # A string that ends in this piece begins at most its length before it.
        start = max(0, len(self.text) - max(map(len, self._stops), default=0) + 1)
        self.text += piece
        places = [(self.text.find(stop, start), stop) for stop in self._stops]
        if ends := [(place, stop) for place, stop in places if place >= 0]:
            place, self.found = min(ends, key=lambda end: end[0])
            self.text = self.text[:place]
            return self._hand_out(len(self.text))
        return self._hand_out(len(self.text) - self._held())

    def finish(self) -> str:
        """What was held back: no string comes of it."""
        return self._hand_out(len(self.text))

    def _held(self) -> int:
        """How many of the last characters may be the beginning of a string."""
        longest = max((len(stop) - 1 for stop in self._stops), default=0)
        for size in range(min(longest, len(self.text)), 0, -1):
            if any(stop.startswith(self.text[-size:]) for stop in self._stops if len(stop) > size):
                return size
        return 0

    def _hand_out(self, end: int) -> str:
        piece = self.text[self._given : end]
        self._given = max(self._given, end)
        return piece
