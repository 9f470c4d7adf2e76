"""transformers itself, side by side: ids, tokens, texts and padded batches are equal."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refimpl.errors import RefimplError
from refimpl.tokenizer import AddedToken, GPTNeoXJapaneseTokenizer
from refimpl.tokenizer.clean_text import clean_text

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("ignore")

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "tokenizer"

FRAGMENTS = [
    *"0123456789年月日円千億万(税込)@./-:,<>|　\t—−\x00\u2028",
    *[
        "<SP>",
        "<|endoftext|>",
        "<|startoftext|>",
        "<|byte65|>",
        "<|emoji1|>",
        "<|",
        "|>",
        "\r\n",
        "\n",
        "\r",
        " ",
    ],
    *[
        "2020年",
        "12月",
        "昭和",
        "1,000",
        "万円",
        "ドル",
        "+tax",
        "http://",
        "a@b.c",
        "(日)",
        "─",
        "<BLOCK>",
        "２",
        "٣",
    ],
    *["慶應", "こんにちは", "コンピュータ", "国", "①", "ｱ", "é", "한", "𠮷", "(^_^)", "😀", "👍🏽"],
]


def random_text(draw: random.Random, longest: int = 12) -> str:
    parts = []
    for _ in range(draw.randint(0, longest)):
        code = draw.choice([0x80, 0x800, 0x3100, 0xA000, 0x110000])
        character = chr(draw.randrange(code))
        parts.append(
            draw.choice([draw.choice(FRAGMENTS), "?" if "\ud800" <= character <= "\udfff" else character])
        )
    return "".join(parts)


@pytest.fixture(scope="module")
def pair(data_folder: Path) -> dict[bool, tuple[Any, GPTNeoXJapaneseTokenizer]]:
    """Both tokenizers with the published vocabulary, without and with `do_clean_text`."""
    files = [str(data_folder / "japanese_bpe" / name) for name in ("vocab.txt", "emoji.json")]
    theirs = transformers.GPTNeoXJapaneseTokenizer
    return {
        clean: (theirs(*files, do_clean_text=clean), GPTNeoXJapaneseTokenizer(*files, do_clean_text=clean))
        for clean in (False, True)
    }


def assert_same(theirs: Any, ours: GPTNeoXJapaneseTokenizer, text: str) -> None:
    ids = theirs(text)["input_ids"]
    assert ours(text)["input_ids"] == ids, text
    assert ours.tokenize(text) == theirs.tokenize(text), text
    assert ours.decode(ids) == theirs.decode(ids), text


@pytest.mark.parametrize("clean", [False, True])
def test_random_texts(pair, clean: bool) -> None:
    draw = random.Random(20)
    for _ in range(1500):
        assert_same(*pair[clean], random_text(draw))


def test_many_random_texts(pair) -> None:
    """The ids alone, of REFIMPL_STRINGS texts, by the compiled form."""
    draw = random.Random(25)
    theirs, ours = pair[False]
    for _ in range(int(os.environ.get("REFIMPL_STRINGS", "100000")) // 1000):
        texts = [random_text(draw) for _ in range(1000)]
        expected = theirs(texts)["input_ids"]
        for text, ids, encoding in zip(texts, expected, ours.encode_texts(texts), strict=True):
            assert encoding.ids == ids, text


def test_works(pair, data_folder: Path) -> None:
    """Whole works and line by line: 200 of Aozora Bunko with REFIMPL_WORKS=200."""
    theirs, ours = pair[False]
    works = sorted((data_folder / "aozora").glob("*.txt"))
    step = max(1, len(works) // int(os.environ.get("REFIMPL_WORKS", "20")))
    for work in works[::step]:
        text = work.read_text(encoding="utf-8")
        lines = text.split("\n")
        assert ours(text)["input_ids"] == theirs(text)["input_ids"], work.name
        assert ours(lines)["input_ids"] == theirs(lines)["input_ids"], work.name


@pytest.mark.parametrize("clean", [False, True])
def test_texts(pair, data_folder: Path, clean: bool) -> None:
    files = sorted((data_folder / "text").glob("*.txt"))
    assert files
    for file in files:
        assert_same(*pair[clean], file.read_text(encoding="utf-8", errors="replace")[:25_000])


def test_characters(pair) -> None:
    """Every character to U+33FF, and a sample of the others (all of them were compared once)."""
    theirs, ours = pair[False]
    codes = [*range(0x3400), *random.Random(21).sample(range(0xE000, 0x110000), 4000)]
    for code in codes:
        assert ours.tokenize(chr(code)) == theirs.tokenize(chr(code)), hex(code)


def test_cleaned_texts(pair) -> None:
    draw = random.Random(22)
    inner = pair[True][0].subword_tokenizer
    for _ in range(20_000):
        text = "".join(draw.choices(FRAGMENTS, k=draw.randint(1, 14)))
        assert clean_text(text) == inner.clean_text(text), text


def test_ids(pair) -> None:
    theirs, ours = pair[False]
    draw = random.Random(23)
    for _ in range(2000):
        ids = [draw.randrange(32000) for _ in range(draw.randint(0, 8))]
        skip = draw.random() < 0.5
        assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip), ids
        assert ours.convert_ids_to_tokens(ids) == theirs.convert_ids_to_tokens(ids), ids


def test_saved_by_one_is_read_by_the_other(pair, tmp_path: Path) -> None:
    theirs, ours = pair[False]
    text = "慶應,é 😀<|endoftext|>\n"
    theirs.save_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    for name in ("vocab.txt", "emoji.json", "added_tokens.json"):
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes()
    crossed = GPTNeoXJapaneseTokenizer.from_pretrained(tmp_path / "theirs")
    assert crossed(text) == ours(text)
    assert crossed.get_vocab() == ours.get_vocab()
    back = transformers.GPTNeoXJapaneseTokenizer.from_pretrained(tmp_path / "ours")
    assert dict(back(text)) == ours(text)
    assert back.get_vocab() == ours.get_vocab()


def random_options(draw: random.Random) -> dict[str, Any]:
    choices = {
        "padding": [True, False, "longest", "max_length", "do_not_pad"],
        "truncation": [True, False, "longest_first", "only_first", "only_second"],
        "max_length": [0, 1, 3, 5, 8],
        "stride": [0, 1, 3],
        "pad_to_multiple_of": [1, 4],
        "padding_side": ["left", "right"],
        "return_tensors": ["np"],
        **{
            f"return_{name}": [True, False]
            for name in (
                "token_type_ids",
                "attention_mask",
                "overflowing_tokens",
                "special_tokens_mask",
                "length",
            )
        },
    }
    return {name: draw.choice(values) for name, values in choices.items() if draw.random() < 0.35}


def outcome(tokenizer: Any, given: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """What a call returns, arrays as lists; or that it is refused, as rows of different lengths are by us."""
    try:
        result = dict(tokenizer(*given, **options))
    except (RefimplError, ValueError, AssertionError):
        return "refused"
    if any(isinstance(value, np.ndarray) and value.dtype == object for value in result.values()):
        return "refused"
    return {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in result.items()}


def test_batches(tmp_path: Path) -> None:
    content = json.loads((GOLDEN / "japanese_toy.json").read_text(encoding="utf-8"))
    (tmp_path / "vocab.txt").write_text("\n".join(content["lines"]), encoding="utf-8")
    (tmp_path / "emoji.json").write_text(json.dumps({k: content[k] for k in ("emoji", "emoji_inv")}))
    files = [str(tmp_path / "vocab.txt"), str(tmp_path / "emoji.json")]
    draw = random.Random(24)
    parts = ["こんにちは", "、", "世界", " ", "😀", "<|endoftext|>", "X", "XY", "猫", ""]
    compared = 0
    for _ in range(60):
        fixed = {
            "unk_token": "<unk>",
            "padding_side": draw.choice(["left", "right"]),
            "truncation_side": draw.choice(["left", "right"]),
            "model_max_length": draw.choice([None, 4, 9]),
        }
        theirs = transformers.GPTNeoXJapaneseTokenizer(*files, **fixed)
        ours = GPTNeoXJapaneseTokenizer(*files, **fixed)
        flags = {name: draw.random() < 0.4 for name in ("lstrip", "rstrip", "single_word", "special")}
        added = theirs.add_tokens([transformers.AddedToken("X", **flags), "XY"])
        assert ours.add_tokens([AddedToken("X", **flags), "XY"]) == added
        assert ours.get_vocab() == theirs.get_vocab()
        for _ in range(40):
            texts = ["".join(draw.choices(parts, k=draw.randint(0, 5))) for _ in range(draw.randint(1, 4))]
            given = draw.choice([(texts[0],), (texts,), (texts[0], texts[-1]), (texts, texts[::-1])])
            options = random_options(draw)
            expected, found = outcome(theirs, given, options), outcome(ours, given, options)
            if expected == "refused" and options.get("return_overflowing_tokens"):
                continue  # a batch of which only some texts overflow stops transformers
            assert found == expected, (fixed, flags, given, options)
            compared += 1
    assert compared > 1800
