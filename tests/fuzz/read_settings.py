"""The readers of `tokenizer_config.json`, `special_tokens_map.json` and `added_tokens.json`."""

from __future__ import annotations

import copy
import json
import random
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from refimpl.tokenizer import GPTNeoXJapaneseTokenizer, GPTNeoXTokenizerFast, PreTrainedTokenizer, T5Tokenizer
from refimpl.tokenizer.pretrained_files import ADDED_TOKENS_FILE, CONFIG_FILE, SPECIAL_TOKENS_FILE
from tests.fuzz import read_japanese, read_neox, read_spiece_model
from tests.fuzz.changes import change_json
from tests.fuzz.harness import Files, Reader

TOKEN = {
    "content": "<x>",
    "lstrip": False,
    "normalized": False,
    "rstrip": True,
    "single_word": False,
    "special": True,
}
ROLES = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": TOKEN}

CONFIG = {
    **ROLES,
    "added_tokens_decoder": {
        "30": TOKEN,
        "31": {**TOKEN, "content": "aa", "special": False, "normalized": True},
    },
    "extra_special_tokens": ["<x>", {**TOKEN, "content": "<y>"}],
    "model_max_length": 2048,
    "padding_side": "left",
    "truncation_side": "right",
    "clean_up_tokenization_spaces": True,
    "split_special_tokens": False,
    "do_clean_text": False,
    "add_bos_token": False,
    "add_prefix_space": False,
    "errors": "replace",
    "nfc": True,
    "padded_vocab_size": 64,
    "trim_offsets": True,
    "sp_model_kwargs": {"enable_sampling": True, "nbest_size": -1, "alpha": 0.1},
    "extra_ids": 2,
    "legacy": False,
    "model_input_names": ["input_ids", "attention_mask"],
    "tokenizer_class": "GPTNeoXJapaneseTokenizer",
    "something": {"else": [1, 2.5, None]},
}
SPECIAL_MAP = {
    **ROLES,
    "unk_token": "<|endoftext|>",
    "additional_special_tokens": ["<y>", TOKEN],
    "mask_token": None,
}
ADDED = {"<x>": 30, "<y>": 31, "aa": 5, "猫": 40}

#: Names of everything that a constructor or a call could take from a file.
NAMES = [
    *[
        "vocab_file",
        "emoji_file",
        "merges_file",
        "tokenizer_file",
        "vocab",
        "merges",
        "impl",
        "seed",
        "threads",
        "nfc",
    ],
    *[
        "compat",
        "surrogates",
        "extra_ids",
        "sp_model_kwargs",
        "legacy",
        "do_lower_case",
        "padded_vocab_size",
        "trim_offsets",
        "add_eos_token",
        "pad_token_type_id",
        "base_ids",
    ],
    *[
        "model_input_names",
        "name_or_path",
        "vocabulary",
        "self",
        "cls",
        "options",
        "special_tokens",
        "auto_map",
    ],
    *[
        "sep_token",
        "cls_token",
        "mask_token",
        "unk_token",
        "additional_special_tokens",
        "added_tokens_decoder",
    ],
    *[
        "revision",
        "cache_dir",
        "token",
        "local_files_only",
        "return_tensors",
        "chat_template",
        "__class__",
        "init_kwargs",
    ],
    *[
        "pretrained_model_name_or_path",
        "bpe_dropout_rate",
        "do_clean_text",
        "extra_special_tokens",
        "kwargs",
        "args",
    ],
]
WORDS = [
    {"enable_sampling": True, "nbest_size": 10**9, "alpha": 1e308},
    *CONFIG.values(),
    *NAMES,
    "left",
    "right",
    "hf",
    "original",
    "strict",
    "1e30",
    10**30,
    {"content": "x"},
]


def put_name(draw: random.Random, tree: Any) -> None:
    """A name that means something, with any value."""
    other = draw.choice([*WORDS, 0, 1, -1, True, None, "", [], {}, 1.5, 2**31, [[]]])
    tree[draw.choice([*NAMES, *CONFIG])] = copy.deepcopy(other)


