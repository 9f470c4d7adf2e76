"""Printing text while it is generated."""

from __future__ import annotations

import queue
import sys
from typing import Any, TextIO

import numpy as np

from refimpl.errors import InputError


class TextStreamer:
    """Writes each character as soon as its last token is there; never half a character.

    Args:
        tokenizer: turns ids into text.
        skip_prompt: do not print the prompt.
        file: where to write; default standard output.
        skip_special_tokens: do not print special tokens.

    `generate(..., streamer=...)` takes this, and any object with `put(ids)` and `end()`.
    """

    def __init__(
        self,
        tokenizer: Any,
        skip_prompt: bool = False,
        *,
        file: TextIO | None = None,
        skip_special_tokens: bool = False,
    ):
        from refimpl.tokenizer.streaming import StreamDecoder

        self.file = file
        self.skip_prompt = skip_prompt
        self._decoder = StreamDecoder(tokenizer, skip_special_tokens=skip_special_tokens)
        self._seen_prompt = False

    def put(self, ids: Any) -> None:
        """The prompt first, [1, seq] or [seq]; then one id at a time."""
        ids = np.asarray(ids)
        if ids.ndim > 1 and ids.shape[0] > 1:
            raise InputError(
                "a text streamer prints one text", where="streamer", found=f"a batch of {ids.shape[0]}"
            )
        prompt, self._seen_prompt = not self._seen_prompt, True
        if prompt and self.skip_prompt:
            return
        self.on_finalized_text("".join(self._decoder.put(int(token_id)) for token_id in ids.ravel()))

    def end(self) -> None:
        """Write what was held back, and a line break."""
        self.on_finalized_text(self._decoder.finish(), stream_end=True)
        self._seen_prompt = False

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Called with each piece of finished text, and once at the end."""
        text += "\n" if stream_end else ""
        if text:
            file = sys.stdout if self.file is None else self.file
            file.write(text)
            file.flush()


class TextIteratorStreamer(TextStreamer):
    """An iterator over the text while another thread generates it.

        streamer = TextIteratorStreamer(tokenizer, skip_prompt=True)
        Thread(target=model.generate, kwargs={**inputs, "streamer": streamer}).start()
        for text in streamer:
            ...

    Args:
        timeout: how many seconds to wait for the next piece; None: for ever.  Then `queue.Empty` is raised.
        The others are those of `TextStreamer`.

    The iteration ends with the text, also where generation fails.
    """

    def __init__(
        self,
        tokenizer: Any,
        skip_prompt: bool = False,
        timeout: float | None = None,
        *,
        skip_special_tokens: bool = False,
    ):
        super().__init__(tokenizer, skip_prompt, skip_special_tokens=skip_special_tokens)
        self.timeout = timeout
        self.text_queue: queue.Queue[str | None] = queue.Queue()

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if text:
            self.text_queue.put(text)
        if stream_end:
            self.text_queue.put(None)

    def __iter__(self) -> TextIteratorStreamer:
        return self

    def __next__(self) -> str:
        text = self.text_queue.get(timeout=self.timeout)
        if text is None:
            raise StopIteration
        return text
