"""Small models of sentencepiece for tests: trained ones like the published, and one written field by field."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path
from typing import Any

TEXT = [
    "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。",
    "何でも薄暗いじめじめした所でニャーニャー泣いていた事だけは記憶している。",
    "東京は日本の首都です。大阪は日本で二番目に大きい都市です。京都には古い寺がたくさんあります。",
    "今日は良い天気ですね。明日は雨が降るでしょう。昨日は友達と映画を見に行きました。",
    "ユーザー: 日本のおすすめの観光地を教えてください。システム: どの地域の観光地が知りたいですか？",
    "人工知能の研究は一九五〇年代に始まり、ニューラルネットワークを使う方法が広まった。",
    "The quick brown fox jumps over the lazy dog, and the dog sleeps in the sun.",
    "Hello world! This is a small model for tests; it knows a little English, and no more.",
    "She sells sea shells on the sea shore. I don't know what the weather will be like tomorrow.",
    "Language models predict the next token of a text from all the tokens before it.",
    "価格は1,234円、2024年12月31日まで。Ｐｙｔｈｏｎ ３．１１ と numpy を使います。",
]

#: How the published tokenizers of these families were made, as far as it changes what they do.
KINDS: dict[str, dict[str, Any]] = {
    "small": {"control_symbols": ["[PAD]", "[CLS]", "[SEP]", "[MASK]"]},
    "bytes": {
        "byte_fallback": True,
        "add_dummy_prefix": False,
        "remove_extra_whitespaces": False,
        "normalization_rule_name": "identity",
        "user_defined_symbols": ["<NL>"],
        "pad_id": 3,
        "vocab_size": 620,
    },
    "line": {"byte_fallback": True, "pad_id": 3, "vocab_size": 620},
    "t5": {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1},
    "pairs": {"model_type": "bpe", "byte_fallback": True, "vocab_size": 620},
}

RINNA_CONFIG = {
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "pad_token": "[PAD]",
    "extra_ids": 0,
    "additional_special_tokens": [],
    "sp_model_kwargs": {},
    "bos_token": "<s>",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
    "do_lower_case": False,
    "tokenizer_class": "T5Tokenizer",
}
CONFIGS = {
    "small": RINNA_CONFIG,
    "bytes": {"extra_ids": 0, "bos_token": "<s>", "tokenizer_class": "T5Tokenizer"},
    "line": {"extra_ids": 0, "bos_token": "<s>", "tokenizer_class": "T5Tokenizer"},
    "t5": {"extra_ids": 3, "tokenizer_class": "T5Tokenizer"},
    "pairs": {"extra_ids": 0, "tokenizer_class": "T5Tokenizer"},
}


def train(folder: Path, kind: str) -> Path:
    """`spiece.model` and `tokenizer_config.json` of a kind in `folder`, trained on `TEXT`."""
    import sentencepiece

    model = io.BytesIO()
    options = {"vocab_size": 380, "hard_vocab_limit": False, "minloglevel": 2, **KINDS[kind]}
    if options.get("model_type") == "bpe":
        del options["hard_vocab_limit"]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT * 3), model_writer=model, num_threads=1, **options
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spiece.model").write_bytes(model.getvalue())
    (folder / "tokenizer_config.json").write_text(json.dumps(CONFIGS[kind]), encoding="utf-8")
    return folder


# ---- a model written by hand: sentencepiece_model.proto of the package says what the numbers are

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


def varint(number: int) -> bytes:
    digits = []
    while number > 0x7F:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*digits, number])


def field(number: int, value: int | float | str | bytes) -> bytes:
    """One field of a protobuf message."""
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    content = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(content)) + content


def piece(text: str | bytes, score: float = 0.0, kind: int = NORMAL) -> bytes:
    return field(1, field(1, text) + field(2, score) + field(3, kind))


PIECES = [
    *[piece("<unk>", 0.0, UNKNOWN), piece("<s>", 0.0, CONTROL), piece("</s>", 0.0, CONTROL)],
    *[piece("<pad>", 0.0, CONTROL), piece("<NL>", 0.0, USER_DEFINED), piece("old", 0.0, UNUSED)],
    *[
        piece(text, -float(rank))
        for rank, text in enumerate(["▁", "▁a", "a", "b", "ab", "こん", "こ", "ん", "▁▁"])
    ],
]
BYTES = [piece(f"<0x{value:02X}>", 0.0, BYTE) for value in range(256)]


def written(*more: bytes, bytes_too: bool = False, normalizer: bytes = b"") -> bytes:
    """A model of `PIECES` and `more`; `normalizer` are fields of its normalizer_spec."""
    trainer = field(2, field(35, 1)) if bytes_too else b""
    return b"".join([*PIECES, *(BYTES if bytes_too else []), *more]) + trainer + field(3, normalizer)


def character_map(replacement: bytes) -> bytes:
    """A normalizer's map with an empty trie and one replacement."""
    trie = bytes(1024)
    return field(2, struct.pack("<I", len(trie)) + trie + replacement + b"\0")
