"""Make `golden/tokenizer/`: texts with the tokens, ids and decoded texts that transformers gives them.

The published vocabulary of GPT-NeoX-Japanese is not part of this repository.  `japanese_sparse.json`
holds only those of its lines that the texts can meet; every other line is filled with a character of
private use that no text holds, so that the ids are those of the published vocabulary.  With the
environment variable REFIMPL_DATA (a folder with `japanese_bpe/vocab.txt` and `emoji.json`) the sparse
file is made again and every case is checked against the full one; without it only the cases are made.

`ids_original` and `decoded_original` follow from transformers' tokens by the two rules in which the
encoder of the vocabulary's makers differs: "," keeps its own id, and runs of bytes are decoded together.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from tokenizer_texts import CLEAN, DECODE, PLAIN, TOY
from transformers import GPTNeoXJapaneseTokenizer

FOLDER = Path(__file__).resolve().parents[1] / "tokenizer"
COMMA_LINE = 31596

TOY_VOCABULARY: dict[str, Any] = {
    "source": "https://github.com/huggingface/transformers/blob/15ea02a2add1672acbeee158a9448720d6093de1/"
    "tests/models/gpt_neox_japanese/test_tokenization_gpt_neox_japanese.py",
    "unk_token": "<unk>",
    "lines": [
        "こん",
        "こんに",
        "にちは",
        "ばんは",
        "世界,㔺界",
        "、",
        "。",
        "<BR>",
        "<SP>",
        "<TAB>",
        "<URL>",
        "<EMAIL>",
        "<TEL>",
        "<DATE>",
        "<PRICE>",
        "<BLOCK>",
        "<KIGOU>",
        "<U2000U2BFF>",
        "<|emoji1|>",
        "<unk>",
        "<|startoftext|>",
        "<|endoftext|>",
    ],
    "emoji": {"😀": "<|emoji1|>"},
    "emoji_inv": {"<|emoji1|>": "😀"},
}


def lines_of(vocabulary: dict[str, Any]) -> list[str]:
    """The lines of `vocab.txt`: as listed, or the sparse ones among fillers."""
    if isinstance(vocabulary["lines"], list):
        return vocabulary["lines"]
    return [vocabulary["lines"].get(str(index), chr(0xF0000 + index)) for index in range(vocabulary["size"])]


def tokenizer_of(vocabulary: dict[str, Any], **options: Any) -> GPTNeoXJapaneseTokenizer:
    """transformers' tokenizer with a vocabulary given as JSON."""
    with tempfile.TemporaryDirectory() as folder:
        vocab, emoji = Path(folder, "vocab.txt"), Path(folder, "emoji.json")
        vocab.write_text("\n".join(lines_of(vocabulary)), encoding="utf-8")
        emoji.write_text(
            json.dumps({key: vocabulary[key] for key in ("emoji", "emoji_inv")}), encoding="utf-8"
        )
        return GPTNeoXJapaneseTokenizer(vocab, emoji, unk_token=vocabulary["unk_token"], **options)


def read_full(folder: Path) -> dict[str, Any]:
    """The published vocabulary, in the form of the other two."""
    emoji = json.loads((folder / "emoji.json").read_text(encoding="utf-8"))
    lines = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
    return {"unk_token": "<|endoftext|>", "lines": lines, **emoji}


def make_sparse(full: dict[str, Any]) -> dict[str, Any]:
    """The lines with a word that any of the texts could be cut at, and of those only such words."""
    cleaner = tokenizer_of(full).subword_tokenizer
    seen: set[str] = set()
    used = {}
    for text in [*PLAIN.values(), *CLEAN.values()]:
        for old, new in (" ", "<SP>"), ("—", "ー"), ("−", "ー"):
            text = text.replace(old, new)
        used |= {emoji: tag for emoji, tag in full["emoji"].items() if emoji in text}
        seen |= {text[i : i + size] for i in range(len(text)) for size in (1, 2, 3)}
        for emoji, tag in full["emoji"].items():
            text = text.replace(emoji, tag)
        text = cleaner.clean_text(text)
        seen |= {text[i : i + size] for i in range(len(text)) for size in (1, 2, 3)}
    decoded = {index for ids in DECODE.values() for index in ids}
    lines = {}
    for index, line in enumerate(full["lines"]):
        words = [line] if line == "," else line.split(",")
        needed = [word for word in words if word in seen or (word.startswith("<") and word.endswith(">"))]
        if needed or index in decoded:
            lines[str(index)] = ",".join(dict.fromkeys([words[0], *needed]))
    shown = Counter(lines.values())
    whole = {index: full["lines"][int(index)] for index, line in lines.items() if shown[line] > 1}
    lines |= whole  # two lines that differ must not become one by being shortened
    used = {emoji: tag for emoji, tag in full["emoji"].items() if emoji in used}
    return {
        "source": "https://github.com/tanreinama/Japanese-BPEEncoder_V2/tree/c477d8b8b1cdecfe483ed8cdb8de2c250af74f7c",
        "licence": "MIT, Copyright (c) 2020 tanreinama",
        "size": len(full["lines"]),
        "unk_token": full["unk_token"],
        "lines": lines,
        "emoji": used,
        "emoji_inv": full["emoji_inv"],
    }


