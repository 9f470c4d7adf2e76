"""The tokenizer of GPT-NeoX: byte-level byte-pair encoding.

The way of a text to its ids:

1. Added tokens with `normalized=False` are found in the text as it is (`neox_added_tokens.py`).
2. What is between them is normalised to NFC (`byte_level.py`).
3. Added tokens with `normalized=True` are found in that.
4. What is left is cut into words by the GPT-2 pattern, with `add_prefix_space` after a space put before it.
5. Each word is merged from its bytes (`bpe.py`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from refimpl.errors import InputError, TokenizerFileError, quote
from refimpl.files import write_atomically
from refimpl.tokenizer.added_tokens import AddedToken
from refimpl.tokenizer.base import PreTrainedTokenizer
from refimpl.tokenizer.bpe import BpeTables, MergeStep, encode_word, merge_steps
from refimpl.tokenizer.byte_level import AlignedText, is_normal, nfc, nfc_aligned, to_bytes, word_texts, words
from refimpl.tokenizer.codec import check_surrogates
from refimpl.tokenizer.encoding import TextEncoding
from refimpl.tokenizer.kernels import load_if_worth
from refimpl.tokenizer.kernels.parallel import check_threads, encode_in_parallel
from refimpl.tokenizer.neox_added_tokens import AddedTokenFinder, is_space
from refimpl.tokenizer.neox_files import (
    NeoxFile,
    make_tables,
    merges_txt,
    read_tokenizer_json,
    read_vocab_and_merges,
    tokenizer_json,
    vocab_json,
)
from refimpl.tokenizer.options import as_integer
from refimpl.tokenizer.pretrained_files import file_in
from refimpl.tokenizer.text_files import DECODE_ERRORS, check_unicode

if TYPE_CHECKING:
    from refimpl.tokenizer.explanation import Piece as ExplainedPiece
    from refimpl.tokenizer.explanation import TokenReader
    from refimpl.tokenizer.kernels.bpe_encoder import BPEEncoder


class _IfKnown(str):
    """A default token that counts only where the vocabulary has it."""


_END_OF_TEXT = _IfKnown("<|endoftext|>")
_PADDING = _IfKnown("<|padding|>")


class Piece(NamedTuple):
    """A stretch of text: an added token with its id, or (id None) normalised text for words and merges."""

    text: AlignedText
    added_id: int | None = None


class GPTNeoXTokenizerFast(PreTrainedTokenizer):
    """Text <-> ids by byte-pair encoding of bytes; `GPTNeoXTokenizer` is another name for it.

    The vocabulary comes from `tokenizer_file` (`tokenizer.json`), from `vocab_file` and `merges_file`
    (`vocab.json`, `merges.txt`), or from `vocab` (token -> id) and `merges` (`"a b"` or `("a", "b")`).

    `unk_token`, `bos_token` and `eos_token` are by default "<|endoftext|>" and `pad_token` is "<|padding|>",
    each only where the vocabulary has it; transformers would give it an id for which the model has no embedding
    (for `<|padding|>` with the files of GPT-2: 50257).  Special tokens that a caller or a file names do get an
    id behind all others where they have none.  `add_bos_token` and `add_eos_token` put these tokens around each
    text.  `add_prefix_space` lets a text begin as if a space stood before it.  `trim_offsets` leaves white space
    out of the offsets.  For the four, and for `nfc` (normalisation), None means: as `tokenizer.json` says, else
    False, False, False, True and True.
    `errors` says what becomes of bytes that are no UTF-8: "replace", "ignore", "backslashreplace" or "strict".
    `padded_vocab_size` is the number of rows of the model's embedding: ids without a token below it, which a
    model can generate, stand for no text, and their token is "".  Default: the next multiple of 1024, to which
    GPT-NeoX pads at most; 0 refuses all ids behind the last token.
    `clean_up_tokenization_spaces` is ignored (as in transformers 5) unless a call asks for it.
    `impl="plain"` never uses the compiled form of the algorithm; the ids are the same.  `threads` may share a
    large batch (None: one for every processor).
    Raises: MissingFileError, TokenizerFileError, ResourceLimitError (files); InputError (options).
    """

    overflow_as_rows = True
    vocab_files_names: ClassVar[dict[str, str]] = {
        "vocab_file": "vocab.json",
        "merges_file": "merges.txt",
        "tokenizer_file": "tokenizer.json",
    }
    vocab_files_groups: ClassVar[tuple[tuple[str, ...], ...]] = (
        ("tokenizer_file",),
        ("vocab_file", "merges_file"),
    )

    def __init__(
        self,
        vocab_file: str | os.PathLike[str] | None = None,
        merges_file: str | os.PathLike[str] | None = None,
        tokenizer_file: str | os.PathLike[str] | None = None,
        errors: str = "replace",
        unk_token: Any = _END_OF_TEXT,
        bos_token: Any = _END_OF_TEXT,
        eos_token: Any = _END_OF_TEXT,
        pad_token: Any = _PADDING,
        add_bos_token: bool | None = None,
        add_eos_token: bool | None = None,
        add_prefix_space: bool | None = None,
        trim_offsets: bool | None = None,
        *,
        vocab: Mapping[str, int] | None = None,
        merges: Sequence[str | tuple[str, str]] | None = None,
        nfc: bool | None = None,
        padded_vocab_size: int | None = None,
        impl: str = "fast",
        threads: int | None = None,
        added_tokens_decoder: Mapping[int, AddedToken] | None = None,
        **options: Any,
    ):
        if impl not in ("fast", "plain"):
            raise InputError("impl is unknown", found=quote(impl), allowed='"fast" or "plain"')
        if errors not in DECODE_ERRORS:
            raise InputError("errors is unknown", found=quote(errors), allowed=", ".join(DECODE_ERRORS))
        file = _read(vocab_file, merges_file, tokenizer_file, vocab, merges)
        where = tokenizer_file or vocab_file or "vocab"
        added = _join_added_tokens(file, added_tokens_decoder or {}, where)
        known = {**file.tables.vocabulary, **{token.content: index for index, token in added.items()}}
        special = {
            "unk_token": _resolve(unk_token, None, known, where),
            "bos_token": _resolve(bos_token, file.before, known, where),
            "eos_token": _resolve(eos_token, file.after, known, where),
            "pad_token": _resolve(pad_token, None, known, where),
        }
        self.impl, self.errors, self.threads = impl, errors, check_threads(threads)
        self.add_bos_token = _flag("add_bos_token", add_bos_token, file.before is not None)
        self.add_eos_token = _flag("add_eos_token", add_eos_token, file.after is not None)
        self.add_prefix_space = _flag("add_prefix_space", add_prefix_space, file.add_prefix_space or False)
        self.trim_offsets = _flag("trim_offsets", trim_offsets, file.trim_offsets is not False)
        self.nfc = _flag("nfc", nfc, file.nfc is not False)
        self.padded_vocab_size = padded_vocab_size
        self._check_padded_size()
        self.tables: BpeTables = file.tables
        self._known_words: dict[str, tuple[list[int], list[int]]] = {}
        self._finders: tuple[AddedTokenFinder, AddedTokenFinder] | None = None
        self._encoder: BPEEncoder | None = None
        self._encoder_made_for: tuple[Any, ...] = ()
        super().__init__(
            file.tables.vocabulary,
            max(file.tables.vocabulary.values(), default=-1) + 1,
            added_tokens_decoder=added,
            **special,
            **options,
        )

    # ---- vocabulary

    def _next_id(self) -> int:
        self._free_id += 1
        return self._free_id - 1

    def _keeps(self, token: str | AddedToken) -> bool:
        return False

    def _is_new(self, token: AddedToken, index: int | None) -> bool:
        """As the `tokenizers` package counts: also a token of the vocabulary, and one that has other options now."""
        return index is None or self.added_tokens_decoder.get(index) != token

    def add_tokens(
        self, new_tokens: str | AddedToken | Sequence[str | AddedToken], special_tokens: bool = False
    ) -> int:
        """Gives each token an id, if it has none, and cuts it out of texts from now on.

        Returns: how many of them were not added tokens before. Raises: InputError.
        """
        self._finders = None
        self._free_id = max([self._base_ids, *(index + 1 for index in self.added_tokens_decoder)])
        count = super().add_tokens(new_tokens, special_tokens)
        self._default_limit = -(-max(self._free_id, 1) // _PADDING_UNIT) * _PADDING_UNIT
        return count

    # ---- text -> ids

    def tokenize(
        self,
        text: str,
        pair: str | None = None,
        add_special_tokens: bool = False,
        *,
        split_special_tokens: bool | None = None,
        surrogates: str | None = None,
        explain: bool = False,
    ) -> list[str]:
        """The tokens of a text, or of two; those of words are written in byte characters (`"Ġworld"`).

        `split_special_tokens` treats special tokens that stand in the text as ordinary text, but not other
        added tokens.  `explain` prints every merge as it happens.
        Raises: InputError (not a str), TextInputError (not valid Unicode).
        """
        if explain:
            for line in self.explanation(text, split_special_tokens, surrogates):
                print(line)
        reading: dict[str, Any] = {"split_special_tokens": split_special_tokens, "surrogates": surrogates}
        tokens = self.convert_ids_to_tokens(self.encode_text(text, **reading).ids)
        return self._around_tokens(tokens, pair, add_special_tokens, reading)

    def _tokenize(self, text: str) -> list[str]:
        return self.tokenize(text, split_special_tokens=True)

    def _encode_plain(
        self, text: str, split_special_tokens: bool | None, surrogates: str | None, offsets: bool
    ) -> TextEncoding:
        checked, places = self._checked(text, surrogates)
        encoding = self._encode_pieces(self.pieces(checked, split_special_tokens), offsets)
        if places is None or encoding.offsets is None:
            return encoding
        spans = [(places[start], places[end]) for start, end in encoding.offsets]
        return encoding._replace(offsets=spans)

    def _encode_compiled(
        self, texts: list[str], split_special_tokens: bool | None, offsets: bool
    ) -> list[TextEncoding] | None:
        if self.impl == "plain":
            return None
        try:
            if len(texts) == 1 and not offsets and len(texts[0]) <= _SHORT:
                ids = self._encode_known_words(texts[0])
                if ids is not None:
                    return [TextEncoding(ids)]
            encoder = self._compiled(sum(map(len, texts)))
            if encoder is None:
                return None
            split = self.split_special_tokens if split_special_tokens is None else split_special_tokens
            # What is normal joined is normal in parts.
            if not split and encoder.cuts_out_added_tokens and self._is_normal("".join(texts)):
                encode = partial(encoder.encode, offsets=offsets)
                encodings = encode_in_parallel(encode, texts, self.threads)
                return [self._with_trimmed_offsets(e) for e in encodings] if offsets else encodings
            return None if offsets else self._encode_around_added_tokens(texts, split, encoder)
        except (TypeError, UnicodeEncodeError):  # not a text, a lone surrogate
            return None

    def _encode_known_words(self, text: str) -> list[int] | None:
        """The ids of a short text, with less ado than a call of a kernel; None for one that needs more care."""
        if self.add_prefix_space or not self._is_normal(text) or type(text) is not str:
            return None
        if any(finder.may_find(text) for finder in self._finders_of_added_tokens()):
            return None
        ids: list[int] = []
        known = self._known_words
        for word in word_texts(text):
            ids += (known.get(word) or self._encode_word(word))[0]
        return ids

    def _is_normal(self, text: str) -> bool:
        return not self.nfc or is_normal(text)

    def _encode_around_added_tokens(
        self, texts: list[str], split: bool, encoder: BPEEncoder
    ) -> list[TextEncoding]:
        cut = [list(self._cut_without_alignment(text, split)) for text in texts]
        space = " " if self.add_prefix_space else ""
        ordinary = [
            text if text[:1] == space else space + text for row in cut for text, index in row if index is None
        ]
        encodings = iter(encoder.encode_words(ordinary))
        return [
            TextEncoding([i for _, index in row for i in (next(encodings).ids if index is None else [index])])
            for row in cut
        ]

    def _cut_without_alignment(self, text: str, split: bool) -> Iterator[tuple[str, int | None]]:
        """As `pieces`, for those who need no offsets."""
        before, after = self._finders_of_added_tokens()
        for start, end, index in before.find(text, not split):
            if index is not None:
                yield "", index
                continue
            normal = nfc(text[start:end]) if self.nfc else text[start:end]
            for first, last, added in after.find(normal, not split):
                yield normal[first:last], added

    def _with_trimmed_offsets(self, encoding: TextEncoding) -> TextEncoding:
        if not self.trim_offsets or encoding.offsets is None:
            return encoding
        tokens = self.convert_ids_to_tokens(encoding.ids)
        return encoding._replace(offsets=list(map(self._trimmed, encoding.offsets, tokens)))

    def _compiled(self, characters: int) -> BPEEncoder | None:
        """The compiled form, once there is enough text for it, and where it can do the same as the plain one."""
        made_for = (self._splitter, self.add_prefix_space, self.nfc)
        if self._encoder_made_for == made_for:
            return self._encoder
        kernels = load_if_worth("bpe_encoder", characters)
        if kernels is None:
            return None
        self._encoder = None
        if kernels.can_encode(self.tables):
            before, after = (finder.simple_ids() for finder in self._finders_of_added_tokens())
            simple = before is not None and after is not None and not self.add_prefix_space
            self._encoder = kernels.BPEEncoder(self.tables, *((before, after) if simple else (None, None)))
        self._encoder_made_for = made_for
        return self._encoder

    def _checked(self, text: str, surrogates: str | None) -> tuple[str, list[int] | None]:
        """`text` as valid Unicode; where that is shorter, the place of each character in `text`, and its end."""
        if not isinstance(text, str):
            raise InputError("the text is not a str", found=f"{type(text).__name__} {quote(text)}")
        checked = check_unicode(text, check_surrogates(surrogates or self.surrogates))
        if len(checked) == len(text):
            return checked, None
        places, place = [], 0
        for character in checked:
            places.append(place)
            place += 2 if ord(character) > 0xFFFF and "\ud800" <= text[place] <= "\udfff" else 1
        return checked, [*places, place]

    def pieces(self, text: str, split_special_tokens: bool | None = None) -> list[Piece]:
        """A valid text cut at its added tokens, and normalised between them (steps 1 to 3)."""
        split = self.split_special_tokens if split_special_tokens is None else split_special_tokens
        before, after = self._finders_of_added_tokens()
        pieces = []
        for piece in _cut(AlignedText.original(text), before, not split):
            if piece.added_id is None:
                pieces += _cut(nfc_aligned(piece.text) if self.nfc else piece.text, after, not split)
            else:
                pieces.append(piece)
        return pieces

    def _finders_of_added_tokens(self) -> tuple[AddedTokenFinder, AddedTokenFinder]:
        """What finds added tokens in a text as it is, and what finds them in normalised text."""
        if self._finders is None:
            tokens = self.added_tokens_decoder
            raw = {index: token for index, token in tokens.items() if not token.normalized}
            normalized = {index: token for index, token in tokens.items() if token.normalized}
            self._finders = (
                AddedTokenFinder(raw, str),
                AddedTokenFinder(normalized, nfc if self.nfc else str),
            )
        return self._finders

    def _words(self, text: AlignedText) -> Iterator[AlignedText]:
        return words(text.with_space() if self.add_prefix_space else text)

    def _encode_pieces(self, pieces: list[Piece], offsets: bool) -> TextEncoding:
        """The ids of the pieces of a text (steps 4 and 5); where they stand and to which word they belong."""
        ids: list[int] = []
        spans: list[tuple[int, int]] = []
        numbers: list[int] = []
        spelled: dict[int, str] = {}  # added tokens that look other than their content in this text
        number = 0
        for piece in pieces:
            if piece.added_id is not None:
                text = piece.text.text
                if offsets:
                    spans.append(self._trimmed(piece.text.span(0, len(text)), text))
                    numbers.append(number)
                    if text != self.added_tokens_decoder[piece.added_id].content:
                        spelled[len(ids)] = text
                ids.append(piece.added_id)
                number += 1
                continue
            for word in self._words(piece.text):
                word_ids, ends = self._encode_word(word.text)
                ids += word_ids
                if offsets:
                    spans += self._word_spans(word, word_ids, ends)
                    numbers += [number] * len(word_ids)
                number += 1
        if not offsets:
            return TextEncoding(ids)
        if not spelled:
            return TextEncoding(ids, spans, numbers)
        tokens = self.convert_ids_to_tokens(ids)
        return TextEncoding(ids, spans, numbers, [spelled.get(i, token) for i, token in enumerate(tokens)])

    def _encode_word(self, word: str) -> tuple[list[int], list[int]]:
        """The ids of a word, and the byte with which each ends; short words are remembered."""
        known = self._known_words.get(word)
        if known is None:
            known = encode_word(word.encode("utf-8"), self.tables)
            if len(word) <= _LONGEST_KNOWN:
                if len(self._known_words) >= _MOST_KNOWN:
                    self._known_words.clear()
                self._known_words[word] = known
        return known

    def _word_spans(self, word: AlignedText, ids: list[int], ends: list[int]) -> list[tuple[int, int]]:
        """Where each token of a word stands in the text: all characters of which it holds a byte."""
        if word.text.isascii():
            spans = [word.span(start, end) for start, end in zip([0, *ends], ends, strict=False)]
        else:
            character_of = [i for i, character in enumerate(word.text) for _ in character.encode("utf-8")]
            spans = [
                word.span(character_of[start], character_of[end - 1] + 1)
                for start, end in zip([0, *ends], ends, strict=False)
            ]
        tokens = self.tables.tokens
        return [self._trimmed(span, tokens[index]) for span, index in zip(spans, ids, strict=True)]

    def _trimmed(self, span: tuple[int, int], token: str) -> tuple[int, int]:
        """The span without the white space with which the token begins and ends.

        With `add_prefix_space` a single space at the beginning of a text counts as put there, whether it was or
        not: the rule of the `tokenizers` package.
        """
        if not self.trim_offsets:
            return span
        start, end = span
        left = right = 0
        while left < len(token) and (token[left] == "Ġ" or is_space(token[left])):
            left += 1
        while right < len(token) and (token[-1 - right] == "Ġ" or is_space(token[-1 - right])):
            right += 1
        if left == 1 and start == 0 and self.add_prefix_space:
            left = 0
        start = min(start + left, end)
        return start, max(end - right, start)

    # ---- step by step

    def merge_steps(self, word: str) -> tuple[tuple[str, ...], list[MergeStep]]:
        """The symbols with which a word (as `words_of` gives them) begins, and every merge."""
        return merge_steps(word.encode("utf-8"), self.tables)

    def words_of(
        self, text: str, split_special_tokens: bool | None = None, surrogates: str | None = None
    ) -> Iterator[tuple[AlignedText, int | None]]:
        """The words of a text, normalised, each with None; added tokens, each with its id."""
        checked, _ = self._checked(text, surrogates)
        for piece in self.pieces(checked, split_special_tokens):
            if piece.added_id is not None:
                yield piece.text, piece.added_id
            else:
                for word in self._words(piece.text):
                    yield word, None

    def explanation(
        self, text: str, split_special_tokens: bool | None = None, surrogates: str | None = None
    ) -> Iterator[str]:
        """Lines for a terminal: each word, its bytes as characters, and every merge with its rank."""
        for word, added_id in self.words_of(text, split_special_tokens, surrogates):
            if added_id is not None:
                yield f"{word.text!r}: added token {added_id}"
                continue
            symbols, steps = self.merge_steps(word.text)
            yield f"{word.text!r}: {' '.join(symbols)}"
            for step in steps:
                yield f"    rank {step.rank:6}  {step.left} + {step.right}  ->  {' '.join(step.symbols)}"
            ids, _ = self._encode_word(word.text)
            yield f"    ids {' '.join(map(str, ids))}"

    def _explain(self, text: str, split: bool, read: TokenReader) -> list[ExplainedPiece]:
        from refimpl.tokenizer.explain_neox import explain_neox

        return explain_neox(text, self, split, read)

    # ---- what stands around a text

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """Each text with `bos_token` before and `eos_token` after it, where the settings ask for them."""
        before, after = self._around()
        pair = [] if token_ids_1 is None else [*before, *token_ids_1, *after]
        return [*before, *token_ids_0, *after, *pair]

    def _around(self) -> tuple[list[int], list[int]]:
        """The ids before and after each text; a role that no token has adds none, as in transformers."""
        before = [self.bos_token_id] if self.add_bos_token and self.bos_token is not None else []
        after = [self.eos_token_id] if self.add_eos_token and self.eos_token is not None else []
        return before, after

    # ---- ids -> text

    def check_id(self, index: Any, position: int = 0) -> int:
        """`index` as an int when it is below `padded_vocab_size` or has a token. Raises: InputError."""
        number = as_integer(index)
        padded = self.padded_vocab_size
        limit = self._default_limit if padded is None else max(padded, self._free_id)
        if number is not None and 0 <= number < limit:
            return number
        raise InputError(
            "this is not the id of a token",
            where=f"position {position}",
            found=f"{type(index).__name__} {quote(index)}",
            allowed=f"int from 0 to {limit - 1}",
            hint="padded_vocab_size says how many rows the embedding of the model has.",
            position=position,
            value=index,
        )

    def _check_padded_size(self) -> None:
        size = self.padded_vocab_size
        if size is not None and (type(size) is not int or not 0 <= size <= 2**31):
            raise InputError("padded_vocab_size is wrong", found=quote(size), allowed="0 to 2**31, or None")

    def token_bytes(self, index: int) -> bytes:
        """The UTF-8 bytes for which the id stands; one character may be spread over several ids.

        Raises: InputError.
        """
        index = self.check_id(index)
        added = self.added_tokens_decoder.get(index)
        # A token of the vocabulary that is added too is one that merges can give: bytes, not text.
        return (
            self._token_bytes(index)
            if added is None or added.content in self._vocabulary
            else added.content.encode()
        )

    def _token_bytes(self, index: int) -> bytes:
        return to_bytes(self._convert_id_to_token(index))

    def _convert_token_to_id(self, token: str) -> int:
        index = self._vocabulary.get(token)
        if index is not None:
            return index
        unknown = self.unk_token
        if unknown is None:
            raise InputError(
                "the token is not in the vocabulary and there is no unk_token", found=quote(token)
            )
        return self._vocabulary.get(unknown, self._added_ids.get(unknown, 0))

    def _convert_id_to_token(self, index: int) -> str:
        return self.tables.tokens.get(index, "")

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text of tokens: their bytes joined, then decoded."""
        return self._text(
            b"".join(
                token.encode("utf-8")
                if token in self._added_ids and token not in self._vocabulary
                else to_bytes(token)
                for token in tokens
            )
        )

    def skipped_ids(self) -> set[int]:
        """The ids that `skip_special_tokens` leaves out: also of tokens that only the file calls special."""
        special = {index for index, token in self.added_tokens_decoder.items() if token.special}
        return super().skipped_ids() | special

    def _text_of(self, ids: Sequence[Any], skip_special_tokens: bool) -> str:
        return self._text(self._joined_bytes(ids, skip_special_tokens))

    def _decode_row(self, ids: Any, skip_special_tokens: bool, clean_up: bool | None) -> str:
        return super()._decode_row(ids, skip_special_tokens, bool(clean_up))

    def _text(self, data: bytes) -> str:
        try:
            return data.decode("utf-8", self.errors)
        except UnicodeDecodeError as error:
            raise InputError(
                f"the ids spell bytes that are not UTF-8: byte {error.start} cannot be decoded",
                found=f"0x{data[error.start]:02x}",
                hint='errors="replace" puts U+FFFD in its place.',
            ) from error

    # ---- files

    def saved_options(self) -> dict[str, Any]:
        padded = {} if self.padded_vocab_size is None else {"padded_vocab_size": self.padded_vocab_size}
        return {
            **super().saved_options(),
            "add_bos_token": self.add_bos_token,
            "add_eos_token": self.add_eos_token,
            "add_prefix_space": self.add_prefix_space,
            "errors": self.errors,
            "trim_offsets": self.trim_offsets,
            **padded,
            # Without a null the default would come back.
            **{role: None for role in _ROLES if role not in self.special_tokens_map},
        }

    def save_vocabulary(
        self, save_directory: str | os.PathLike[str], filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        """Writes `vocab.json` and `merges.txt`: the vocabulary without added tokens and settings.

        Returns: their paths. Raises: SaveError; InputError for merges that `merges.txt` cannot hold.
        """
        contents = {"vocab.json": vocab_json(self.tables), "merges.txt": merges_txt(self.tables)}
        return tuple(
            str(write_atomically(file_in(save_directory, name, filename_prefix), content))
            for name, content in contents.items()
        )

    def save_files(
        self, save_directory: str | os.PathLike[str], filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        """Writes `tokenizer.json`, which holds everything but what `tokenizer_config.json` says."""
        content = tokenizer_json(
            self.tables,
            self.added_tokens_decoder,
            nfc=self.nfc,
            add_prefix_space=self.add_prefix_space,
            trim_offsets=self.trim_offsets,
            before=self.bos_token if self.add_bos_token else None,
            after=self.eos_token if self.add_eos_token else None,
            ids=self.get_vocab(),
        )
        path = file_in(save_directory, "tokenizer.json", filename_prefix)
        return (str(write_atomically(path, content)),)


#: The class that the documentation calls so; transformers 5 has one class for both names too.
GPTNeoXTokenizer = GPTNeoXTokenizerFast

_ROLES = ("unk_token", "bos_token", "eos_token", "pad_token")
_PADDING_UNIT = 1024  # 128 times as many as eight GPUs share one embedding
_LONGEST_KNOWN, _MOST_KNOWN = 64, 1 << 16
_SHORT = 400  # characters: from here on a call of a kernel is quicker than looking up word by word


def _resolve(given: Any, in_file: str | None, known: Mapping[str, int], where: object) -> Any:
    """The token of a role: what is given, else what the file puts around texts, else the default if it is known."""
    if isinstance(given, _IfKnown):
        return in_file or (str(given) if given in known else None)
    if in_file is not None and str(given) != in_file:
        raise TokenizerFileError(
            "post_processor does not put the bos_token before and the eos_token after a text",
            where=where,
            found=quote(in_file),
            allowed=quote(str(given)),
        )
    return given


def _flag(name: str, value: Any, default: bool) -> bool:
    if value is None:
        return default
    if not isinstance(value, bool):
        raise InputError(f"{name} is not a bool", found=quote(value), allowed="True, False or None")
    return value


def _read(vocab_file: Any, merges_file: Any, tokenizer_file: Any, vocab: Any, merges: Any) -> NeoxFile:
    """What the sources of the constructor say; a vocabulary that is given goes before files."""
    if vocab is not None:
        return NeoxFile(make_tables(vocab, [] if merges is None else merges, "the arguments"))
    if tokenizer_file is not None:
        return read_tokenizer_json(tokenizer_file)
    if vocab_file is not None and merges_file is not None:
        return read_vocab_and_merges(vocab_file, merges_file)
    raise InputError(
        "there is no vocabulary",
        found=f"vocab_file {quote(vocab_file)}, merges_file {quote(merges_file)}",
        allowed="tokenizer_file, or vocab_file and merges_file, or vocab and merges",
    )


def _join_added_tokens(
    file: NeoxFile, settings: Mapping[int, AddedToken], where: object
) -> dict[int, AddedToken]:
    """The added tokens of `tokenizer.json`, with those of the settings over them."""
    joined = {**file.added_tokens, **settings}
    ids: dict[str, int] = {}
    for index, token in joined.items():
        known = file.tables.vocabulary.get(token.content, ids.setdefault(token.content, index))
        if known != index or file.tables.tokens.get(index, token.content) != token.content:
            raise TokenizerFileError(
                "an added token and the vocabulary contradict each other",
                where=where,
                found=f"{quote(token.content)} with id {index}",
                allowed="one id for each token, one token for each id",
            )
    return joined


def _cut(text: AlignedText, finder: AddedTokenFinder, special_too: bool) -> list[Piece]:
    return [Piece(text.part(start, end), index) for start, end, index in finder.find(text.text, special_too)]
