"""The files of the GPT-NeoX tokenizer: `tokenizer.json`, or `vocab.json` with `merges.txt`.

`tokenizer.json` can describe any pipeline of the `tokenizers` package.  Here only that of GPT-NeoX is read:
whatever else a file asks for is an error that names the key, never something silently different.  The regular
expression in a file is compared with the known one and never compiled.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from operator import add, methodcaller
from typing import Any, NoReturn

from refimpl.errors import InputError, TokenizerFileError, quote
from refimpl.json_reader import read_json_object, read_text
from refimpl.tokenizer.added_tokens import MAX_ADDED_TOKENS, AddedToken
from refimpl.tokenizer.bpe import BpeTables
from refimpl.tokenizer.byte_level import GPT2_PATTERN
from refimpl.tokenizer.text_files import MAX_JSON_BYTES, MAX_VOCAB_BYTES

MAX_TOKENS = 1_000_000
MAX_TOKEN_CHARACTERS = 1024  # the published vocabulary has one of 512: as many bytes of one letter
MAX_ID = 2**31 - 1

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


@dataclass(frozen=True)
class NeoxFile:
    """What a GPT-NeoX tokenizer is made of; None stands for what the files do not say.

    `before` and `after` are the special tokens that a template puts around a text.
    """

    tables: BpeTables
    added_tokens: dict[int, AddedToken] = field(default_factory=dict)
    nfc: bool | None = None
    add_prefix_space: bool | None = None
    trim_offsets: bool | None = None
    before: str | None = None
    after: str | None = None


# ---- vocabulary and merges


def make_tables(
    vocabulary: Any,
    merges: Any,
    where: object,
    *,
    at: str = "",
    unk_token: Any = None,
    fuse_unk: bool = False,
    ignore_merges: bool = False,
) -> BpeTables:
    """A checked vocabulary with its merges, each `"a b"` or `["a", "b"]`, in order of rank.

    `where` is the file, and `at` the path of the key in it that holds both.  Raises: TokenizerFileError.
    """
    check = _Checker(where)
    _check_vocabulary(vocabulary, check, f"{at}vocab")
    if unk_token is not None and unk_token not in vocabulary:
        check.wrong(f"{at}unk_token", unk_token, "a token of the vocabulary, or null")
    lefts, rights, results = _read_merges(vocabulary, merges, check, f"{at}merges")
    tables = BpeTables(
        vocabulary,
        lefts,
        rights,
        results,
        unk_id=None if unk_token is None else vocabulary[unk_token],
        fuse_unk=fuse_unk,
        ignore_merges=ignore_merges,
    )
    if len(tables.tokens) != len(vocabulary):
        twice = next(token for token, index in vocabulary.items() if tables.tokens[index] != token)
        both = f"{quote(twice)} and {quote(tables.tokens[vocabulary[twice]])} with id {vocabulary[twice]}"
        check.wrong(f"{at}vocab", both, "one token per id")
    if len(tables.ranks) != len(lefts):
        rank = next(r for r, pair in enumerate(zip(lefts, rights, strict=True)) if tables.ranks[pair] != r)
        check.wrong(f"{at}merges[{rank}]", merges[rank], "each merge once")
    return tables


# A vocabulary is checked as a whole, by what runs at the speed of C; what is wrong with it is looked for only then.


def _check_vocabulary(vocabulary: Any, check: _Checker, at: str) -> None:
    """Raises: TokenizerFileError unless it maps tokens to ids."""
    if not isinstance(vocabulary, Mapping) or len(vocabulary) > MAX_TOKENS:
        check.wrong(at, vocabulary, f"an object of at most {MAX_TOKENS:,} tokens with their ids")
    if set(map(type, vocabulary)) <= {str} and set(map(type, vocabulary.values())) <= {int}:
        lengths, ids = set(map(len, vocabulary)) or {1}, vocabulary.values() or [0]
        if min(lengths) > 0 and max(lengths) <= MAX_TOKEN_CHARACTERS and min(ids) >= 0 and max(ids) <= MAX_ID:
            return
    for token, index in vocabulary.items():
        if type(token) is not str or not 0 < len(token) <= MAX_TOKEN_CHARACTERS:
            check.wrong(at, token, f"tokens of 1 to {MAX_TOKEN_CHARACTERS} characters")
        if type(index) is not int or not 0 <= index <= MAX_ID:
            check.wrong(f"{at}.{quote(token)}", index, "ids from 0 to 2**31 - 1")


def _read_merges(
    vocabulary: Mapping[str, int], merges: Any, check: _Checker, at: str
) -> tuple[list[int], list[int], list[int]]:
    """The ids of the left part, the right part and the result of each merge."""
    if not isinstance(merges, list | tuple) or len(merges) > MAX_TOKENS:
        check.wrong(at, merges, f"a list of at most {MAX_TOKENS:,} merges")
    kinds = set(map(type, merges))
    if kinds <= {str}:
        two_each = set(map(methodcaller("count", " "), merges)) <= {1}
        parts = " ".join(merges).split(" ") if merges else []
    elif kinds <= {list, tuple}:
        two_each = set(map(len, merges)) == {2}
        parts = list(chain.from_iterable(merges)) if two_each else []
        two_each = two_each and set(map(type, parts)) == {str}
    else:
        check.wrong(at, "merges of several kinds", 'all "a b", or all ["a", "b"]')
    if not two_each:
        rank = next(rank for rank, merge in enumerate(merges) if not _is_pair(merge))
        check.wrong(f"{at}[{rank}]", merges[rank], 'two tokens: "a b" or ["a", "b"]')
    left, right = parts[0::2], parts[1::2]
    try:
        return tuple(
            [vocabulary[token] for token in tokens] for tokens in (left, right, map(add, left, right))
        )  # type: ignore[return-value]
    except KeyError as error:
        unknown = error.args[0]
        pairs = zip(left, right, strict=True)
        rank = next(rank for rank, (a, b) in enumerate(pairs) if unknown in (a, b, a + b))
        check.wrong(f"{at}[{rank}]", merges[rank], f"tokens of the vocabulary; {quote(unknown)} is not one")


def _is_pair(merge: Any) -> bool:
    pair = merge.split(" ") if isinstance(merge, str) else merge
    return len(pair) == 2 and all(type(token) is str for token in pair)


def read_vocab_and_merges(
    vocab_file: str | os.PathLike[str], merges_file: str | os.PathLike[str]
) -> NeoxFile:
    """What the two files say.  The first line of `merges.txt` may be `#version: ...`.

    Raises: MissingFileError, TokenizerFileError, ResourceLimitError.
    """
    vocabulary = read_json_object(vocab_file, TokenizerFileError, MAX_JSON_BYTES)
    lines = read_text(merges_file, TokenizerFileError, MAX_VOCAB_BYTES).replace("\r\n", "\n").split("\n")
    if lines[-1] == "":
        lines.pop()
    if lines and lines[0].startswith("#version"):
        lines.pop(0)
    _check_vocabulary(vocabulary, _Checker(vocab_file), "the vocabulary")
    return NeoxFile(make_tables(vocabulary, lines, merges_file))


# ---- tokenizer.json


def read_tokenizer_json(path: str | os.PathLike[str]) -> NeoxFile:
    """What `tokenizer.json` says.  Its truncation and padding are checked, but every call decides these itself.

    Raises: MissingFileError, TokenizerFileError, ResourceLimitError.
    """
    content = read_json_object(path, TokenizerFileError, MAX_JSON_BYTES)
    check = _Checker(path)
    check.keys("", content, required=("version", "model"), optional=_SECTIONS)
    check.equal("version", content["version"], "1.0")
    check.optional_object("truncation", content.get("truncation"), _TRUNCATION)
    check.optional_object("padding", content.get("padding"), _PADDING)
    tables = _read_model(content["model"], path, check)
    prefix_space, trim_before = _read_pre_tokenizer(content.get("pre_tokenizer"), check)
    added = _read_added_tokens(content.get("added_tokens"), tables, check)
    ids = {**tables.vocabulary, **{token.content: index for index, token in added.items()}}
    trim, before, after = _read_post_processor(content.get("post_processor"), ids, check)
    check.typed("decoder", content.get("decoder"), {"ByteLevel": _BYTE_LEVEL_OPTIONS})
    return NeoxFile(
        tables,
        added,
        nfc=_read_normalizer(content.get("normalizer"), check),
        add_prefix_space=prefix_space,
        trim_offsets=trim_before if trim is None else trim,
        before=before,
        after=after,
    )


_SECTIONS = (
    "truncation",
    "padding",
    "added_tokens",
    "normalizer",
    "pre_tokenizer",
    "post_processor",
    "decoder",
)


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_ID


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= MAX_TOKEN_CHARACTERS


# Each option of a section: what it must be, as a check and in words.
_Options = dict[str, tuple[Any, str]]

_BYTE_LEVEL_OPTIONS: _Options = {
    name: (_is_bool, "true or false") for name in ("add_prefix_space", "trim_offsets", "use_regex")
}
_TRUNCATION: _Options = {
    "direction": (lambda v: v in ("Left", "Right"), '"Left" or "Right"'),
    "max_length": (_is_size, "0 to 2**31 - 1"),
    "strategy": (lambda v: v in ("LongestFirst", "OnlyFirst", "OnlySecond"), "a known strategy"),
    "stride": (_is_size, "0 to 2**31 - 1"),
}
_PADDING: _Options = {
    "strategy": (
        lambda v: (
            v == "BatchLongest" or (isinstance(v, dict) and list(v) == ["Fixed"] and _is_size(v["Fixed"]))
        ),
        '"BatchLongest" or {"Fixed": length}',
    ),
    "direction": (lambda v: v in ("Left", "Right"), '"Left" or "Right"'),
    "pad_to_multiple_of": (lambda v: v is None or _is_size(v), "null or a number"),
    "pad_id": (_is_size, "0 to 2**31 - 1"),
    "pad_type_id": (_is_size, "0 to 2**31 - 1"),
    "pad_token": (_is_text, "a text"),
}
_MODEL: _Options = {
    "type": (lambda v: v == "BPE", '"BPE"'),
    "dropout": (lambda v: v is None or (type(v) in (int, float) and v == 0), "null: no dropout"),
    "unk_token": (lambda v: v is None or _is_text(v), "a text, or null"),
    "continuing_subword_prefix": (lambda v: v in (None, ""), 'null or ""'),
    "end_of_word_suffix": (lambda v: v in (None, ""), 'null or ""'),
    "fuse_unk": (_is_bool, "true or false"),
    "byte_fallback": (lambda v: v is False, "false"),
    "ignore_merges": (_is_bool, "true or false"),
    "vocab": (lambda v: isinstance(v, dict), "an object: token -> id"),
    "merges": (lambda v: isinstance(v, list), "a list"),
}
_ADDED_TOKEN: _Options = {
    "id": (_is_size, "0 to 2**31 - 1"),
    "content": (_is_text, "a text"),
    **{
        name: (_is_bool, "true or false")
        for name in ("single_word", "lstrip", "rstrip", "normalized", "special")
    },
}


class _Checker:
    """Compares parts of a file with what is allowed, and says where something else stands."""

    def __init__(self, path: object):
        self.path = path

    def wrong(self, at: str, found: Any, allowed: str) -> NoReturn:
        raise TokenizerFileError(
            f"{at or 'the file'} is not what the GPT-NeoX tokenizer can have",
            where=self.path,
            found=quote(found),
            allowed=allowed,
            key=at,
        )

    def equal(self, at: str, value: Any, allowed: Any) -> None:
        if type(value) is not type(allowed) or value != allowed:
            self.wrong(at, value, json.dumps(allowed))

    def keys(self, at: str, value: Any, required: Sequence[str], optional: Sequence[str] = ()) -> None:
        """`value` is an object with all the required keys, and no others than these and the optional ones."""
        if not isinstance(value, dict):
            self.wrong(at, value, "an object")
        inside = f"{at}." if at else ""
        for name in required:
            if name not in value:
                self.wrong(f"{inside}{name}", "nothing", "this key is required")
        for name in value:
            if name not in required and name not in optional:
                self.wrong(f"{inside}{quote(name)[1:-1]}", value[name], "no such key")

    def options(self, at: str, value: Any, options: _Options, required: Sequence[str] = ()) -> None:
        """`value` is an object that holds the required ones of these options, and allowed values only."""
        self.keys(at, value, required, tuple(options))
        for name, found in value.items():
            allows, allowed = options[name]
            if not allows(found):
                self.wrong(f"{at}.{name}", found, allowed)

    def optional_object(self, at: str, value: Any, options: _Options) -> None:
        if value is not None:
            self.options(at, value, options)

    def typed(self, at: str, value: Any, types: Mapping[str, _Options]) -> str:
        """The `type` of the object, which must be one of `types`, and its options those of the type."""
        kind = value.get("type") if isinstance(value, dict) else None
        if not isinstance(kind, str) or kind not in types:
            self.wrong(at, value, " or ".join(f'{{"type": "{name}", ...}}' for name in types))
        options = {"type": (lambda v: True, ""), **types[kind]}
        self.options(at, value, options)
        return kind

    def sequence(self, at: str, value: Any, name: str) -> list[tuple[str, Any]]:
        """The parts of a section, each with the path of its key: those of a sequence, else the section itself."""
        if isinstance(value, dict) and value.get("type") == "Sequence":
            self.keys(at, value, ("type", name))
            parts = value[name]
            if not isinstance(parts, list) or len(parts) > 8:
                self.wrong(f"{at}.{name}", parts, "a short list")
            return [(f"{at}.{name}[{i}]", part) for i, part in enumerate(parts)]
        return [] if value is None else [(at, value)]


def _read_model(model: Any, path: object, check: _Checker) -> BpeTables:
    # Older files have no type here; a BPE model is known by its merges.
    check.options("model", model, _MODEL, required=("vocab", "merges"))
    return make_tables(
        model["vocab"],
        model["merges"],
        path,
        at="model.",
        unk_token=model.get("unk_token"),
        fuse_unk=model.get("fuse_unk", False),
        ignore_merges=model.get("ignore_merges", False),
    )


def _read_normalizer(value: Any, check: _Checker) -> bool:
    parts = check.sequence("normalizer", value, "normalizers")
    for at, part in parts:
        check.typed(at, part, {"NFC": {}})
    return bool(parts)


def _read_pre_tokenizer(value: Any, check: _Checker) -> tuple[bool, bool]:
    """(add_prefix_space, trim_offsets) of ByteLevel, which splits words itself or has them split before."""
    parts = check.sequence("pre_tokenizer", value, "pretokenizers")
    if len(parts) not in (1, 2):
        check.wrong("pre_tokenizer", value, "ByteLevel, or Split and ByteLevel")
    if len(parts) == 2:
        at, split = parts[0]
        check.typed(at, split, {"Split": dict.fromkeys(_SPLIT, (lambda v: True, ""))})
        for name, allowed in _SPLIT.items():
            check.equal(f"{at}.{name}", split.get(name), allowed)
    at, byte_level = parts[-1]
    check.typed(at, byte_level, {"ByteLevel": _BYTE_LEVEL_OPTIONS})
    check.equal(f"{at}.use_regex", byte_level.get("use_regex", True), len(parts) == 1)
    prefix_space = byte_level.get("add_prefix_space", True)
    if len(parts) == 2:  # it would stand before every word
        check.equal(f"{at}.add_prefix_space", prefix_space, False)
    return prefix_space, byte_level.get("trim_offsets", True)


_SPLIT = {"pattern": {"Regex": GPT2_PATTERN}, "behavior": "Isolated", "invert": False}


def _read_post_processor(
    value: Any, ids: Mapping[str, int], check: _Checker
) -> tuple[bool | None, str | None, str | None]:
    """(trim_offsets, special token before a text, special token after it)."""
    trim = before = after = None
    for at, part in check.sequence("post_processor", value, "processors"):
        kinds = {"ByteLevel": _BYTE_LEVEL_OPTIONS, "TemplateProcessing": _TEMPLATE}
        if check.typed(at, part, kinds) == "ByteLevel":
            trim = part.get("trim_offsets", True)
        else:
            before, after = _read_template(at, part, ids, check)
    return trim, before, after


_TEMPLATE: _Options = {
    "single": (lambda v: isinstance(v, list), "a list"),
    "pair": (lambda v: isinstance(v, list), "a list"),
    "special_tokens": (lambda v: isinstance(v, dict), "an object"),
}


def template(before: str | None, after: str | None, ids: Mapping[str, int]) -> dict[str, Any]:
    """The section of `tokenizer.json` that puts one token before and one after each text."""

    def around(sequence: str, type_id: int) -> list[dict[str, Any]]:
        middle = {"Sequence": {"id": sequence, "type_id": type_id}}
        ends = [[{"SpecialToken": {"id": t, "type_id": type_id}}] if t else [] for t in (before, after)]
        return [*ends[0], middle, *ends[1]]

    return {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": [*around("A", 0), *around("B", 1)],
        "special_tokens": {t: {"id": t, "ids": [ids[t]], "tokens": [t]} for t in (before, after) if t},
    }


def _read_template(
    at: str, value: Any, ids: Mapping[str, int], check: _Checker
) -> tuple[str | None, str | None]:
    """The tokens before and after a text: the file must say just what `template` would for these."""
    names = [
        part["SpecialToken"].get("id")
        if isinstance(part, dict) and isinstance(part.get("SpecialToken"), dict)
        else None
        for part in value.get("single", ())
    ]
    first_is_text = names[:1] == [None]
    before = None if first_is_text or not names else names[0]
    after = names[-1] if len(names) == (2 if first_is_text else 3) else None
    if not all(token is None or (isinstance(token, str) and token in ids) for token in (before, after)):
        check.wrong(f"{at}.single", value.get("single"), "special tokens that the file has")
    expected = template(before, after, ids)
    for name in ("single", "pair", "special_tokens"):
        if value.get(name) != expected[name]:
            check.wrong(
                f"{at}.{name}", value.get(name), "at most one special token before and after each text"
            )
    return before, after


def _read_added_tokens(value: Any, tables: BpeTables, check: _Checker) -> dict[int, AddedToken]:
    if value is None:
        return {}
    if not isinstance(value, list) or len(value) > MAX_ADDED_TOKENS:
        check.wrong("added_tokens", value, f"a list of at most {MAX_ADDED_TOKENS:,} tokens")
    tokens: dict[int, AddedToken] = {}
    contents = set()
    for number, entry in enumerate(value):
        at = f"added_tokens[{number}]"
        check.options(at, entry, _ADDED_TOKEN, required=("id", "content"))
        try:
            token = AddedToken(**{name: entry[name] for name in entry if name != "id"})
        except InputError as error:
            check.wrong(f"{at}.content", entry["content"], str(error.allowed))
        index = entry["id"]
        if not token.content:
            check.wrong(f"{at}.content", "", "a text")
        known = tables.vocabulary.get(token.content)
        if index in tokens or token.content in contents or (known is None and index in tables.tokens):
            check.wrong(at, entry, "each token and each id once")
        if known is not None and known != index:
            check.wrong(f"{at}.id", index, f"{known}, the id of the token in the vocabulary")
        tokens[index] = token
        contents.add(token.content)
    return tokens


# ---- writing


def merge_texts(tables: BpeTables) -> list[tuple[str, str]]:
    """The merges as pairs of tokens, in order of rank."""
    token = tables.tokens.__getitem__
    return list(zip(map(token, tables.lefts), map(token, tables.rights), strict=True))


def tokenizer_json(
    tables: BpeTables,
    added_tokens: Mapping[int, AddedToken],
    *,
    nfc: bool,
    add_prefix_space: bool,
    trim_offsets: bool,
    before: str | None,
    after: str | None,
    ids: Mapping[str, int],
) -> str:
    """The text of a `tokenizer.json` with which `read_tokenizer_json` and the `tokenizers` package do the same."""
    byte_level = {**BYTE_LEVEL, "add_prefix_space": add_prefix_space, "trim_offsets": trim_offsets}
    processors: list[dict[str, Any]] = [byte_level]
    if before or after:
        processors.append(template(before, after, ids))
    pairs = merge_texts(tables)
    plain = not any(" " in token for pair in pairs for token in pair)  # then every version reads them
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": index, **token.to_dict()} for index, token in sorted(added_tokens.items())],
        "normalizer": {"type": "NFC"} if nfc else None,
        "pre_tokenizer": byte_level,
        "post_processor": byte_level
        if len(processors) == 1
        else {"type": "Sequence", "processors": processors},
        "decoder": BYTE_LEVEL,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None if tables.unk_id is None else tables.tokens[tables.unk_id],
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": tables.fuse_unk,
            "byte_fallback": False,
            "ignore_merges": tables.ignore_merges,
            "vocab": dict(sorted(tables.vocabulary.items(), key=lambda item: item[1])),
            "merges": [" ".join(pair) for pair in pairs] if plain else [list(pair) for pair in pairs],
        },
    }
    return json.dumps(content, ensure_ascii=False, indent=2) + "\n"


def vocab_json(tables: BpeTables) -> str:
    """The text of `vocab.json`."""
    return json.dumps(dict(sorted(tables.vocabulary.items(), key=lambda item: item[1])), ensure_ascii=False)


def merges_txt(tables: BpeTables) -> str:
    """The text of `merges.txt`. Raises: InputError where a token holds a space."""
    pairs = merge_texts(tables)
    for pair in pairs:
        if any(" " in token or "\n" in token for token in pair):
            raise InputError("merges.txt cannot hold a token with a space or a line end", found=quote(pair))
    return "".join(["#version: 0.2\n", *(f"{left} {right}\n" for left, right in pairs)])
