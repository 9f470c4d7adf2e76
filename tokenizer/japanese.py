"""The tokenizer of GPT-NeoX-Japanese: sub-words within one kind of script, bytes for everything else."""

from __future__ import annotations

import json
import os
import random
import warnings
from collections.abc import Sequence
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any, ClassVar

from refimpl.errors import InputError, quote
from refimpl.files import write_atomically
from refimpl.tokenizer.base import PreTrainedTokenizer
from refimpl.tokenizer.clean_text import clean_text
from refimpl.tokenizer.encoding import TextEncoding
from refimpl.tokenizer.japanese_files import (
    CLEAN_TEXT_TAGS,
    TEXT_TAGS,
    UTF8_BYTES,
    byte_tag,
    read_emoji_table,
    read_vocabulary,
)
from refimpl.tokenizer.japanese_text import normalize, segment, smallest_id, spelled_out, steps
from refimpl.tokenizer.kernels import load_if_worth
from refimpl.tokenizer.kernels.parallel import check_threads, encode_in_parallel
from refimpl.tokenizer.pretrained_files import file_in
from refimpl.tokenizer.traced_text import TracedText

if TYPE_CHECKING:
    from refimpl.tokenizer.explanation import Piece, TokenReader
    from refimpl.tokenizer.kernels.japanese_encoder import JapaneseEncoder


