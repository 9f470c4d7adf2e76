"""Write into the lines of `golden/tokenizer/*.jsonl` what frequent mistakes give: `wrong` ids, `wrong_decoded` texts.

Run after the makers of the lines; everything else in a line stays as it is.  A line whose recorded ids the plain
encoders of `tokenizer_mistakes.py` do not give without a mistake (special options, other files) gets none.
"""

from __future__ import annotations

import json
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

from tokenizer_mistakes import (
    JAPANESE_MISTAKES,
    NEOX_MISTAKES,
    Bpe,
    Japanese,
    bytes_one_by_one,
    encode_japanese,
    encode_neox,
)

FOLDER = Path(__file__).resolve().parents[1] / "tokenizer"
NEOX_FILES = ("neox.jsonl", "neox_published.jsonl")
JAPANESE_FILES = ("japanese.jsonl", "japanese_toy.jsonl")
#: Lines with these settings are not those of the plain encoders; with other files only the text can be plain.
FILES = ("changes", "files")
SPECIAL = ("options", "call", "added_tokens", "pair", "words_given", "do_clean_text")

Line = dict[str, Any]


@cache
def bpe_of(vocabulary: str) -> Bpe | None:
    """The tables of a folder; None for one of another model than plain BPE."""
    folder = FOLDER / vocabulary
    if (folder / "tokenizer.json").exists():
        content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    else:
        lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
        ids = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
        merges = [line for line in lines if line and not line.startswith("#version")]
        content = {"model": {"vocab": ids, "merges": merges}}
        content["added_tokens"] = [
            {"content": name, "id": ids[name]} for name in ("<|endoftext|>", "<|padding|>") if name in ids
        ]
    return None if content["model"].get("unk_token") else Bpe(content)


@cache
def japanese_of(vocabulary: str, spellings: bool = True) -> Japanese:
    return Japanese(json.loads((FOLDER / vocabulary).read_text(encoding="utf-8")), spellings)


def wrong_neox(line: Line) -> dict[str, list[int]]:
    """Name -> ids of the mistakes that a line shows."""
    bpe = bpe_of(line["vocabulary"])
    if bpe is None or not _is_right(line, lambda: encode_neox(line["text"], bpe)):
        return {}
    found = {}
    mistakes = NEOX_MISTAKES
    if set(FILES) & set(line):  # what else they change would make other mistakes something else
        mistakes = {"nfc-skipped": mistakes["nfc-skipped"]}
    for name, changes in mistakes.items():
        ids = _tried(lambda changes=changes: encode_neox(line["text"], bpe, **changes))
        if ids is not None and ids != line["ids"]:
            found[name] = ids
    return found


def wrong_japanese(line: Line) -> dict[str, list[int]]:
    """Name -> ids of the mistakes that a line shows."""
    table = japanese_of(line["vocabulary"])
    found = {}
    if "ids_original" in line and line["ids_original"] != line["ids"]:
        found["comma-has-its-own-id"] = line["ids_original"]
    if set(FILES) & set(line) or not _is_right(line, lambda: encode_japanese(line["text"], table)):
        return found
    tried = {
        name: lambda changes=changes: encode_japanese(line["text"], table, **changes)
        for name, changes in JAPANESE_MISTAKES.items()
    }
    one = japanese_of(line["vocabulary"], False)
    tried["one-spelling-a-line"] = lambda: encode_japanese(line["text"], one)
    for name, encode in tried.items():
        ids = _tried(encode)
        if ids is not None and ids != line["ids"]:
            found[name] = ids
    return found


def wrong_decoded(line: Line) -> dict[str, str]:
    """Name -> text of the mistakes in decoding that a line shows."""
    if "ids" not in line or "decoded" not in line:
        return {}
    content = json.loads((FOLDER / line["vocabulary"]).read_text(encoding="utf-8"))
    text = bytes_one_by_one(line["ids"], japanese_of(line["vocabulary"]), content["emoji_inv"]).strip()
    return {} if text == line["decoded"] else {"bytes-one-by-one": text}


def _is_right(line: Line, encode: Any) -> bool:
    return "text" in line and "ids" in line and not set(SPECIAL) & set(line) and _tried(encode) == line["ids"]


def _tried(encode: Any) -> list[int] | None:
    """The ids, or None where the mistake leads to a token that the vocabulary does not have."""
    try:
        return encode()
    except (KeyError, StopIteration):
        return None


def main() -> None:
    for name in (*NEOX_FILES, *JAPANESE_FILES):
        path, shown, right = FOLDER / name, Counter(), 0
        rows = []
        for text in filter(None, path.read_text(encoding="utf-8").split("\n")):
            line = {key: v for key, v in json.loads(text).items() if key not in ("wrong", "wrong_decoded")}
            if "text" in line and "ids" in line:
                wrong = wrong_neox(line) if name in NEOX_FILES else wrong_japanese(line)
                line |= {"wrong": wrong} if wrong else {}
                right += bool(wrong)
                shown.update(wrong.keys())
            if name in JAPANESE_FILES and (decoded := wrong_decoded(line)):
                line["wrong_decoded"] = decoded
                shown.update(decoded.keys())
            rows.append(json.dumps(line, ensure_ascii=False))
        path.write_text("\n".join(rows) + "\n", encoding="utf-8")
        print(f"{name}: {right} of {len(rows)} lines show mistakes: {dict(shown)}")


if __name__ == "__main__":
    main()
