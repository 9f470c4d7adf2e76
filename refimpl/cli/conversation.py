"""A conversation as the model reads it: ids that only ever grow, so that a cache of them stays good.

A reply is never tokenized: the ids that were generated are the ids that the next turn begins with.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from refimpl.cli.chat_formats import ChatFormat
from refimpl.errors import ContextOverflowError, InputError

#: What is not shown at the end of a reply: white space, and the character that stands for half of one.
ENDING = " \n\ufffd"


@dataclass
class Turn:
    """What was said, and answered.

    ids: of the reply, as the next turn begins with them.
    reply: as it is shown.
    """

    user: str
    ids: list[int] = field(default_factory=list)
    reply: str = ""
    finish_reason: str = ""


class Conversation:
    """The turns so far, and their ids in a format.

    Attributes:
        turns: all of them.
        first: the oldest one that the model still sees.
        system: the system text; only formats that have a place for one use it.
    """

    def __init__(self, form: ChatFormat, tokenizer: Any, eos_ids: list[int], system: str | None = None):
        self.form = form
        self.system = form.default_system if system is None else system
        self.turns: list[Turn] = []
        self.first = 0
        self._tokenizer, self._eos_ids = tokenizer, eos_ids

    def prompt_ids(self, user: str, first: int | None = None) -> list[int]:
        """The ids that the model reads before it replies to `user`."""
        seen = self.turns[self.first if first is None else first :]
        text, ids = self.form.opening(self.system), []
        for turn in seen:
            ids += [*self._encode(text + self.form.turn(turn.user)), *turn.ids]
            text = self._rest_of_after(turn)
        return [*ids, *self._encode(text + self.form.turn(user))]

    def fitting_ids(self, user: str, context: int, room: int, drops: bool) -> tuple[list[int], int]:
        """The ids before the reply to `user`, with `room` for some tokens more; and how many turns were forgotten.

        drops: forget the oldest turns where that is necessary, and then so many that half of the context is free:
            what is left has to be read again, which is not to happen in each turn.
        Raises: ContextOverflowError where even so there is no room for a token.
        """
        before = self.first
        ids = self.prompt_ids(user)
        if drops and len(ids) + room > context:
            while self.first < len(self.turns) and len(ids) > context // 2:
                self.first += 1
                ids = self.prompt_ids(user)
        if len(ids) >= context:
            self.first = before
            raise ContextOverflowError(
                "the conversation is longer than the model's context",
                found=f"{len(ids)} tokens",
                allowed=f"fewer than {context}",
                hint="Say less at once." if drops else "/reset begins anew, /undo takes the last turn back.",
            )
        return ids, self.first - before

    def add(self, user: str, ids: list[int], text: str, finish_reason: str) -> Turn:
        """Keep a turn.

        ids: all that were generated.  text: what stands for them, without what ended the reply.
        """
        text = text.removesuffix("\ufffd")  # half a character
        turn = Turn(user, self._kept(ids, text), self._shown(text), finish_reason)
        self.turns.append(turn)
        return turn

    def undo(self) -> Turn | None:
        """Take the last turn back, if there is one."""
        turn = self.turns.pop() if self.turns else None
        self.first = min(self.first, len(self.turns))
        return turn

    def reset(self) -> None:
        self.turns, self.first = [], 0

    def restore(self, saved: list[dict[str, Any]]) -> None:
        """The turns of a file; ids that stand for another text here are made anew from the reply."""
        turns = []
        for value in saved:
            turn = Turn(**value)
            if not self._stands_for(turn):
                turn.ids = self._encode(turn.reply)
            turns.append(turn)
        self.turns, self.first = turns, 0

    def _stands_for(self, turn: Turn) -> bool:
        try:
            text = self._text(turn.ids)[0]
        except InputError:  # no token has such an id
            return False
        return self._shown(text) == turn.reply

    def _shown(self, text: str) -> str:
        return self.form.shown(text).lstrip(" \n").rstrip(ENDING)

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False)) if text else []

    def _text(self, ids: list[int], skip_special_tokens: bool = True) -> tuple[str, list[int]]:
        """The whole characters of ids, and how many of them there are after each id."""
        from refimpl.tokenizer.streaming import StreamDecoder

        decoder = StreamDecoder(self._tokenizer, skip_special_tokens=skip_special_tokens)
        text, lengths = "", []
        for token_id in ids:
            text += decoder.put(token_id)
            lengths.append(len(text))
        return text, lengths

    def _kept(self, ids: list[int], text: str) -> list[int]:
        """The ids of a reply: those before a stop string, and never half a character."""
        ended = bool(ids) and ids[-1] in self._eos_ids
        whole, lengths = self._text(ids)
        if ended and whole == text:
            return ids if self._overlap(ids) else ids[:-1]
        # An id that adds no character is the beginning of one, which nobody has seen.
        last = max((length for length in lengths if length <= len(text)), default=0)
        kept = ids[: lengths.index(last) + 1] if last else []
        return [*kept, *self._encode(text[last:])]

    def _overlap(self, ids: list[int]) -> int:
        """How much of what follows a reply the model has written already."""
        text, _ = self._text(ids, skip_special_tokens=False)
        after = self.form.after
        return next((size for size in range(len(after), 0, -1) if text.endswith(after[:size])), 0)

    def _rest_of_after(self, turn: Turn) -> str:
        return self.form.after[self._overlap(turn.ids) :]
