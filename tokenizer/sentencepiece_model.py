"""A model file of the `sentencepiece` package (`spiece.model`), and the package behind errors of our own.

The file is a protobuf message (sentencepiece_model.proto of that package).  The package checks most of it; what
it lets through although it would harm whoever encodes with it is looked for here, before the package sees it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

from refimpl.errors import BackendError, InputError, TokenizerFileError, quote
from refimpl.json_reader import read_bytes
from refimpl.tokenizer.text_files import MAX_VOCAB_BYTES

MAX_PIECE_LENGTH = 256  # characters; the work for one character of text grows with it
MAX_REPLACEMENT = 64  # bytes for which normalisation may exchange a character; NFKC needs 33
MAX_NBEST = 512  # the limit of the package

#: The versions before end the whole process over a broken model file.
OLDEST_PACKAGE = (0, 2, 2)

# Numbers of fields in sentencepiece_model.proto.
_PIECES, _NORMALIZER, _DENORMALIZER = 1, 3, 5
_PIECE_TEXT, _CHARACTER_MAP = 1, 2

# A message of which more follows is joined to what came before: normalizer_spec { add_dummy_prefix: false }.
_NO_PREFIX = b"\x1a\x02\x18\x00"

Span = tuple[int, int]


class SentencePieceModel:
    """Text -> pieces and back, by a model file.  It can be pickled.

    `content` is the file, `where` it comes from is said in errors, `sampling` goes to the package's processor
    (`check_sampling` says what it may hold), and without `prefix` no space is put before a text, whatever the
    file says.
    Raises: TokenizerFileError; BackendError without the package.
    """

    def __init__(
        self, content: bytes, where: object, sampling: Mapping[str, Any] | None = None, prefix: bool = True
    ):
        self.content, self._where = content, where
        self._sampling, self._prefix = dict(sampling or {}), prefix
        package = _package()
        try:
            _check(content)
            self.processor = package.SentencePieceProcessor(**self._sampling)
            self.processor.LoadFromSerializedProto(content if prefix else content + _NO_PREFIX)
            everything = list(range(self.processor.GetPieceSize()))
            #: The text of every id.
            self.pieces: list[str] = self.processor.IdToPiece(everything)
            is_byte = self.processor.IsByte(everything)
            is_control = self.processor.IsControl(everything)
        except (RuntimeError, ValueError) as error:
            raise TokenizerFileError(
                "this is not a usable model of sentencepiece", where=where, found=_reason(error)
            ) from error
        self.unk_id: int = self.processor.unk_id()
        if self.unk_id < 0 or len(set(self.pieces)) < len(self.pieces):  # these the package lets through
            raise TokenizerFileError(
                "this is not a usable model of sentencepiece",
                where=where,
                found="no piece for what is unknown"
                if self.unk_id < 0
                else "a piece that stands there twice",
            )
        #: The byte for which each byte piece stands.
        self.bytes = {
            piece: int(piece[1:-1], 16) for piece, yes in zip(self.pieces, is_byte, strict=True) if yes
        }
        #: The pieces that stand for no text.
        self.control = frozenset(piece for piece, yes in zip(self.pieces, is_control, strict=True) if yes)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.content, self._where, self._sampling, self._prefix)

    def ids(self, text: str) -> list[int]:
        """The ids of a valid text; everything unknown in a row is one `unk_id`."""
        return self._asked(self.processor.EncodeAsIds, text)

    def tokens(self, text: str) -> list[str]:
        """The pieces of a valid text; everything unknown in a row is one piece that looks like the text."""
        return self._asked(self.processor.EncodeAsPieces, text)

    def tokens_and_spans(self, text: str) -> tuple[list[str], list[Span]]:
        """`tokens`, and the characters `(start, end)` of the text for which each stands.

        Where one character becomes several pieces (its bytes, or what normalisation makes of it), each stands
        for the whole character.  The space that is put before a text stands for none.
        """
        found = self._asked(self.processor.EncodeAsOffsetMapping, text)
        tokens: list[str] = found["pieces"]
        spans: list[Span] = found["offsets"]
        # The package gives the character to the last of its pieces, and nothing to the others.
        for index in range(len(spans) - 2, -1, -1):
            (start, end), (next_start, next_end) = spans[index], spans[index + 1]
            is_prefix = index == 0 and tokens[0] == "▁"
            if start == end == next_start and not is_prefix:
                spans[index] = start, next_end
        return tokens, spans

    def decode(self, tokens: list[str]) -> str:
        """The text of pieces; those that are unknown stand for themselves.  Raises: InputError."""
        if not tokens:
            return ""
        try:
            return self.processor.DecodePieces(tokens)
        except (RuntimeError, ValueError, TypeError) as error:
            raise InputError("these tokens cannot be decoded", found=quote(tokens)) from error

    def _asked(self, encode: Any, text: str) -> Any:
        try:
            return encode(text)
        except (RuntimeError, ValueError) as error:
            raise TokenizerFileError(
                "the model cannot encode this text", where=self._where, found=_reason(error)
            ) from error


def read_model(
    path: str | os.PathLike[str], sampling: Mapping[str, Any] | None, prefix: bool
) -> SentencePieceModel:
    """The model in a file.

    Raises: MissingFileError; ResourceLimitError when it is larger than 64 MiB; TokenizerFileError when it is no
        such model; BackendError without the package.
    """
    _package()
    return SentencePieceModel(read_bytes(path, TokenizerFileError, MAX_VOCAB_BYTES), path, sampling, prefix)


# ---- sampling

_SAMPLING = {
    "enable_sampling": (lambda v: isinstance(v, bool), "true or false"),
    "nbest_size": (
        lambda v: type(v) is int and -MAX_NBEST <= v <= MAX_NBEST,
        f"a whole number up to {MAX_NBEST}; below 0: all",
    ),
    "alpha": (
        lambda v: type(v) in (int, float) and 0 <= v <= 100,
        "a number from 0 to 100",
    ),
}


def sampling_problem(options: Any) -> str | None:
    """What is wrong with options for sampling, in words, or None."""
    if not isinstance(options, Mapping):
        return "an object with any of " + ", ".join(_SAMPLING)
    for name, value in options.items():
        if name not in _SAMPLING:
            return "nothing but " + ", ".join(_SAMPLING)
        allows, allowed = _SAMPLING[name]
        if not allows(value):
            return f"{name}: {allowed}"
    if options.get("enable_sampling") and options.get("nbest_size", -1) in (0, 1):
        return "nbest_size above 1 or below 0 where enable_sampling is true"
    return None


def check_sampling(options: Any) -> dict[str, Any]:
    """`options` when they are for sampling: `enable_sampling`, `nbest_size`, `alpha`.  Raises: InputError."""
    problem = sampling_problem(options)
    if problem is not None:
        raise InputError("sp_model_kwargs is wrong", found=quote(options), allowed=problem)
    return dict(options)


# ---- the package and what it does not check


def _package() -> Any:
    """The `sentencepiece` package.  Raises: BackendError when it is missing or too old."""
    try:
        import sentencepiece
    except ImportError as error:
        raise BackendError(
            "the tokenizer of this model needs the package sentencepiece, which is not installed",
            hint='Write: pip install "refimpl[sentencepiece]"',
        ) from error
    version = str(getattr(sentencepiece, "__version__", "unknown"))
    numbers = re.match(r"(\d+)\.(\d+)\.(\d+)", version)
    if numbers is None or tuple(map(int, numbers.groups())) < OLDEST_PACKAGE:
        raise BackendError(
            "this version of the package sentencepiece is not safe with broken model files",
            found=version,
            allowed=f"{'.'.join(map(str, OLDEST_PACKAGE))} and newer",
            hint='Write: pip install --upgrade "refimpl[sentencepiece]"',
        )
    return sentencepiece


def _reason(error: Exception) -> str:
    """What the package said, without the place in its source."""
    return quote(str(error).rpartition("] ")[2] or str(error))


def _check(content: bytes) -> None:
    """Raises: ValueError for a model that is malformed, or with which a short text could take for ever."""
    if not content:
        raise ValueError("the file is empty")
    for number, value in fields(content):
        if number == _PIECES and len(_bytes(value)) > MAX_PIECE_LENGTH:  # the others cannot hold so much
            _check_piece(value)
        elif number in (_NORMALIZER, _DENORMALIZER):
            for inner, character_map in fields(value):
                if inner == _CHARACTER_MAP:
                    _check_character_map(character_map)


def _check_piece(message: Any) -> None:
    for number, text in fields(message):
        if number == _PIECE_TEXT and len(_bytes(text).decode("utf-8")) > MAX_PIECE_LENGTH:
            raise ValueError(f"a piece of more than {MAX_PIECE_LENGTH} characters")


def _check_character_map(content: Any) -> None:
    """The map is the size of a trie, the trie, and the replacements, each ended by a zero byte."""
    trie_size = int.from_bytes(_bytes(content)[:4], "little")
    ends = [-1, *(found.start() for found in re.finditer(b"\0", content[4 + trie_size :]))]
    if any(end - before > MAX_REPLACEMENT for before, end in pairwise(ends)):
        raise ValueError(f"normalisation with a replacement of more than {MAX_REPLACEMENT} bytes")


def fields(message: Any) -> Iterator[tuple[int, Any]]:
    """The fields of a protobuf message: their number and value (int or bytes).  Raises: ValueError."""
    message = _bytes(message)
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        kind = key & 7
        value: Any
        if kind == 0:
            value, position = _varint(message, position)
        elif kind in _SIZES or kind == 2:
            size, position = (_SIZES[kind], position) if kind != 2 else _varint(message, position)
            value, position = message[position : position + size], position + size
        else:
            raise ValueError("not a protobuf message")
        if position > len(message):
            raise ValueError("the message is cut off")
        yield key >> 3, value


_SIZES = {1: 8, 5: 4}


def _varint(message: bytes, position: int) -> tuple[int, int]:
    """The number at a position, and the position after it.  Raises: ValueError."""
    value = shift = 0
    for place in range(position, min(position + 10, len(message))):
        value |= (message[place] & 0x7F) << shift
        if message[place] < 0x80:
            return value, place + 1
        shift += 7
    raise ValueError("not a protobuf message")


def _bytes(value: Any) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("not a protobuf message of this kind")
    return value
