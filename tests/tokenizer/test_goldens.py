"""Every golden text: tokens, ids and decoded text are those of transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from refimpl.errors import TextInputError
from refimpl.tokenizer import GPTNeoXJapaneseTokenizer

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "tokenizer"
CASES = [
    json.loads(line)
    for name in ("japanese.jsonl", "japanese_toy.jsonl")
    for line in (GOLDEN / name).read_text(encoding="utf-8").split("\n")
    if line
]


def named(key: str, without: str = "") -> Any:
    cases = [case for case in CASES if key in case and without not in case]
    return pytest.mark.parametrize("case", cases, ids=[case["id"] for case in cases])


@pytest.fixture(scope="module")
def tokenizers(make_sparse, make_toy) -> dict[tuple[str, bool], GPTNeoXJapaneseTokenizer]:
    return {
        ("japanese_sparse.json", False): make_sparse(),
        ("japanese_sparse.json", True): make_sparse(do_clean_text=True),
        ("japanese_toy.json", False): make_toy(),
    }


def test_there_are_cases() -> None:
    assert len(CASES) > 150
    assert all(
        bytes.fromhex(case["text_hex"]).decode("utf-8") == case["text"] for case in CASES if "text" in case
    )


@named("text")
def test_text_has_the_ids_of_transformers(case, tokenizers) -> None:
    tokenizer = tokenizers[case["vocabulary"], case.get("do_clean_text", False)]
    assert tokenizer.tokenize(case["text"]) == case["tokens"]
    assert tokenizer(case["text"])["input_ids"] == case["ids"]
    assert tokenizer.decode(case["ids"]) == case["decoded"]
    assert tokenizer.decode(case["ids"], skip_special_tokens=True) == case["decoded_without_special_tokens"]


@named("ids_original")
def test_text_has_the_ids_of_the_original_encoder(case, original) -> None:
    assert original.encode(case["text"]) == case["ids_original"]
    assert original.decode(case["ids_original"]) == case["decoded_original"]


@named("pieces")
def test_ids_have_the_pieces_of_transformers(case, sparse) -> None:
    assert sparse.convert_ids_to_tokens(case["ids"]) == case["pieces"]
    assert sparse.decode(case["ids"]) == case["decoded"]


@named("text_utf16_hex")
def test_text_that_is_not_unicode_is_refused(case, sparse) -> None:
    units = bytes.fromhex(case["text_utf16_hex"])
    text = "".join(chr(int.from_bytes(units[i : i + 2])) for i in range(0, len(units), 2))
    with pytest.raises(TextInputError):
        sparse(text)


def test_published_ids_on_the_whole_vocabulary(make_full) -> None:
    tokenizer = make_full()
    by_id = {case["id"]: case for case in CASES}
    case = by_id["tokenizer/japanese/documentation"]
    published = [
        30014,
        26883,
        26638,
        27228,
        25,
        26650,
        31732,
        31679,
        27809,
        26638,
        17749,
        31592,
        17749,
        31593,
        321,
        1281,
    ]
    assert case["ids"] == published
    for case in by_id.values():
        if "text" in case and case["vocabulary"] == "japanese_sparse.json" and not case.get("do_clean_text"):
            assert tokenizer(case["text"])["input_ids"] == case["ids"]
            assert tokenizer.decode(case["ids"]) == case["decoded"]
