"""The readers of `tokenizer_config.json`, `special_tokens_map.json` and `added_tokens.json`."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from refimpl.tokenizer import GPTNeoXJapaneseTokenizer, GPTNeoXTokenizerFast, PreTrainedTokenizer
from refimpl.tokenizer.pretrained_files import ADDED_TOKENS_FILE, CONFIG_FILE, SPECIAL_TOKENS_FILE
from tests.fuzz import read_japanese, read_neox
from tests.fuzz.changes import change_json
from tests.fuzz.harness import Files, Reader

TOKEN = {"content": "<x>", "lstrip": False, "normalized": False, "rstrip": True, "single_word": False, "special": True}
ROLES = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": TOKEN}

CONFIG = {
    **ROLES,
    "added_tokens_decoder": {"30": TOKEN, "31": {**TOKEN, "content": "a", "special": False, "normalized": True}},
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
    "model_input_names": ["input_ids", "attention_mask"],
    "tokenizer_class": "GPTNeoXJapaneseTokenizer",
    "something": {"else": [1, 2.5, None]},
}
SPECIAL_MAP = {**ROLES, "unk_token": "<|endoftext|>", "additional_special_tokens": ["<y>", TOKEN], "mask_token": None}
ADDED = {"<x>": 30, "<y>": 31, "a": 3, "猫": 40}

#: Names of everything that a constructor or a call could take from a file.
NAMES = [
    *["vocab_file", "emoji_file", "merges_file", "tokenizer_file", "vocab", "merges", "impl", "seed", "threads", "nfc"],
    *["compat", "surrogates", "padded_vocab_size", "trim_offsets", "add_eos_token", "pad_token_type_id", "base_ids"],
    *["model_input_names", "name_or_path", "vocabulary", "self", "cls", "options", "special_tokens", "auto_map"],
    *["sep_token", "cls_token", "mask_token", "unk_token", "additional_special_tokens", "added_tokens_decoder"],
    *["revision", "cache_dir", "token", "local_files_only", "return_tensors", "chat_template", "__class__", "init_kwargs"],
    *["pretrained_model_name_or_path", "bpe_dropout_rate", "do_clean_text", "extra_special_tokens", "kwargs", "args"],
]
WORDS = [*CONFIG.values(), *NAMES, "left", "right", "hf", "original", "strict", "1e30", 10**30, {"content": "x"}]


def put_name(draw: random.Random, tree: Any) -> None:
    """A name that means something, with any value."""
    tree[draw.choice([*NAMES, *CONFIG])] = draw.choice([*WORDS, 0, 1, -1, True, None, "", [], {}, 1.5, 2**31, [[]]])


def put_token(draw: random.Random, tree: Any) -> None:
    """An added token with any id and content."""
    index = draw.choice(["0", "1", "29", "30", "31", "99", "2147483647", "2147483648", "-1", "٣", "1.0", "", " 1", "1_0"])
    content = draw.choice(["", "a", "<x>", "<SP>", "<|endoftext|>", "a" * 256, "a" * 257, "\u3042", "e\u0301"])
    token = {**TOKEN, "content": content, draw.choice(list(TOKEN)): draw.choice([True, False, None, 1, "x"])}
    if "added_tokens_decoder" in tree:
        tree["added_tokens_decoder"][index] = draw.choice([token, token, content])
    elif "bos_token" in tree:
        tree[draw.choice(["pad_token", "unk_token", "mask_token", "additional_special_tokens"])] = draw.choice(
            [token, content, [token], [content]]
        )
    else:
        tree[content] = draw.choice([index, int(index) if index.isdecimal() else index, 5.0, True])


def change(draw: random.Random, files: Files) -> Files:
    return {
        name: change_json(draw, content, WORDS, (put_name, put_token)) for name, content in files.items()
    }


def read(folder: Path) -> PreTrainedTokenizer:
    return GPTNeoXJapaneseTokenizer.from_pretrained(folder, impl="plain")


def read_as_neox(folder: Path) -> PreTrainedTokenizer:
    return GPTNeoXTokenizerFast.from_pretrained(folder, impl="plain")


def use(tokenizer: PreTrainedTokenizer, number: int) -> None:
    """Encodes with padding and truncation, decodes, and now and then writes the files again."""
    text = "a応 <x>猫<y>  <|endoftext|>ab"
    row = tokenizer(text, truncation=True, max_length=8)["input_ids"]
    assert isinstance(tokenizer.decode(row, skip_special_tokens=True), str)
    assert tokenizer.impl == "plain", "a file decided what the caller alone decides"
    assert len(tokenizer) < 2**32
    repr(tokenizer)
    json.dumps(tokenizer.saved_options())
    if number % 4 == 0:
        tokenizer([text, "a"], padding=True, return_tensors="np")


JAPANESE = {
    "vocab.txt": read_japanese.VOCABULARIES[1].encode(),
    "emoji.json": json.dumps(read_japanese.EMOJI).encode(),
}
NEOX = {"tokenizer.json": json.dumps(read_neox.content()).encode()}


def reader(name: str, file: str, *valid: dict[str, Any], neox: bool = False) -> Reader:
    contents = [{file: json.dumps(v).encode()} for v in valid]
    return Reader(name, contents, change, read_as_neox if neox else read, use, NEOX if neox else JAPANESE)


READERS = [
    reader(CONFIG_FILE, CONFIG_FILE, CONFIG, {"pad_token": "a"}),
    reader(
        "tokenizer_config.json-of-neox",
        CONFIG_FILE,
        {**CONFIG, "bos_token": "<|endoftext|>", "nfc": True, "padded_vocab_size": 64, "trim_offsets": True},
        neox=True,
    ),
    reader(SPECIAL_TOKENS_FILE, SPECIAL_TOKENS_FILE, SPECIAL_MAP),
    reader(ADDED_TOKENS_FILE, ADDED_TOKENS_FILE, ADDED),
]