def encoding_case(name: str, text: str, tokenizer: GPTNeoXJapaneseTokenizer) -> dict[str, Any]:
    """What transformers makes of one text."""
    ids = tokenizer(text)["input_ids"]
    return {
        "id": name,
        "text": text,
        "text_hex": text.encode("utf-8").hex(),
        "tokens": tokenizer.tokenize(text),
        "ids": ids,
        "decoded": tokenizer.decode(ids),
        "decoded_without_special_tokens": tokenizer.decode(ids, skip_special_tokens=True),
    }


def original(case: dict[str, Any], vocabulary: dict[str, Any]) -> dict[str, Any]:
    """The same case for the encoder with which the vocabulary was made."""
    lines = vocabulary["lines"]
    pairs = zip(case["tokens"], case["ids"], strict=True)
    ids = [COMMA_LINE if token == "<|byte44|>" else index for token, index in pairs]
    data = b"".join(word_bytes(lines[str(index)], vocabulary["emoji_inv"]) for index in ids)
    return {"ids_original": ids, "decoded_original": data.decode("utf-8", "replace")}


def word_bytes(line: str, emoji_inv: dict[str, str]) -> bytes:
    """The bytes that one line of the vocabulary stands for."""
    word = line if line == "," else line.split(",")[0]
    if word.startswith("<|byte"):
        return bytes([int(word[6:-2])])
    tags = {"<SP>": " ", "<BR>": "\n", "<TAB>": "\t", "<BLOCK>": "▀", "<KIGOU>": "ǀ", "<U2000U2BFF>": "‖"}
    return tags.get(word, emoji_inv.get(word, word)).encode("utf-8")


def cases_with(vocabulary: dict[str, Any]) -> list[dict[str, Any]]:
    """All cases of the published vocabulary."""
    plain, clean = (tokenizer_of(vocabulary, do_clean_text=flag) for flag in (False, True))
    cases = []
    for name, text in PLAIN.items():
        case = encoding_case(f"tokenizer/japanese/{name}", text, plain)
        cases.append({**case, **original(case, vocabulary)})
    for name, text in CLEAN.items():
        case = encoding_case(f"tokenizer/japanese/clean-{name}", text, clean)
        cases.append({**case, "do_clean_text": True})
    for name, ids in DECODE.items():
        pieces = plain.convert_ids_to_tokens(ids)
        cases.append(
            {
                "id": f"tokenizer/japanese/decode-{name}",
                "ids": ids,
                "pieces": pieces,
                "decoded": plain.decode(ids),
            }
        )
    return cases


def refused() -> list[dict[str, Any]]:
    """Texts that are no Unicode, as UTF-16 code units: nothing else can hold them."""
    units = {"high-surrogate": "0061d83d0062", "low-surrogate": "dc00", "surrogates-reversed": "de00d83d"}
    expect = {"kind": "error", "error": "text"}
    return [
        {"id": f"tokenizer/japanese/{k}", "text_utf16_hex": v, "expect": expect} for k, v in units.items()
    ]


def write(name: str, cases: list[dict[str, Any]], vocabulary: str) -> None:
    """One case a line, naming the vocabulary file beside it."""
    lines = [json.dumps({**case, "vocabulary": vocabulary}, ensure_ascii=False) for case in cases]
    (FOLDER / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{name}: {len(cases)} cases")


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    sparse_file, toy_file = FOLDER / "japanese_sparse.json", FOLDER / "japanese_toy.json"
    data = os.environ.get("REFIMPL_DATA")
    full = read_full(Path(data, "japanese_bpe")) if data else None
    if full:
        sparse_file.write_text(
            json.dumps(make_sparse(full), ensure_ascii=False, indent=0) + "\n", encoding="utf-8"
        )
    toy_file.write_text(json.dumps(TOY_VOCABULARY, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")

    sparse = json.loads(sparse_file.read_text(encoding="utf-8"))
    cases = cases_with(sparse)
    if full:
        listed = {**full, "lines": {str(index): line for index, line in enumerate(full["lines"])}}
        checked = cases_with({**listed, "size": len(listed["lines"])})
        lacking = [case["id"] for case, other in zip(cases, checked, strict=True) if case != other]
        assert not lacking, f"the sparse vocabulary lacks lines for {lacking}"
    write("japanese.jsonl", [*cases, *refused()], sparse_file.name)
    toy = tokenizer_of(TOY_VOCABULARY)
    write(
        "japanese_toy.jsonl",
        [encoding_case(f"tokenizer/toy/{k}", v, toy) for k, v in TOY.items()],
        toy_file.name,
    )


if __name__ == "__main__":
    main()
