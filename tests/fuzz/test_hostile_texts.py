"""Texts of one thing over and over: the compiled form gives what the plain form gives."""

from __future__ import annotations

from typing import Any

import pytest

from refimpl.cli.bench.hostile import FAMILIES, Make
from refimpl.cli.bench.texts import filled
from refimpl.tokenizer import GPTNeoXJapaneseTokenizer, GPTNeoXTokenizerFast, PreTrainedTokenizer, kernels
from tests.tokenizer.conftest import expand
from tests.tokenizer.neox_toy import MERGES, added, content, vocabulary, write

SIZE = 20_000


def repeated(unit: str) -> Make:
    return lambda size: filled(unit, size)


#: Beside those that are measured: what one rule or another looks far ahead or far back for.
MORE: dict[str, Make] = {
    "marks of falling classes": lambda size: filled("a" + "\u0345\u0301\u0323\u05b0" * (size // 8), size),
    "two classes by turns": lambda size: filled("e" + "\u0301\u0323" * (size // 4), size),
    "marks without a letter": repeated("\u0300"),
    "leading jamo": repeated("\u1100"),
    "Hangul syllables and tails": repeated("가\u11a8"),
    "end of text": repeated("<|endoftext|>"),
    "beginnings of tokens": repeated("<|endoftext"),
    "tags": repeated("<SP><|byte227|><|emoji1|>"),
    "joined emoji": repeated("👩\u200d"),
    "emoticons in each other": repeated("(^_^"),
    "spaces and letters": repeated("a  "),
    "spaces of many kinds": repeated(" \u3000\u00a0\u2003\t"),
    "spaces, then a letter": lambda size: " " * (size - 1) + "a",
    "contractions": repeated("'ll've"),
    "a letter, then quotes": lambda size: "a" + "'" * (size - 1),
    "digits and commas": repeated("1,"),
    "mail hosts": lambda size: filled("a@" + "b." * size, size),
    "dates": repeated("1月1日"),
    "telephones": repeated("03-1234-"),
    "NUL": repeated("\x00"),
    "highest character": repeated("\U0010ffff"),
}
ALL = {**FAMILIES, **MORE}


@pytest.fixture(scope="module", autouse=True)
def at_once() -> Any:
    """Kernels are used from the first character on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "_BREAK_EVEN", 0)
        yield


@pytest.fixture(scope="module")
def japanese(tmp_path_factory: pytest.TempPathFactory) -> dict[str, GPTNeoXJapaneseTokenizer]:
    folder = expand("japanese_sparse.json", tmp_path_factory.mktemp("hostile") / "japanese")
    return {
        impl: GPTNeoXJapaneseTokenizer(folder / "vocab.txt", folder / "emoji.json", impl=impl)
        for impl in ("fast", "plain")
    }


@pytest.fixture(scope="module")
def japanese_cleaned(tmp_path_factory: pytest.TempPathFactory) -> dict[str, GPTNeoXJapaneseTokenizer]:
    folder = expand("japanese_sparse.json", tmp_path_factory.mktemp("hostile") / "cleaned")
    return {
        impl: GPTNeoXJapaneseTokenizer(
            folder / "vocab.txt", folder / "emoji.json", do_clean_text=True, impl=impl
        )
        for impl in ("fast", "plain")
    }


@pytest.fixture(scope="module")
def neox(tmp_path_factory: pytest.TempPathFactory) -> dict[str, GPTNeoXTokenizerFast]:
    """With merges that make long tokens of what is repeated, and added tokens of spaces as in the 20B vocabulary."""
    file = content()
    merges = [*MERGES, "ĠĠ ĠĠ", "aaaa aaaa", "' '", "'' ''", "< |", "1 1", "Ċ Ċ", "Ì ģ", "Ì £"]
    tokens = [*vocabulary(), *(merge.replace(" ", "") for merge in merges[len(MERGES) :])]
    file["model"] |= {"vocab": {token: index for index, token in enumerate(tokens)}, "merges": merges}
    file["added_tokens"] = [
        *file["added_tokens"][:2],
        *(added(len(tokens) + n, " " * n, normalized=True) for n in range(2, 25)),
    ]
    path = write(tmp_path_factory.mktemp("hostile"), file)
    return {impl: GPTNeoXTokenizerFast(tokenizer_file=path, impl=impl) for impl in ("fast", "plain")}


def check(tokenizers: dict[str, Any], text: str, offsets: bool) -> None:
    fast: PreTrainedTokenizer = tokenizers["fast"]
    assert fast._compiled(1) is not None  # type: ignore[attr-defined]
    plain = tokenizers["plain"].encode_text(text, offsets=offsets)
    assert fast.encode_text(text, offsets=offsets) == plain
    assert len(plain.ids) <= 4 * len(text) + 4


@pytest.mark.parametrize("family", ALL)
def test_japanese(japanese: Any, family: str) -> None:
    check(japanese, ALL[family](SIZE), offsets=True)


@pytest.mark.parametrize("family", ALL)
def test_japanese_with_clean_text(japanese_cleaned: Any, family: str) -> None:
    check(japanese_cleaned, ALL[family](SIZE), offsets=False)


@pytest.mark.parametrize("family", ALL)
def test_neox(neox: Any, family: str) -> None:
    text = ALL[family](SIZE)
    check(neox, text, offsets=True)
    assert neox["fast"].decode(neox["fast"].encode(text)) == neox["plain"].decode(neox["plain"].encode(text))


def test_families_differ() -> None:
    assert len({make(SIZE) for make in ALL.values()}) == len(ALL) >= 20
    assert all(SIZE - 8 < len(make(SIZE).encode()) <= SIZE for make in ALL.values())