def put_token(draw: random.Random, tree: Any) -> None:
    """An added token with any id and content."""
    index = draw.choice(
        [
            "0",
            "1",
            "9" * 5000,
            "29",
            "30",
            "31",
            "99",
            "2147483647",
            "2147483648",
            "-1",
            "٣",
            "1.0",
            "",
            " 1",
            "1_0",
        ]
    )
    content = draw.choice(
        ["", "a", "<x>", "<SP>", "<|endoftext|>", "a" * 256, "a" * 257, "\u3042", "e\u0301"]
    )
    token = {**TOKEN, "content": content, draw.choice(list(TOKEN)): draw.choice([True, False, None, 1, "x"])}
    if "added_tokens_decoder" in tree:
        tree["added_tokens_decoder"][index] = draw.choice([token, token, content])
    elif "bos_token" in tree:
        tree[draw.choice(["pad_token", "unk_token", "mask_token", "additional_special_tokens"])] = (
            draw.choice([token, content, [token], [content]])
        )
    else:
        tree[content] = draw.choice([index, len(index), 5.0, True])


def change(draw: random.Random, files: Files) -> Files:
    return {name: change_json(draw, content, WORDS, (put_name, put_token)) for name, content in files.items()}


class Plain(PreTrainedTokenizer):
    """A tokenizer that has its vocabulary without files, so that most inputs take less time."""

    def __init__(self, **options: Any):
        super().__init__({"a": 0, "<|endoftext|>": 1}, 2, **options)

    def _tokenize(self, text: str) -> list[str]:
        return ["a"] * len(text)

    def _convert_token_to_id(self, token: str) -> int:
        return 0

    def _convert_id_to_token(self, index: int) -> str:
        return "a"

    def _token_bytes(self, index: int) -> bytes:
        return b"a"

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return "".join(tokens)

    def save_vocabulary(self, save_directory: Any, filename_prefix: str | None = None) -> tuple[str, ...]:
        return ()


WITH_TWO_FORMS = (GPTNeoXJapaneseTokenizer, GPTNeoXTokenizerFast)
KINDS: list[Any] = [*WITH_TWO_FORMS, *([T5Tokenizer] if find_spec("sentencepiece") else []), Plain]


def read(folder: Path, number: int) -> PreTrainedTokenizer:
    """The settings as all tokenizers read them; of sixteen inputs three with a tokenizer that has more."""
    kind = KINDS[min(number // 4 % 16, len(KINDS) - 1)]
    return kind.from_pretrained(folder, **({"impl": "plain"} if kind in WITH_TWO_FORMS else {}))


def use(tokenizer: PreTrainedTokenizer, folder: Path, number: int) -> None:
    """Encodes with padding and truncation, decodes, and looks at what would be saved."""
    if type(tokenizer) in WITH_TWO_FORMS:
        assert tokenizer.impl == "plain", "a file decided what the caller alone decides"
    assert 0 < len(tokenizer) < 2**32
    repr(tokenizer)
    json.dumps(tokenizer.saved_options())
    text = "a応 <x>猫<y>  <|endoftext|>ab"
    row = tokenizer(text, truncation=True, max_length=8, verbose=False)["input_ids"]
    assert isinstance(tokenizer.decode(row, skip_special_tokens=True), str)
    if number % 8 == 0:
        tokenizer([text, "a"], padding=True, return_tensors="np", verbose=False)


BESIDE = {
    "vocab.txt": read_japanese.VOCABULARIES[1].encode(),
    "emoji.json": json.dumps(read_japanese.EMOJI).encode(),
    "tokenizer.json": json.dumps({**read_neox.content(), "added_tokens": []}).encode(),
    "spiece.model": read_spiece_model.written(read_spiece_model.PLAIN),
}


def reader(name: str, *valid: dict[str, Any]) -> Reader:
    return Reader(name, [{name: json.dumps(v).encode()} for v in valid], change, read, use, BESIDE)


READERS = [
    reader(CONFIG_FILE, CONFIG, {"pad_token": "a"}),
    reader(SPECIAL_TOKENS_FILE, SPECIAL_MAP),
    reader(ADDED_TOKENS_FILE, ADDED),
]
