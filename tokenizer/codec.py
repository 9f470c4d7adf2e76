"""Text <-> tokens <-> ids, for any tokenizer: its vocabulary, added tokens and decoding.

A tokenizer class supplies the abstract methods at the end of `TokenCodec`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import filterfalse
from typing import TYPE_CHECKING, Any, TypeVar

from refimpl.errors import InputError, TextInputError, quote
from refimpl.tokenizer.added_tokens import (
    MAX_ADDED_TOKENS,
    AddedToken,
    AddedTokenSplitter,
    apply_token_options,
)
from refimpl.tokenizer.encoding import TextEncoding
from refimpl.tokenizer.options import as_integer
from refimpl.tokenizer.special_tokens import SPECIAL_TOKEN_NAMES, SpecialTokens, check_token
from refimpl.tokenizer.text_files import check_unicode
from refimpl.tokenizer.traced_text import Text

if TYPE_CHECKING:
    from refimpl.tokenizer.explanation import Explanation, Piece, TokenReader

T = TypeVar("T")

_TIGHTER = {" .": ".", " ?": "?", " !": "!", " ,": ",", " ' ": "'"} | {
    f" {ending}": ending for ending in ("n't", "'m", "'s", "'ve", "'re")
}


class TokenCodec(SpecialTokens):
    """Text -> tokens -> ids and back, one text at a time.

    `vocabulary` maps each token of the vocabulary files to its id; every id below `base_ids` has a token.
    `added_tokens_decoder` gives tokens with chosen ids, as `tokenizer_config.json` stores them.
    """

    #: Whether this tokenizer can say where its tokens stand in the text.
    has_offsets: bool = True

    #: Whether a text is encoded the same every time.
    is_repeatable: bool = True

    # Counts the changes of the added tokens: what was encoded before one may be encoded differently after it.
    _revision = 0

    def __init__(
        self,
        vocabulary: Mapping[str, int],
        base_ids: int,
        special_tokens: Mapping[str, Any],
        *,
        extra_special_tokens: Sequence[str | AddedToken] | None = None,
        added_tokens_decoder: Mapping[int, AddedToken] | None = None,
        clean_up_tokenization_spaces: bool = False,
        split_special_tokens: bool = False,
        surrogates: str = "strict",
    ):
        self._vocabulary, self._base_ids = vocabulary, base_ids
        self._token_of: dict[int, str] = {}
        self._bytes_of: dict[int, bytes] = {}
        self._named_tokens = {
            name: check_token(special_tokens.get(name), name) for name in SPECIAL_TOKEN_NAMES
        }
        self.extra_special_tokens = extra_special_tokens
        self.clean_up_tokenization_spaces = clean_up_tokenization_spaces
        self.split_special_tokens = split_special_tokens
        self.surrogates = check_surrogates(surrogates)
        self.added_tokens_decoder: dict[int, AddedToken] = dict(added_tokens_decoder or {})
        self._added_ids = {token.content: index for index, token in self.added_tokens_decoder.items()}
        self.add_tokens([t for t in self.all_special_tokens if t not in self._added_ids], special_tokens=True)

    # ---- vocabulary

    def get_vocab(self) -> dict[str, int]:
        """Token -> id: the vocabulary files, then the added tokens."""
        return {**self._vocabulary, **self._added_ids}

    @property
    def vocab(self) -> dict[str, int]:
        """`get_vocab()`."""
        return self.get_vocab()

    @property
    def added_tokens_encoder(self) -> dict[str, int]:
        """Token -> id of the added tokens, in the order of their ids."""
        return {token.content: index for index, token in sorted(self.added_tokens_decoder.items())}

    def get_added_vocab(self) -> dict[str, int]:
        """Token -> id of the added tokens, special ones included."""
        return dict(self._added_ids)

    @property
    def vocab_size(self) -> int:
        """The size of the vocabulary files, without added tokens."""
        return len(self._vocabulary)

    def __len__(self) -> int:
        return self.vocab_size + sum(token not in self._vocabulary for token in self._added_ids)

    def __bool__(self) -> bool:
        return True

    def add_tokens(
        self, new_tokens: str | AddedToken | Sequence[str | AddedToken], special_tokens: bool = False
    ) -> int:
        """Gives each token an id, if it has none, and cuts it out of texts from now on.

        Returns: how many of them were new. Raises: InputError.
        """
        tokens = [new_tokens] if isinstance(new_tokens, str | AddedToken) else new_tokens
        if not isinstance(tokens, Sequence):
            raise InputError("these are not tokens", found=quote(tokens), allowed="str, AddedToken or a list")
        if len(tokens) + len(self._added_ids) > MAX_ADDED_TOKENS:
            raise InputError("too many added tokens", found=len(tokens), allowed=MAX_ADDED_TOKENS)
        already = self.all_special_tokens
        count = 0
        for given in tokens:
            if not isinstance(given, str | AddedToken):
                raise InputError("this is not a token", found=quote(given), allowed="str or AddedToken")
            if not str(given) or self._keeps(given):
                continue
            token = self._as_added(given, special_tokens, already)
            known = self._added_ids.get(token.content, self._vocabulary.get(token.content))
            count += self._is_new(token, known)
            index = self._next_id() if known is None else known
            self.added_tokens_decoder[index] = token
            self._added_ids[token.content] = index
            if token.special and token.content not in already:
                self._extra_special_tokens.append(token)
        self._splitter = AddedTokenSplitter(self._added_ids)
        self._token_of.clear()
        self._bytes_of.clear()
        self._revision += 1
        return count

    @staticmethod
    def _as_added(token: str | AddedToken, special: bool, already_special: list[str]) -> AddedToken:
        if isinstance(token, str):
            return AddedToken(token, special=special or token in already_special)
        if special and not token.special:
            return AddedToken(
                token.content, token.single_word, token.lstrip, token.rstrip, True, token.normalized
            )
        return token

    def _keeps(self, token: str | AddedToken) -> bool:
        """Whether adding the token leaves all as it is."""
        return isinstance(token, str) and token in self._added_ids

    def _is_new(self, token: AddedToken, index: int | None) -> bool:
        """Whether `add_tokens` counts the token, which has the id `index` if it has one."""
        return index is None

    def _next_id(self) -> int:
        """The id of the next added token."""
        return len(self)

    # ---- text -> tokens -> ids

    def tokenize(
        self, text: str, *, split_special_tokens: bool | None = None, surrogates: str | None = None
    ) -> list[str]:
        """The tokens of a text.

        `split_special_tokens` treats added tokens that stand in the text as ordinary text.
        Raises: InputError (not a str), TextInputError (not valid Unicode).
        """
        text = self._check_text(text, surrogates)
        if self.split_special_tokens if split_special_tokens is None else split_special_tokens:
            return self._tokenize(text)
        tokens: list[str] = []
        for piece, is_added in self._cut_out_added_tokens(text):
            tokens += [piece] if is_added else self._tokenize(piece)
        return tokens

    def _check_text(self, text: str, surrogates: str | None) -> str:
        """`text` as valid Unicode. Raises: InputError (not a str), TextInputError."""
        if not isinstance(text, str):
            raise InputError("the text is not a str", found=f"{type(text).__name__} {quote(text)}")
        return check_unicode(text, check_surrogates(surrogates or self.surrogates))

    def _cut_out_added_tokens(self, text: Text) -> list[tuple[Text, bool]]:
        """The text in pieces, and whether each is an added token."""
        if not self._splitter.may_cut(str(text)):
            return [(text, False)] if text else []
        added = {token.content: token for token in self.added_tokens_decoder.values()}
        whole = {*self._added_ids, *self.all_special_tokens}
        return [
            (piece, str(piece) in whole) for piece in apply_token_options(self._splitter.split(text), added)
        ]

    def encode_text(
        self,
        text: str,
        *,
        split_special_tokens: bool | None = None,
        surrogates: str | None = None,
        offsets: bool = False,
    ) -> TextEncoding:
        """The ids of a text; with `offsets`, also where each stands in it, and to which word it belongs.

        Every way from a text to ids goes through here. `split_special_tokens` and `surrogates` are None
        for the settings of the tokenizer.
        Raises: InputError (not a str; no offsets here), TextInputError (not valid Unicode).
        """
        compiled = self._encode_compiled([text], split_special_tokens, offsets)
        if compiled is not None:
            return compiled[0]
        return self._encode_plain(text, split_special_tokens, surrogates, offsets)

    def encode_texts(
        self,
        texts: list[str],
        *,
        split_special_tokens: bool | None = None,
        surrogates: str | None = None,
        offsets: bool = False,
    ) -> list[TextEncoding]:
        """`encode_text` of every text, faster than one by one.

        Raises: as `encode_text`; of a TextInputError, `where` says which text (`text 3`).
        """
        encodings = self._encode_compiled(texts, split_special_tokens, offsets)
        if encodings is not None:
            return encodings
        encodings = []
        for index, text in enumerate(texts):
            try:
                encodings.append(self._encode_plain(text, split_special_tokens, surrogates, offsets))
            except TextInputError as error:
                error.where = f"text {index}"
                raise
        return encodings

    def _encode_plain(
        self, text: str, split_special_tokens: bool | None, surrogates: str | None, offsets: bool
    ) -> TextEncoding:
        """`encode_text` by the plain form of the algorithm."""
        if offsets:
            raise InputError(f"{type(self).__name__} does not know where its tokens stand in the text")
        tokens = self.tokenize(text, split_special_tokens=split_special_tokens, surrogates=surrogates)
        return TextEncoding(self.convert_tokens_to_ids(tokens))

    def _encode_compiled(
        self, texts: list[str], split_special_tokens: bool | None, offsets: bool
    ) -> list[TextEncoding] | None:
        """The encodings by the compiled form, or None where there is none, or not (yet) for such texts.

        It raises nothing: what is wrong with a text, the plain form finds and says.
        """
        return None

    def convert_tokens_to_ids(self, tokens: str | Iterable[str]) -> Any:
        """Token or tokens -> id or ids; a token that is not known has the id of `unk_token`."""
        if isinstance(tokens, str):
            index = self._added_ids.get(tokens)
            return self._convert_token_to_id(tokens) if index is None else index
        if not isinstance(tokens, Iterable):
            raise InputError("these are not tokens", found=quote(tokens), allowed="a str or a list of str")
        ids = []
        for token in tokens:
            if not isinstance(token, str):
                raise InputError("this is not a token", found=quote(token), allowed="str")
            ids.append(self.convert_tokens_to_ids(token))
        return ids

    # ---- why

    def explain(
        self, text: str, *, split_special_tokens: bool | None = None, surrogates: str | None = None
    ) -> Explanation:
        """Why the text has the tokens that `tokenize` gives it, as data to be read (`explanation.py`).

        Raises: as `tokenize`; ResourceLimitError for a text that is too long to be read about.
        """
        from refimpl.tokenizer.explanation import Explanation, TokenReader, check_length

        if not isinstance(text, str):
            raise InputError("the text is not a str", found=f"{type(text).__name__} {quote(text)}")
        check_length(text)
        text = check_unicode(text, check_surrogates(surrogates or self.surrogates))
        split = self.split_special_tokens if split_special_tokens is None else split_special_tokens
        return Explanation(text, type(self).__name__, self._explain(text, split, TokenReader(self)))

    def _explain(self, text: str, split: bool, read: TokenReader) -> list[Piece]:
        """The pieces of a valid text, explained."""
        from refimpl.tokenizer.explanation import added_piece

        tokens = {token.content: token for token in self.added_tokens_decoder.values()}
        pieces = [(text, False)] if split else self._cut_out_added_tokens(text)
        return [
            added_piece(piece, tokens.get(piece), read.names([piece]))
            if is_added
            else self._explain_piece(piece, read)
            for piece, is_added in pieces
        ]

    def _explain_piece(self, text: str, read: TokenReader) -> Piece:
        """A text that holds no added token, explained."""
        raise InputError(
            f"{type(self).__name__} cannot explain its tokens",
            allowed="GPTNeoXJapaneseTokenizer, GPTNeoXTokenizerFast",
        )

    # ---- ids -> tokens -> text

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """Id or ids -> token or tokens. Raises: InputError (attributes `position` and `value`)."""
        ids = as_python(ids)
        if not isinstance(ids, list | tuple):
            return self._token(self.check_id(ids))
        return self._looked_up(ids, skip_special_tokens, self._token_of, self._token)

    def skipped_ids(self) -> set[int]:
        """The ids that `skip_special_tokens` leaves out."""
        return set(self.all_special_ids)

    def _looked_up(
        self, ids: Sequence[Any], skip_special_tokens: bool, known: dict[int, T], find: Callable[[int], T]
    ) -> list[T]:
        """`find` of every id; what was found once is in `known`. Raises: InputError for what is no id."""
        skipped = self.skipped_ids() if skip_special_tokens else set()
        if set(map(type, ids)) == {int}:  # a dict takes True for 1
            with suppress(KeyError):
                return list(
                    map(known.__getitem__, filterfalse(skipped.__contains__, ids) if skipped else ids)
                )
        found = []
        for position, given in enumerate(ids):
            index = self.check_id(given, position)
            if index not in skipped:
                if index not in known:
                    known[index] = find(index)
                found.append(known[index])
        return found

    def _token(self, index: int) -> str:
        added = self.added_tokens_decoder.get(index)
        return self._convert_id_to_token(index) if added is None else added.content

    def check_id(self, index: Any, position: int = 0) -> int:
        """`index` as an int when a token has it. Raises: InputError."""
        number = as_integer(index)
        if number is not None and (0 <= number < self._base_ids or number in self.added_tokens_decoder):
            return number
        beyond = sorted(i for i in self.added_tokens_decoder if i >= self._base_ids)
        raise InputError(
            "this is not the id of a token",
            where=f"position {position}",
            found=f"{type(index).__name__} {quote(index)}",
            allowed=f"int from 0 to {self._base_ids - 1}" + (f", and {quote(beyond)}" if beyond else ""),
            position=position,
            value=index,
        )

    def decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> Any:
        """The text of an id, a list of ids or an array `[seq]`; a list of texts for `[batch, seq]`.

        `clean_up_tokenization_spaces` takes out the space before English punctuation and contractions.
        Raises: InputError for anything that is not the id of a token (attributes `position`, `value`).
        """
        ids = as_python(token_ids)
        if isinstance(ids, list | tuple) and set(map(type, ids)) != {int}:
            ids = [as_python(row) for row in ids]
            if ids and all(isinstance(row, list | tuple) for row in ids):
                return [
                    self._decode_row(row, skip_special_tokens, clean_up_tokenization_spaces) for row in ids
                ]
        return self._decode_row(ids, skip_special_tokens, clean_up_tokenization_spaces)

    def batch_decode(
        self,
        sequences: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> list[str]:
        """As `decode`, but always a list."""
        texts = self.decode(sequences, skip_special_tokens, clean_up_tokenization_spaces)
        return [texts] if isinstance(texts, str) else texts

    def _decode_row(self, ids: Any, skip_special_tokens: bool, clean_up: bool | None) -> str:
        text = self._text_of(ids if isinstance(ids, list | tuple) else [ids], skip_special_tokens)
        clean_up = self.clean_up_tokenization_spaces if clean_up is None else clean_up
        return self.clean_up_tokenization(text) if clean_up else text

    def _text_of(self, ids: Sequence[Any], skip_special_tokens: bool) -> str:
        """The text of ids; `_joined_bytes` is quicker than this where that is all there is to it."""
        return self.convert_tokens_to_string(self.convert_ids_to_tokens(ids, skip_special_tokens))

    def _joined_bytes(self, ids: Sequence[Any], skip_special_tokens: bool) -> bytes:
        pieces: list[bytes] = self._looked_up(ids, skip_special_tokens, self._bytes_of, self.token_bytes)
        return b"".join(pieces)

    def clean_up_tokenization(self, text: str) -> str:
        """`text` without the space before English punctuation and contractions."""
        for loose, tight in _TIGHTER.items():
            text = text.replace(loose, tight)
        return text

    def token_bytes(self, index: int) -> bytes:
        """The UTF-8 bytes for which the id stands; one character may be spread over several ids.

        Raises: InputError.
        """
        index = self.check_id(index)
        added = self.added_tokens_decoder.get(index)
        return self._token_bytes(index) if added is None else added.content.encode("utf-8")

    # ---- what a tokenizer class supplies

    @abstractmethod
    def _tokenize(self, text: str) -> list[str]:
        """The tokens of a text that holds no added token."""

    @abstractmethod
    def _convert_token_to_id(self, token: str) -> int:
        """The id of a token of the vocabulary files, or that of `unk_token`."""

    @abstractmethod
    def _convert_id_to_token(self, index: int) -> str:
        """The token of an id of the vocabulary files."""

    @abstractmethod
    def _token_bytes(self, index: int) -> bytes:
        """The UTF-8 bytes for which an id of the vocabulary files stands."""

    @abstractmethod
    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Tokens, as `convert_ids_to_tokens` gives them, -> text."""


def as_python(ids: Any) -> Any:
    """An array of any library as (lists of) Python numbers, anything else as it is."""
    return ids.tolist() if hasattr(ids, "tolist") else ids


def check_surrogates(choice: str) -> str:
    """`choice` when it says what to do with lone surrogates. Raises: InputError."""
    if choice not in ("strict", "replace"):
        raise InputError("surrogates is unknown", found=quote(choice), allowed='"strict" or "replace"')
    return choice
