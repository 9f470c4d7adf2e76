"""Text -> ids -> text: the Japanese sub-word tokenizer, its base, and decoding of streams."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from refimpl.tokenizer.added_tokens import AddedToken
    from refimpl.tokenizer.base import PreTrainedTokenizer
    from refimpl.tokenizer.batch_encoding import BatchEncoding
    from refimpl.tokenizer.japanese import GPTNeoXJapaneseTokenizer
    from refimpl.tokenizer.neox import GPTNeoXTokenizer, GPTNeoXTokenizerFast
    from refimpl.tokenizer.streaming import StreamDecoder
    from refimpl.tokenizer.unigram import T5Tokenizer

__all__ = [
    "AddedToken",
    "BatchEncoding",
    "GPTNeoXJapaneseTokenizer",
    "GPTNeoXTokenizer",
    "GPTNeoXTokenizerFast",
    "PreTrainedTokenizer",
    "StreamDecoder",
    "T5Tokenizer",
]

_HOME = {
    "AddedToken": "added_tokens",
    "BatchEncoding": "batch_encoding",
    "GPTNeoXJapaneseTokenizer": "japanese",
    "GPTNeoXTokenizer": "neox",
    "GPTNeoXTokenizerFast": "neox",
    "PreTrainedTokenizer": "base",
    "StreamDecoder": "streaming",
    "T5Tokenizer": "unigram",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
