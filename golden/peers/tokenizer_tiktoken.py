"""tiktoken with the merges of a tokenizer.json, made to give the same ids.

Three things are not its own: NFC, which a caller has to do first (free for ASCII text); an id is a rank here,
so the ids must be in the order of the merges; and of several added tokens that begin alike it does not find
the longest.  The last matters for the runs of spaces of GPT-NeoX: they are made a part of the pattern, in
front of GPT-2's, which then never looks past two spaces.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import tiktoken

# GPT-2's pattern as tiktoken writes it for speed, once as it is, once stopping before two spaces.
WORDS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++"
GPT2 = WORDS + r"|\s++$|\s+(?!\S)|\s"
BLANK, SPACE = r"[^\S ]", r" (?! )"
BLANKS_AT_END = rf"(?:{BLANK}++(?:{SPACE})?)++$|{SPACE}(?:{BLANK}++(?:{SPACE})?)*+$"
BESIDE_SPACES = rf"{WORDS}|{BLANKS_AT_END}|(?:{BLANK}|{SPACE})+(?!\S)|\s"


def prepare(model: str, threads: int, options: dict[str, Any]) -> dict[str, Any]:
    """See refimpl/cli/bench/worker.py."""
    file = Path(model) / "tokenizer.json"
    if not file.is_file() or options:
        raise NotImplementedError("it can be made from tokenizer.json alone, without further options")
    encoding, with_nfc = make(json.loads(file.read_text(encoding="utf-8")))

    def encode(text: str) -> list[int]:
        if with_nfc and not text.isascii():
            text = unicodedata.normalize("NFC", text)
        return encoding.encode(text, allowed_special="all")

    def in_parts(function: Callable[[Any], Any], items: list[Any]) -> list[Any]:
        # Its own encode_batch makes a task of every string, which for short ones is slower than one thread.
        if threads == 1:
            return [function(item) for item in items]
        size = -(-len(items) // threads)
        parts = [items[start : start + size] for start in range(0, len(items), size)]
        with ThreadPoolExecutor(threads) as pool:
            done = pool.map(lambda part: [function(item) for item in part], parts)
            return [result for part in done for result in part]

    return {
        "what": "tiktoken.Encoding (Rust)",
        "versions": {"tiktoken": tiktoken.__version__},
        "threads": threads,
        "operations": {
            "encode": encode,
            "encode_batch": lambda texts: in_parts(encode, texts),
            "decode": encoding.decode,
            "decode_batch": lambda rows: in_parts(encoding.decode, rows),
        },
    }


def make(content: dict[str, Any]) -> tuple[tiktoken.Encoding, bool]:
    """The encoding for a tokenizer.json, and whether texts must be normalized first."""
    normalizer, splitter = content.get("normalizer"), content.get("pre_tokenizer") or {}
    if (normalizer or {"type": "NFC"})["type"] != "NFC":
        raise NotImplementedError(f"the normalizer {normalizer['type']} is not made up for here")
    if splitter.get("type") != "ByteLevel" or splitter.get("add_prefix_space"):
        raise NotImplementedError("only the byte-level pre-tokenizer without a prefix space can be matched")
    to_byte = {character: byte for byte, character in byte_characters().items()}
    added = {token["content"]: token["id"] for token in content["added_tokens"]}
    merged = check_order(content["model"]["vocab"], content["model"]["merges"])
    ranks = {
        bytes(map(to_byte.__getitem__, token)): index
        for token, index in content["model"]["vocab"].items()
        if token in merged or (len(token) == 1 and token in to_byte)
    }
    spaces = {text: index for text, index in added.items() if len(text) > 1 and not text.strip(" ")}
    if spaces and sorted(map(len, spaces)) != list(range(2, len(spaces) + 2)):
        raise NotImplementedError("the added tokens of spaces have gaps in their lengths")
    pattern = f" {{2,{len(spaces) + 1}}}|{BESIDE_SPACES}" if spaces else GPT2
    encoding = tiktoken.Encoding(
        "benchmark",
        pat_str=pattern,
        mergeable_ranks=ranks | {text.encode(): index for text, index in spaces.items()},
        special_tokens={text: index for text, index in added.items() if text not in spaces},
    )
    return encoding, normalizer is not None


def check_order(vocab: dict[str, int], merges: list[Any]) -> set[str]:
    """The tokens that merges make, when their ids are in the order of the merges."""
    made = ["".join(merge.split(" ") if isinstance(merge, str) else merge) for merge in merges]
    ids = [vocab[token] for token in made]
    if any(first >= second for first, second in pairwise(ids)):
        raise NotImplementedError("the ids are not in the order of the merges, as tiktoken needs them")
    return set(made)


def byte_characters() -> dict[int, str]:
    """Byte -> the character by which byte-level vocabularies write it: its own where that can be seen."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {byte: chr(byte) for byte in visible} | {
        byte: chr(256 + number) for number, byte in enumerate(hidden)
    }
