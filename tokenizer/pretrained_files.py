"""The settings of a tokenizer on disk: `tokenizer_config.json` and the two older files beside it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from refimpl.errors import InputError, TokenizerFileError, quote
from refimpl.files import make_folder, write_atomically
from refimpl.json_reader import read_json_object
from refimpl.tokenizer.added_tokens import MAX_ADDED_TOKENS, AddedToken
from refimpl.tokenizer.options import as_integer
from refimpl.tokenizer.sentencepiece_model import sampling_problem
from refimpl.tokenizer.special_tokens import SPECIAL_TOKEN_NAMES
from refimpl.tokenizer.text_files import DECODE_ERRORS, MAX_JSON_BYTES

if TYPE_CHECKING:
    from refimpl.tokenizer.base import PreTrainedTokenizer

    AnyTokenizer = TypeVar("AnyTokenizer", bound=PreTrainedTokenizer)

CONFIG_FILE = "tokenizer_config.json"
SPECIAL_TOKENS_FILE = "special_tokens_map.json"
ADDED_TOKENS_FILE = "added_tokens.json"

# What says how and by which class the file was written is no setting of a tokenizer, nor is what the
# caller alone decides.  Paths least of all: the vocabulary is taken from the model's own folder.
_NOT_SETTINGS = (
    "tokenizer_class",
    "auto_map",
    "backend",
    "init_inputs",
    "base_ids",
    "bpe_dropout_rate",
    "impl",
    "is_local",
    "local_files_only",
    "name_or_path",
    "seed",
    "merges",
    "self",
    "special_tokens_map_file",
    "threads",
    "tokenizer_file",
    "vocab",
    "vocabulary",
)

_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "model_max_length": (lambda v: _is_number(v) and v >= 0, "a number from 0"),
    "padding_side": (lambda v: v in ("left", "right"), '"left" or "right"'),
    "truncation_side": (lambda v: v in ("left", "right"), '"left" or "right"'),
    "clean_up_tokenization_spaces": (lambda v: isinstance(v, bool), "true or false"),
    "split_special_tokens": (lambda v: isinstance(v, bool), "true or false"),
    "do_clean_text": (lambda v: isinstance(v, bool), "true or false"),
    "compat": (lambda v: v in ("hf", "original"), '"hf" or "original"'),
    "surrogates": (lambda v: v in ("strict", "replace"), '"strict" or "replace"'),
    "add_bos_token": (lambda v: isinstance(v, bool), "true or false"),
    "add_eos_token": (lambda v: isinstance(v, bool), "true or false"),
    "add_prefix_space": (lambda v: isinstance(v, bool), "true or false"),
    "trim_offsets": (lambda v: isinstance(v, bool), "true or false"),
    "nfc": (lambda v: isinstance(v, bool), "true or false"),
    "errors": (lambda v: isinstance(v, str) and v in DECODE_ERRORS, ", ".join(DECODE_ERRORS)),
    "do_lower_case": (lambda v: isinstance(v, bool), "true or false"),
    "legacy": (lambda v: isinstance(v, bool), "true or false"),
    "extra_ids": (lambda v: type(v) is int and 0 <= v <= MAX_ADDED_TOKENS, f"0 to {MAX_ADDED_TOKENS}"),
    "sp_model_kwargs": (lambda v: sampling_problem(v) is None, "enable_sampling, nbest_size and alpha"),
    "padded_vocab_size": (lambda v: type(v) is int and 0 <= v <= 2**31, "0 to 2**31"),
}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def load(
    cls: type[AnyTokenizer], source: str | os.PathLike[str], options: dict[str, Any], **hub_options: Any
) -> AnyTokenizer:
    """The tokenizer of class `cls` in a folder or Hub repository; `options` override its settings.

    As in transformers, `added_tokens_decoder` in `tokenizer_config.json` holds all added tokens, and
    only where it is missing are `special_tokens_map.json` and `added_tokens.json` read.
    Raises: MissingFileError, TokenizerFileError, ResourceLimitError; InputError for `options`.
    """
    from refimpl.hub import resolve

    def find(name: str, required: bool = False) -> Path | None:
        return resolve(source, name, required=required, **hub_options)

    files = _vocabulary_files(cls, options, find)
    settings: dict[str, Any] = {}
    special = added = None
    if config := find(CONFIG_FILE):
        settings = _read_settings(config, [*_NOT_SETTINGS, *files])
    if "added_tokens_decoder" not in settings:
        if special := find(SPECIAL_TOKENS_FILE):
            settings |= _read_special_tokens(
                read_json_object(special, TokenizerFileError, MAX_JSON_BYTES), special
            )
        if added := find(ADDED_TOKENS_FILE):
            settings["added_tokens_decoder"] = _read_added_tokens(added, settings)
    given = {"name_or_path": os.fspath(source), **options, **files}
    try:
        return cls(**{**settings, **given})
    except InputError as error:
        cls(**given)  # raises where the call is to blame
        where = ", ".join(str(path) for path in (config, special, added) if path)
        raise TokenizerFileError(
            error.what, where=where, found=error.found, allowed=error.allowed, hint=error.hint
        ) from error


def _vocabulary_files(
    cls: type[PreTrainedTokenizer], options: dict[str, Any], find: Callable[..., Path | None]
) -> dict[str, Any]:
    """The files of the first group that is complete; those in `options` go before those that `find` finds.

    Raises: MissingFileError for the last group, when none is complete.
    """
    given = {key: options.pop(key, None) for key in cls.vocab_files_names}
    groups = cls.vocab_files_groups or (tuple(cls.vocab_files_names),)
    for number, group in enumerate(sorted(groups, key=lambda group: not any(given[key] for key in group))):
        required = number == len(groups) - 1
        files = {key: given[key] or find(cls.vocab_files_names[key], required) for key in group}
        if all(files.values()):
            return files
    raise AssertionError("a required file is found or an error")


def _read_settings(path: Path, left_out: list[str]) -> dict[str, Any]:
    config = read_json_object(path, TokenizerFileError, MAX_JSON_BYTES)
    settings = {key: value for key, value in config.items() if key not in left_out}
    settings |= _read_special_tokens(config, path)
    for key, (allows, allowed) in _CHECKS.items():
        if settings.get(key) is None:
            settings.pop(key, None)
        elif not allows(settings[key]):
            raise TokenizerFileError(
                f"{key} is wrong", where=path, found=quote(settings[key]), allowed=allowed
            )
    if "added_tokens_decoder" in config:
        table = config["added_tokens_decoder"]
        if not isinstance(table, dict) or len(table) > MAX_ADDED_TOKENS:
            allowed = f"an object of at most {MAX_ADDED_TOKENS} tokens"
            raise TokenizerFileError(
                "added_tokens_decoder is wrong", where=path, found=quote(table), allowed=allowed
            )
        settings["added_tokens_decoder"] = {
            _read_id(index, path): _as_added(_read_token(token, path)) for index, token in table.items()
        }
    return settings


def _read_special_tokens(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The named and the extra special tokens of a file, each a str or an AddedToken."""
    tokens = {
        name: _read_token(config[name], path) for name in SPECIAL_TOKEN_NAMES if config.get(name) is not None
    }
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens")
    if extra is None or extra == {}:
        return {**tokens, "extra_special_tokens": None}
    if not isinstance(extra, list):
        raise TokenizerFileError("extra_special_tokens is not a list", where=path, found=quote(extra))
    return {**tokens, "extra_special_tokens": [_read_token(token, path) for token in extra]}


