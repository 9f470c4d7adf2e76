"""Text from ids that come one at a time, without ever showing half a character."""

from __future__ import annotations

import codecs
from typing import Any

from refimpl.tokenizer.codec import TokenCodec


class StreamDecoder:
    """Ids -> text as it becomes complete, for any tokenizer.

    The bytes of consecutive ids are joined before they are decoded, also with a tokenizer whose `decode`
    does not do so: nobody wants to read one U+FFFD for every byte.  Invalid bytes become U+FFFD.  All
    that is returned, joined, is the decoded bytes of all ids; white space is never stripped.
    """

    def __init__(self, tokenizer: TokenCodec, skip_special_tokens: bool = True):
        self._tokenizer = tokenizer
        self._skipped = tokenizer.skipped_ids() if skip_special_tokens else set()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def put(self, index: Any) -> str:
        """The text that `index` completes: "" while a character is unfinished.

        Raises: InputError when no token has this id; the decoder is then as it was before.
        """
        index = self._tokenizer.check_id(index)
        if index in self._skipped:
            return ""
        return self._decoder.decode(self._tokenizer.token_bytes(index))

    def finish(self) -> str:
        """What is left: U+FFFD for an unfinished character, else "". The decoder is then new."""
        return self._decoder.decode(b"", True)
