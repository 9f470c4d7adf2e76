"""Every golden text of sentencepiece models: ids, tokens and texts are those of transformers' tokenizer in Python."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from refimpl import AutoTokenizer
from refimpl.errors import InputError, TextInputError, TokenizerFileError
from refimpl.tokenizer import AddedToken, T5Tokenizer

pytest.importorskip("sentencepiece", reason="the extra sentencepiece is not installed")

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "tokenizer"
CASES = [
    json.loads(line)
    for line in (GOLDEN / "sentencepiece.jsonl").read_text(encoding="utf-8").split("\n")
    if line
]
ENCODED = [case for case in CASES if "text" in case]
DECODED = [case for case in CASES if "decoded" in case]
REFUSED = [case for case in CASES if "expect" in case]
ERRORS = {"text": TextInputError, "input": InputError, "tokenizer_file": TokenizerFileError}


def each(cases: list[dict[str, Any]]) -> Any:
    return pytest.mark.parametrize("case", [pytest.param(case, id=case["id"]) for case in cases])


def make(case: dict[str, Any]) -> T5Tokenizer:
    """The tokenizer that a case asks for."""
    tokenizer = AutoTokenizer.from_pretrained(GOLDEN / case["vocabulary"], **case.get("options", {}))
    assert type(tokenizer) is T5Tokenizer
    for entry in case.get("added_tokens", ()):
        tokenizer.add_tokens([AddedToken(**{k: v for k, v in entry.items() if k != "id"})])
        assert tokenizer.convert_tokens_to_ids(entry["content"]) == entry["id"]
    return tokenizer


def test_there_are_cases() -> None:
    assert len(ENCODED) > 100
    assert len(DECODED) > len(ENCODED)
    assert {case["vocabulary"] for case in CASES} == {path.name for path in GOLDEN.glob("sentencepiece_*")}
    assert {case["expect"]["error"] for case in REFUSED} == set(ERRORS)
    assert all(bytes.fromhex(case["text_hex"]).decode("utf-8") == case["text"] for case in ENCODED)


@each(ENCODED)
def test_text_is_encoded_like_this(case: dict[str, Any]) -> None:
    tokenizer, call = make(case), case.get("call", {})
    given = [case["text"], *([case["pair"]] if "pair" in case else [])]
    assert tokenizer(*given, **call)["input_ids"] == case["ids"]
    assert tokenizer(*given, **call, return_offsets_mapping=True)["input_ids"] == case["ids"]
    if "pair" not in case:
        assert tokenizer.tokenize(case["text"]) == case["tokens"]
        assert tokenizer([case["text"]] * 2, **call)["input_ids"] == [case["ids"]] * 2


@each(DECODED)
def test_ids_are_decoded_like_this(case: dict[str, Any]) -> None:
    tokenizer = make(case)
    assert tokenizer.convert_ids_to_tokens(case["ids"]) == case["pieces"]
    assert tokenizer.decode(case["ids"]) == case["decoded"]
    assert tokenizer.decode(case["ids"], skip_special_tokens=True) == case["decoded_without_special_tokens"]


@each(REFUSED)
def test_what_is_refused(case: dict[str, Any], tmp_path: Path) -> None:
    error = ERRORS[case["expect"]["error"]]
    if "text_utf16_hex" in case:
        units = bytes.fromhex(case["text_utf16_hex"])
        text = "".join(chr(int.from_bytes(units[i : i + 2])) for i in range(0, len(units), 2))
        with pytest.raises(error):
            make(case)(text)
    elif "ids" in case:
        with pytest.raises(error):
            make(case).decode(case["ids"])
    else:
        for name, content in case["files"].items():
            (tmp_path / name).write_text(content, encoding="utf-8")
        with pytest.raises(error):
            AutoTokenizer.from_pretrained(tmp_path)


def test_the_two_forms_of_a_text_differ_in_the_end_token() -> None:
    ids = {case["id"]: case["ids"] for case in ENCODED}
    for vocabulary in ("small", "bytes", "line"):
        whole, wanted = (
            ids[f"tokenizer/sentencepiece-{vocabulary}/{name}"] for name in ("japanese", "no-end-token")
        )
        assert whole == [*wanted, 2]


def test_the_longest_piece_at_each_place_gives_other_ids() -> None:
    """So that a greedy tokenizer fails, in every vocabulary."""
    cases = [case for case in ENCODED if case["id"].endswith("/not-the-longest")]
    assert len(cases) == 3
    for case in cases:
        pieces = set(make(case).get_vocab())
        text = case["text"].replace(" ", "▁")
        text = text if case["tokens"][0] != "▁" else "▁" + text
        found = []
        while text:
            found.append(next(text[:end] for end in range(len(text), 0, -1) if text[:end] in pieces))
            text = text.removeprefix(found[-1])
        assert found != case["tokens"]
        assert len(found) > 3