def _read_token(value: Any, path: Path) -> Any:
    """A token of a JSON file: a non-empty text as it is, an object as an AddedToken."""
    names = ("content", "single_word", "lstrip", "rstrip", "special", "normalized")
    options = {"content": value} if isinstance(value, str) else value
    if not isinstance(options, dict) or not options.get("content"):
        raise TokenizerFileError(
            "this is not a token",
            where=path,
            found=quote(value),
            allowed='a text, or an object with "content"',
        )
    try:
        token = AddedToken(**{name: options[name] for name in names if name in options})
    except InputError as error:
        raise TokenizerFileError(error.what, where=path, found=error.found, allowed=error.allowed) from error
    return value if isinstance(value, str) else token


def _as_added(token: str | AddedToken) -> AddedToken:
    return AddedToken(token) if isinstance(token, str) else token


def _read_id(index: Any, path: Path) -> int:
    digits = isinstance(index, str) and index.isascii() and index.isdigit() and len(index) <= 10
    number = int(index) if digits else as_integer(index)
    if number is None or not 0 <= number < 2**31:
        raise TokenizerFileError(
            "this is not a token id", where=path, found=quote(index), allowed="0 to 2**31 - 1"
        )
    return number


def _read_added_tokens(path: Path, settings: Mapping[str, Any]) -> dict[int, AddedToken]:
    """The older table token -> id; the tokens that the settings call special are special."""
    table = read_json_object(path, TokenizerFileError, MAX_JSON_BYTES)
    if len(table) > MAX_ADDED_TOKENS:
        raise TokenizerFileError(
            "too many added tokens", where=path, found=len(table), allowed=MAX_ADDED_TOKENS
        )
    special = {str(settings[name]) for name in SPECIAL_TOKEN_NAMES if settings.get(name)}
    special |= {str(token) for token in settings.get("extra_special_tokens") or ()}
    tokens = {}
    for content, index in table.items():
        token = _read_token({"content": content, "special": content in special}, path)
        tokens[_read_id(index, path)] = token
    return tokens


def save(
    tokenizer: PreTrainedTokenizer, folder: str | os.PathLike[str], filename_prefix: str | None
) -> tuple[str, ...]:
    """Writes the vocabulary files, then the settings, each so that a crash leaves no half file.

    Returns: the paths. Raises: SaveError, InputError (a setting that JSON cannot hold).
    """
    config = {
        **tokenizer.saved_options(),
        **tokenizer.special_tokens_map,
        "added_tokens_decoder": {
            str(index): token.to_dict() for index, token in sorted(tokenizer.added_tokens_decoder.items())
        },
        "tokenizer_class": type(tokenizer).__name__,
    }
    if tokenizer.extra_special_tokens:
        config["extra_special_tokens"] = tokenizer.extra_special_tokens
    try:
        text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"a setting of the tokenizer cannot be saved as JSON ({error})") from error
    make_folder(folder)
    written = list(tokenizer.save_files(folder, filename_prefix))
    beyond = {token: i for token, i in tokenizer.get_added_vocab().items() if i >= tokenizer.vocab_size}
    if beyond:
        added = json.dumps(beyond, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        written.append(str(write_atomically(file_in(folder, ADDED_TOKENS_FILE, filename_prefix), added)))
    written.append(str(write_atomically(file_in(folder, CONFIG_FILE, filename_prefix), text)))
    return tuple(written)


def file_in(folder: str | os.PathLike[str], name: str, filename_prefix: str | None) -> Path:
    """The path of a saved file. Raises: InputError when the prefix is not part of a file name."""
    if filename_prefix and (os.sep in filename_prefix or "/" in filename_prefix):
        raise InputError("filename_prefix holds a path separator", found=quote(filename_prefix))
    return Path(folder) / (f"{filename_prefix}-{name}" if filename_prefix else name)
