"""The tokenizer of rinna's and LINE's GPT-NeoX models: a unigram model of the `sentencepiece` package.

The files of these models name transformers' T5Tokenizer, and their makers ask for its form in Python
(`use_fast=False`), which leaves the work to sentencepiece.  So does this one.  The way of a text to its ids:

1. With `do_lower_case`, everything but added tokens becomes lower case.
2. Added tokens are cut out (`added_tokens.py`).
3. sentencepiece normalises what is between them, writes "▁" for a space, puts one before it if the model file says
   so, and finds the most likely pieces.  What it does not know becomes bytes, or one `unk_token` for a row of
   unknown characters.
4. `eos_token` is put after the ids, which these models do not want: their users say `add_special_tokens=False`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, ClassVar

from refimpl.errors import InputError, quote
from refimpl.files import write_atomically
from refimpl.tokenizer.added_tokens import MAX_ADDED_TOKENS, AddedToken
from refimpl.tokenizer.base import PreTrainedTokenizer
from refimpl.tokenizer.encoding import Span, TextEncoding
from refimpl.tokenizer.options import as_integer
from refimpl.tokenizer.pretrained_files import file_in
from refimpl.tokenizer.sentencepiece_model import check_sampling, read_model
from refimpl.tokenizer.special_tokens import check_token
from refimpl.tokenizer.traced_text import Text, TracedText

SPACE = "▁"
_SENTINEL = "<extra_id_"


class T5Tokenizer(PreTrainedTokenizer):
    """Text <-> ids, by the file `spiece.model`, as transformers 4 does it in Python.

    `extra_ids` tokens `<extra_id_0>`, ... have the ids after the vocabulary, the first the highest.
    `sp_model_kwargs` (`enable_sampling`, `nbest_size`, `alpha`) draw the pieces of a text anew in each call.
    `legacy=False` puts no space before what follows an added token, and one before a text only with
    `add_prefix_space`.  docs/tokenizer.md says where transformers 5 differs.
    Raises: MissingFileError, TokenizerFileError, ResourceLimitError (the file); BackendError without the package
        sentencepiece; InputError (options).
    """

    vocab_files_names: ClassVar[dict[str, str]] = {"vocab_file": "spiece.model"}

    def __init__(
        self,
        vocab_file: str | os.PathLike[str],
        eos_token: Any = "</s>",
        unk_token: Any = "<unk>",
        pad_token: Any = "<pad>",
        extra_ids: int = 100,
        additional_special_tokens: Sequence[str | AddedToken] | None = None,
        sp_model_kwargs: Mapping[str, Any] | None = None,
        legacy: bool | None = None,
        add_prefix_space: bool = True,
        *,
        do_lower_case: bool = False,
        **options: Any,
    ):
        self.legacy = _flag("legacy", True if legacy is None else legacy)
        self.add_prefix_space = _flag("add_prefix_space", add_prefix_space)
        self.do_lower_case = do_lower_case
        self.sp_model_kwargs = check_sampling(sp_model_kwargs or {})
        self._model = read_model(vocab_file, self.sp_model_kwargs, prefix=self.legacy)
        size = len(self._model.pieces)

        extra = options.pop("extra_special_tokens", None)
        extra = additional_special_tokens if extra is None else extra
        self.extra_ids, extra = _with_sentinels(extra_ids, extra)
        given = options.pop("added_tokens_decoder", None) or {}
        known = {token.content for token in given.values()}
        sentinels = {
            size + self.extra_ids - 1 - number: AddedToken(content, lstrip=True, rstrip=True, special=True)
            for number, content in enumerate(_sentinels(self.extra_ids))
            if content not in known
        }
        super().__init__(
            {piece: index for index, piece in enumerate(self._model.pieces)},
            size,
            eos_token=eos_token,
            unk_token=unk_token,
            pad_token=pad_token,
            extra_special_tokens=extra,
            added_tokens_decoder={**sentinels, **given},
            **options,
        )

    @property
    def sp_model(self) -> Any:
        """The package's own `SentencePieceProcessor`."""
        return self._model.processor

    @property
    def do_lower_case(self) -> bool:
        """Whether texts become lower case first."""
        return self._do_lower_case

    @do_lower_case.setter
    def do_lower_case(self, value: bool) -> None:
        self._do_lower_case = _flag("do_lower_case", value)
        self._revision += 1

    @property
    def is_repeatable(self) -> bool:  # type: ignore[override]
        """Whether a text is encoded the same every time: not with `enable_sampling`."""
        return not self.sp_model_kwargs.get("enable_sampling")

    def get_sentinel_tokens(self) -> list[str]:
        """The tokens `<extra_id_0>`, `<extra_id_1>`, ..."""
        return [token for token in self.extra_special_tokens if _SENTINEL in token]

    def get_sentinel_token_ids(self) -> list[int]:
        """The ids of `get_sentinel_tokens()`."""
        return self.convert_tokens_to_ids(self.get_sentinel_tokens())

    def add_tokens(
        self, new_tokens: str | AddedToken | Sequence[str | AddedToken], special_tokens: bool = False
    ) -> int:
        count = super().add_tokens(new_tokens, special_tokens)
        known = self._vocabulary
        #: Whether the settings give a piece of the model another id than the model does.
        self._has_other_ids = any(known.get(token, i) != i for token, i in self._added_ids.items())
        return count

    # ---- text -> tokens -> ids

    def tokenize(
        self,
        text: str,
        pair: str | None = None,
        add_special_tokens: bool = False,
        *,
        split_special_tokens: bool | None = None,
        surrogates: str | None = None,
    ) -> list[str]:
        """The tokens of a text, or of two; what is unknown looks like the text.

        `split_special_tokens` treats added tokens that stand in the text as ordinary text.
        Raises: InputError (not a str), TextInputError (not valid Unicode).
        """
        pieces = self._pieces(self._check_text(text, surrogates), split_special_tokens)
        tokens = [t for piece, is_added in pieces for t in ([piece] if is_added else self._tokenize(piece))]
        reading = {"split_special_tokens": split_special_tokens, "surrogates": surrogates}
        return self._around_tokens(tokens[self._needless_prefix(tokens) :], pair, add_special_tokens, reading)

    def _encode_plain(
        self, text: str, split_special_tokens: bool | None, surrogates: str | None, offsets: bool
    ) -> TextEncoding:
        """The encoding of a text; a word begins at every token that begins with a space."""
        valid = self._check_text(text, surrogates)
        if offsets:
            return self._encode_with_offsets(TracedText.of(text, valid), split_special_tokens)
        if not self.legacy or not self.is_repeatable:
            tokens = self.tokenize(text, split_special_tokens=split_special_tokens, surrogates=surrogates)
            return TextEncoding(self.convert_tokens_to_ids(tokens))
        ids: list[int] = []
        for piece, is_added in self._pieces(valid, split_special_tokens):
            ids += [self.convert_tokens_to_ids(piece)] if is_added else self._ids(piece)
        return TextEncoding(ids)

    def _ids(self, text: str) -> list[int]:
        """The ids of `_tokenize(text)`, found faster."""
        if self._has_other_ids:
            return self.convert_tokens_to_ids(self._tokenize(text))
        ids = self._model.ids(text)
        unknown = self._model.unk_id
        if unknown not in ids:
            return ids
        # What is unknown may look like a control piece or an added token, and has its id then.
        return [
            self.convert_tokens_to_ids(token) if index == unknown else index
            for index, token in zip(ids, self._model.tokens(text), strict=True)
        ]

    def _encode_with_offsets(self, text: TracedText, split_special_tokens: bool | None) -> TextEncoding:
        tokens: list[str] = []
        spans: list[Span] = []
        new_words: list[bool] = []
        for piece, is_added in self._pieces(text, split_special_tokens):
            if is_added:
                found, places = [str(piece)], [(0, len(piece))]
            else:
                found, places = self._tokens_and_spans(str(piece))
            tokens += found
            spans += [_place(piece, *place) for place in places]
            new_words += [number == 0 or token.startswith(SPACE) for number, token in enumerate(found)]
        start = self._needless_prefix(tokens)
        words = [count - 1 for count in accumulate(new_words[start:])]
        return TextEncoding(self.convert_tokens_to_ids(tokens[start:]), spans[start:], words)

    def _pieces(self, text: Text, split_special_tokens: bool | None) -> list[tuple[Text, bool]]:
        """A valid text cut at its added tokens, ready for the model; whether each piece is an added token."""
        if self.do_lower_case:
            text = self._lowered(text)
        if not self.legacy and text:
            text = text.replace(SPACE, " ")
            if self.add_prefix_space:
                text = _before(SPACE, text)
        whole = self.split_special_tokens if split_special_tokens is None else split_special_tokens
        return [(text, False)] if whole else self._cut_out_added_tokens(text)

    def _lowered(self, text: Text) -> Text:
        """The text in lower case, character by character, but for added tokens."""
        pieces = self._splitter.split(text)
        lowered = [piece if str(piece) in self._added_ids else _lower(piece) for piece in pieces]
        return _joined(lowered, text)

    def _needless_prefix(self, tokens: list[str]) -> int:
        """How many tokens to leave out at the beginning: the space before a special token, without `legacy`."""
        return int(
            not self.legacy and tokens[:1] == [SPACE] and tokens[1:2] != [] and tokens[1] in self._special()
        )

    def _special(self) -> set[str]:
        return set(self.all_special_tokens)

    def _tokenize(self, text: str) -> list[str]:
        guard = self._guard(text)
        tokens = self._model.tokens(guard + text)
        return tokens[self._length_of(guard) :]

    def _tokens_and_spans(self, text: str) -> tuple[list[str], list[Span]]:
        guard = self._guard(text)
        tokens, spans = self._model.tokens_and_spans(guard + text)
        first, shift = self._length_of(guard), len(guard)
        moved = [(max(start - shift, 0), max(end - shift, 0)) for start, end in spans[first:]]
        return tokens[first:], moved

    def _guard(self, text: str) -> str:
        """What goes before a text so that the model does not strip its first space; its tokens are dropped."""
        if self.legacy or not text.startswith((SPACE, " ")):
            return ""
        return self.unk_token or self._model.pieces[self._model.unk_id]

    def _length_of(self, guard: str) -> int:
        return len(self._model.tokens(guard)) if guard else 0

    # ---- what stands around a text

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """Each text with `eos_token` after it."""
        after = [] if self.eos_token is None else [self.eos_token_id]
        return [*token_ids_0, *after] if token_ids_1 is None else [*token_ids_0, *after, *token_ids_1, *after]

    def create_token_type_ids_from_sequences(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """0 for every token: the models know no types."""
        return [0] * len(self.build_inputs_with_special_tokens(token_ids_0, token_ids_1))

    # ---- vocabulary

    def _convert_token_to_id(self, token: str) -> int:
        return self._vocabulary.get(token, self._model.unk_id)

    def _convert_id_to_token(self, index: int) -> str:
        return self._model.pieces[index]

    def _token_bytes(self, index: int) -> bytes:
        piece = self._model.pieces[index]
        if piece in self._model.bytes:
            return bytes([self._model.bytes[piece]])
        if index == self._model.unk_id or piece in self._model.control:
            return self._model.decode([piece]).encode("utf-8")
        return piece.replace(SPACE, " ").encode("utf-8")

    # ---- ids -> text

    def _text_of(self, ids: Sequence[Any], skip_special_tokens: bool) -> str:
        """The text of ids: added tokens that are not special, and extra special ones, stand between spaces."""
        return " ".join(self._texts(self.convert_ids_to_tokens(ids, skip_special_tokens)))

    def _texts(self, tokens: list[str]) -> Iterator[str]:
        alone = {*self._added_ids} - self._special()
        alone |= {t for t in self.extra_special_tokens if self.convert_tokens_to_ids(t) >= self.vocab_size}
        run: list[str] = []
        for token in tokens:
            if token not in alone:
                run.append(token)
                continue
            if text := self.convert_tokens_to_string(run):
                yield text
            yield token
            run = []
        if run:
            yield self.convert_tokens_to_string(run)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text of tokens: special ones as they are, with a space before; no white space around it."""
        if tokens and tokens[0].startswith(SPACE) and self.add_prefix_space:
            tokens = [tokens[0][1:], *tokens[1:]]
        special = self._special()
        text, run, after_special = "", list[str](), False
        for token in tokens:
            if token not in special:
                run.append(token)
                after_special = False
                continue
            text += ("" if after_special else " ") + self._model.decode(run) + token
            run, after_special = [], True
        return (text + self._model.decode(run)).strip()

    # ---- files

    def saved_options(self) -> dict[str, Any]:
        return {
            **super().saved_options(),
            "add_prefix_space": self.add_prefix_space,
            "do_lower_case": self.do_lower_case,
            "extra_ids": self.extra_ids,
            "legacy": self.legacy,
            "sp_model_kwargs": self.sp_model_kwargs,
            # Without a null the default would come back.
            **{role: None for role in _ROLES if role not in self.special_tokens_map},
        }

    def save_vocabulary(
        self, save_directory: str | os.PathLike[str], filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        """Writes `spiece.model`, byte for byte what was read.  Returns: its path.  Raises: SaveError."""
        path = file_in(save_directory, self.vocab_files_names["vocab_file"], filename_prefix)
        return (str(write_atomically(path, self._model.content)),)


_ROLES = ("eos_token", "unk_token", "pad_token")


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise InputError(f"{name} is not a bool", found=quote(value))
    return value


def _sentinels(count: int) -> list[str]:
    return [f"{_SENTINEL}{number}>" for number in range(count)]


def _with_sentinels(extra_ids: Any, extra: Any) -> tuple[int, list[str | AddedToken]]:
    """The number of sentinel tokens, and the extra special tokens with them, unless they are among those.

    Raises: InputError.
    """
    count = as_integer(extra_ids)
    if count is None or not 0 <= count <= MAX_ADDED_TOKENS:
        raise InputError("extra_ids is wrong", found=quote(extra_ids), allowed=f"0 to {MAX_ADDED_TOKENS}")
    extra = [] if extra is None else extra
    if not isinstance(extra, list | tuple):
        raise InputError("additional_special_tokens is not a list of tokens", found=quote(extra))
    for token in extra:
        check_token(token, "an additional special token")
    named = sum(_SENTINEL in str(token) for token in extra)
    if count and named and named != count:
        raise InputError(
            "extra_ids and additional_special_tokens contradict each other",
            found=f"extra_ids {count}, and {named} tokens {_SENTINEL}...>",
            allowed="as many as extra_ids, or none",
        )
    return count, [*extra, *(_sentinels(count) if not named else [])]


# ---- texts of both kinds (str and TracedText)


def _lower(text: Text) -> Text:
    if isinstance(text, str):
        return "".join(map(str.lower, text))
    lowered = [character.lower() for character in text.text]
    spans = [span for span, part in zip(text.spans, lowered, strict=True) for _ in part]
    return TracedText("".join(lowered), spans)


def _joined(pieces: list[Text], like: Text) -> Text:
    if isinstance(like, str):
        return "".join(map(str, pieces))
    texts = [piece for piece in pieces if isinstance(piece, TracedText)]
    return TracedText("".join(map(str, texts)), [span for piece in texts for span in piece.spans])


def _before(prefix: str, text: Text) -> Text:
    """`prefix` and the text; it stands for nothing in the original."""
    if isinstance(text, str):
        return prefix + text
    start = text.spans[0][0]
    return TracedText(prefix, [(start, start)] * len(prefix)) + text


def _place(text: TracedText, start: int, end: int) -> Span:
    """The characters of the original for which `text[start:end]` stands; an empty part has an empty span."""
    if start < end:
        return text.span(start, end)
    place = text.spans[start][0] if start < len(text.spans) else text.spans[-1][1]
    return place, place