class GPTNeoXJapaneseTokenizer(PreTrainedTokenizer):
    """Japanese text <-> ids, by the files `vocab.txt` and `emoji.json`.

    `compat="hf"` is transformers' behaviour with its defects: the comma has lost its id, bytes are
    decoded one by one, white space around decoded text is cut off, and ids of added tokens begin at the
    number of distinct lines.  `compat="original"` is the encoder with which the vocabulary was made, and
    `bpe_dropout_rate` (with `seed`) is its dropout.  docs/tokenizer.md lists the differences.
    `impl="plain"` never uses the compiled form of the algorithm; the ids are the same.  `threads` may share a
    large batch (None: one for every processor).
    Raises: MissingFileError, TokenizerFileError, ResourceLimitError (files); InputError (options).
    """

    vocab_files_names: ClassVar[dict[str, str]] = {"vocab_file": "vocab.txt", "emoji_file": "emoji.json"}

    def __init__(
        self,
        vocab_file: str | os.PathLike[str],
        emoji_file: str | os.PathLike[str],
        unk_token: Any = "<|endoftext|>",
        pad_token: Any = "<|endoftext|>",
        bos_token: Any = "<|startoftext|>",
        eos_token: Any = "<|endoftext|>",
        do_clean_text: bool = False,
        *,
        compat: str = "hf",
        impl: str = "fast",
        threads: int | None = None,
        bpe_dropout_rate: float = 0.0,
        seed: int | None = None,
        **options: Any,
    ):
        if compat not in ("hf", "original"):
            raise InputError("compat is unknown", found=quote(compat), allowed='"hf" or "original"')
        if impl not in ("fast", "plain"):
            raise InputError("impl is unknown", found=quote(impl), allowed='"fast" or "plain"')
        if not isinstance(do_clean_text, bool):
            raise InputError("do_clean_text is not a bool", found=quote(do_clean_text))
        self.compat, self.impl, self.do_clean_text = compat, impl, do_clean_text
        self.threads = check_threads(threads)
        self.set_bpe_dropout(bpe_dropout_rate, seed)

        original = compat == "original"
        needed = TEXT_TAGS + (CLEAN_TEXT_TAGS if do_clean_text else ())
        needed += tuple(map(byte_tag, UTF8_BYTES)) if original else ()
        self._words = read_vocabulary(vocab_file, original, needed)
        self._emoji = read_emoji_table(emoji_file, self._words)
        self._smallest_id = smallest_id(self._words)
        self._encoder: JapaneseEncoder | None = None
        self._encoder_made_for: tuple[Any, ...] = ()
        super().__init__(
            self._words.entries,
            len(self._words.lines),
            unk_token=unk_token,
            pad_token=pad_token,
            bos_token=bos_token,
            eos_token=eos_token,
            **options,
        )

    @property
    def vocab_size(self) -> int:
        """The number of ids; with `compat="hf"` that of distinct lines, as in transformers."""
        return self._base_ids if self.compat == "original" else super().vocab_size

    def __len__(self) -> int:
        if self.compat == "hf":
            return super().__len__()
        return len(self.added_tokens_decoder.keys() | range(self._base_ids))

    def _next_id(self) -> int:
        if self.compat == "original":
            return max(self._base_ids - 1, *self.added_tokens_decoder) + 1
        index = len(self)
        if index < self._base_ids:
            warnings.warn(
                f"the new token takes id {index} from {self._words.lines[index][0]!r}, as in transformers; "
                'compat="original" gives new tokens ids of their own',
                stacklevel=4,
            )
        return index

    def set_bpe_dropout(self, rate: float, seed: int | None = None) -> None:
        """From now on, where several words fit, drops the best with probability `rate`.

        The word is then drawn from the others, each e times as likely as the one with the next larger
        id.  `seed` makes the draws of the calls that follow reproducible.
        Raises: InputError unless 0 <= rate <= 1, and for a rate above 0 with `compat="hf"`.
        """
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate <= 1:
            raise InputError("bpe_dropout_rate is wrong", found=quote(rate), allowed="0 to 1")
        if rate and self.compat == "hf":
            raise InputError(
                'compat="hf" has no dropout', found=f"bpe_dropout_rate {rate}", allowed='compat="original"'
            )
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
            raise InputError("seed is not an int", found=quote(seed))
        self.bpe_dropout_rate = rate
        self._random = random.Random(seed)

    def _choose(self, candidates: list[str]) -> str:
        """The word with the smallest id, unless dropout decides for another."""
        if not self.bpe_dropout_rate or self._random.random() >= self.bpe_dropout_rate:
            return self._smallest_id(candidates)
        others = sorted(candidates, key=self._words.words.__getitem__)[1:]
        return self._random.choices(others, weights=[_DECAY**rank for rank in range(len(others))])[0]

    def _encode_compiled(
        self, texts: list[str], split_special_tokens: bool | None, offsets: bool
    ) -> list[TextEncoding] | None:
        if self.impl == "plain" or self.bpe_dropout_rate:
            return None
        try:
            encoder = self._compiled(sum(map(len, texts)))
            if encoder is None:
                return None
            whole = self.split_special_tokens if split_special_tokens is None else split_special_tokens
            if not whole and any(map(self._splitter.may_cut, texts)):
                return None if offsets else self._encode_around_added_tokens(texts, encoder)
            if not self.do_clean_text:
                return encode_in_parallel(partial(encoder.encode, offsets=offsets), texts, self.threads)
            return None if offsets else encoder.encode_cleaned(texts)
        except (TypeError, UnicodeEncodeError):  # not a text, a lone surrogate
            return None

    def _encode_around_added_tokens(self, texts: list[str], encoder: JapaneseEncoder) -> list[TextEncoding]:
        cut = [self._cut_out_added_tokens(text) for text in texts]
        ordinary = [piece for pieces in cut for piece, is_added in pieces if not is_added]
        encode = encoder.encode_cleaned if self.do_clean_text else encoder.encode
        encodings = iter(encode(ordinary))
        return [
            TextEncoding(
                [
                    index
                    for piece, is_added in pieces
                    for index in ([self.convert_tokens_to_ids(piece)] if is_added else next(encodings).ids)
                ]
            )
            for pieces in cut
        ]

    def _compiled(self, characters: int) -> JapaneseEncoder | None:
        """The compiled form, once there is enough text for it, and where it can do the same as the plain one."""
        made_for = (self._splitter, self.unk_token)
        if self._encoder_made_for == made_for:
            return self._encoder
        kernels = load_if_worth("japanese_encoder", characters)
        if kernels is None:
            return None
        self._encoder = None
        if kernels.can_encode(self._words, self._emoji, self._added_ids):
            byte_ids = [self.convert_tokens_to_ids(byte_tag(value)) for value in range(256)]
            self._encoder = kernels.JapaneseEncoder(self._words, self._emoji, byte_ids)
        self._encoder_made_for = made_for
        return self._encoder

    @property
    def has_offsets(self) -> bool:  # type: ignore[override]
        """Whether `return_offsets_mapping` and `word_ids()` are answered: not with `do_clean_text`."""
        return not self.do_clean_text

    @property
    def is_repeatable(self) -> bool:  # type: ignore[override]
        """Whether a text is encoded the same every time: not with dropout."""
        return not self.bpe_dropout_rate

    def _encode_plain(
        self, text: str, split_special_tokens: bool | None, surrogates: str | None, offsets: bool
    ) -> TextEncoding:
        """The encoding of a text; all tokens of what the text has in one place are one word."""
        if not offsets:
            return super()._encode_plain(text, split_special_tokens, surrogates, offsets)
        if self.do_clean_text:
            raise InputError(
                "do_clean_text=True knows no offsets and no words: cleaning leaves parts of the text out",
                hint="Make the tokenizer with do_clean_text=False.",
            )
        traced = TracedText.of(text, self._check_text(text, surrogates))
        whole = self.split_special_tokens if split_special_tokens is None else split_special_tokens
        tokens: list[str] = []
        spans: list[tuple[int, int]] = []
        for piece, is_added in [(traced, False)] if whole else self._cut_out_added_tokens(traced):
            if is_added:
                tokens.append(str(piece))
                spans.append(piece.span(0, len(piece)))
                continue
            piece = normalize(piece, self._emoji.tags)
            for start, end, words in steps(str(piece), self._words, self._choose):
                tokens += words
                spans += [piece.span(start, end)] * len(words)
        starts = [start for start, _ in spans]
        new_word = [start != before for start, before in zip(starts, [-1, *starts], strict=False)]
        numbers = [count - 1 for count in accumulate(new_word)]
        return TextEncoding(self.convert_tokens_to_ids(tokens), spans, numbers)

    def _tokenize(self, text: str) -> list[str]:
        text = normalize(text, self._emoji.tags)
        if self.do_clean_text:
            text = clean_text(text)
        return segment(text, self._words, self._choose)

    def _explain_piece(self, text: str, read: TokenReader) -> Piece:
        from refimpl.tokenizer.explain_japanese import explain_japanese

        return explain_japanese(text, self._words, self._emoji.tags, self.do_clean_text, self._choose, read)

    def _convert_token_to_id(self, token: str) -> int:
        index = self._words.words.get(token)
        if index is not None:
            return index
        unknown = self.unk_token
        if unknown is None:
            raise InputError(
                "the token is not in the vocabulary and there is no unk_token", found=quote(token)
            )
        return self._words.words.get(unknown, self._added_ids.get(unknown, 0))

    def _convert_id_to_token(self, index: int) -> str:
        """The word of the id; with `compat="hf"` the text that it stands for, as in transformers."""
        word = self._words.lines[index][0]
        if self.compat == "original":
            return word
        return spelled_out(word, self._emoji).decode("utf-8", "replace")

    def _token_bytes(self, index: int) -> bytes:
        return spelled_out(self._words.lines[index][0], self._emoji)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text of tokens; with `compat="hf"` their pieces of text joined and stripped."""
        if self.compat == "hf":
            return "".join(tokens).strip()
        return b"".join(spelled_out(token, self._emoji) for token in tokens).decode("utf-8", "replace")

    def _text_of(self, ids: Sequence[Any], skip_special_tokens: bool) -> str:
        if self.compat == "hf":
            return super()._text_of(ids, skip_special_tokens)
        return self._joined_bytes(ids, skip_special_tokens).decode("utf-8", "replace")

    def saved_options(self) -> dict[str, Any]:
        compat = {"compat": self.compat} if self.compat != "hf" else {}
        return {**super().saved_options(), "do_clean_text": self.do_clean_text, **compat}

    def save_vocabulary(
        self, save_directory: str | os.PathLike[str], filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        """Writes `vocab.txt` (every line with a line end) and `emoji.json` (ASCII only).

        Returns: their paths. Raises: SaveError.
        """
        vocab = "".join(",".join(spellings) + "\n" for spellings in self._words.lines)
        emoji = json.dumps({"emoji": self._emoji.tags, "emoji_inv": self._emoji.emoji})
        files = zip(self.vocab_files_names.values(), (vocab, emoji), strict=True)
        return tuple(
            str(write_atomically(file_in(save_directory, name, filename_prefix), content))
            for name, content in files
        )


_DECAY = 0.36787944117144233  # 1/e
