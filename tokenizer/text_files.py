"""What a text must be before it is encoded, and how large the files of a tokenizer may be."""

from __future__ import annotations

import re

from refimpl.errors import TextInputError

MAX_VOCAB_BYTES = 64 << 20
MAX_JSON_BYTES = 128 << 20

#: What may become of bytes that are not UTF-8 when ids are decoded, as in `bytes.decode`.
DECODE_ERRORS = ("replace", "ignore", "backslashreplace", "strict")

_SURROGATE = re.compile("[\ud800-\udfff]")


def check_unicode(text: str, surrogates: str) -> str:
    """`text` itself when it is valid Unicode; lone surrogates are an error or become U+FFFD.

    A high surrogate followed by its low one is the character that the two encode.
    Raises: TextInputError with the attribute `position` when `surrogates` is "strict".
    """
    found = None if text.isascii() else _SURROGATE.search(text)
    if found is None:
        return text
    if surrogates == "replace":
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    raise TextInputError(
        f"character {found.start()} is a surrogate (U+{ord(found[0]):04X}); text must be valid Unicode",
        hint='surrogates="replace" puts U+FFFD in its place.',
        position=found.start(),
    )
