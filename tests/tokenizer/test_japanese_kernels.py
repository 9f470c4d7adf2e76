"""The compiled form of the Japanese tokenizer gives what the plain form gives, for any vocabulary and text."""

from __future__ import annotations

import itertools
import pickle
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from refimpl.errors import TextInputError
from refimpl.tokenizer import AddedToken, GPTNeoXJapaneseTokenizer, kernels
from tests.tokenizer.conftest import write_vocabulary

SEEDED = settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

PIECES = [
    *" \u3000\t\n\r—−<>|()_^;.,-0123456789円年月日@:/ぁあいうアイウ日本慶応應①ｱé한𠮷¡˿‖⯿",
    *"\x00\ud7ff\ue000\uffff\U0010ffff",
    *["\r\n", "<SP>", "<|byte65|>", "<|emoji1|>", "<|endoftext|>", "<|startoftext|>", "<|", "|>", "<S", "P>"],
    *[
        "(^_^)",
        ">_<",
        "😀",
        "👍🏽",
        "👨‍👩‍👧",
        "🇯🇵",
        "\ufe0f",
        "\u200d",
        "☺️",
        "2020年",
        "1,000円",
        "http://a.b",
    ],
]
TEXTS = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=3)), max_size=10).map("".join)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels are used from the first character on."""
    monkeypatch.setattr(kernels, "_BREAK_EVEN", 0)


def both(make: Any, **options: Any) -> tuple[GPTNeoXJapaneseTokenizer, GPTNeoXJapaneseTokenizer]:
    fast, plain = make(impl="fast", **options), make(impl="plain", **options)
    assert fast._compiled(1) is not None
    return fast, plain


@pytest.fixture(scope="module", params=["hf", "original"])
def pair(request: pytest.FixtureRequest, make_sparse: Any) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "_BREAK_EVEN", 0)
        return both(make_sparse, compat=request.param)


@SEEDED
@given(texts=st.lists(TEXTS, max_size=4))
def test_ids_are_equal(pair, texts: list[str]) -> None:
    fast, plain = pair
    assert [e.ids for e in fast.encode_texts(texts)] == [e.ids for e in plain.encode_texts(texts)]
    assert fast.encode_texts(texts, split_special_tokens=True) == plain.encode_texts(
        texts, split_special_tokens=True
    )


@SEEDED
@given(texts=st.lists(TEXTS, max_size=3))
def test_offsets_are_equal(pair, texts: list[str]) -> None:
    fast, plain = pair
    assert fast.encode_texts(texts, offsets=True) == plain.encode_texts(texts, offsets=True)


@SEEDED
@given(texts=st.lists(TEXTS, max_size=3))
def test_ids_of_cleaned_texts_are_equal(make_sparse, texts: list[str]) -> None:
    fast, plain = both(make_sparse, do_clean_text=True)
    assert fast.encode_texts(texts) == plain.encode_texts(texts)


def test_every_character(pair) -> None:
    fast, plain = pair
    codes = [*range(0x3400), *range(0x3400, 0x110000, 97)]
    texts = [chr(code) for code in codes if not 0xD800 <= code < 0xE000]
    assert fast.encode_texts(texts) == plain.encode_texts(texts)


def test_every_word_before_and_after_the_smallest_character(pair) -> None:
    fast, plain = pair
    texts = [f"\x00{word}\x00{word}\x01" for word in plain._words.words]
    assert fast.encode_texts(texts) == plain.encode_texts(texts)


def test_the_texts_of_a_batch_do_not_touch(pair) -> None:
    fast, plain = pair
    texts = ["日", "本\r", "\n", "", "(^", "_^)", "<", "SP>", "👍", "🏽"]
    assert fast.encode_texts(texts) == plain.encode_texts(texts)
    assert [fast.encode_text(text) for text in texts] == plain.encode_texts(texts)


# ---- vocabularies that nobody would make

SYMBOLS = "あい<|>e1日(^"


def random_vocabulary(draw: random.Random) -> tuple[list[str], dict[str, dict[str, str]]]:
    def word(longest: int) -> str:
        return "".join(draw.choices(SYMBOLS, k=draw.randint(1, longest)))

    needed = [
        "<SP>",
        "<BR>",
        "<TAB>",
        "<KIGOU>",
        "<U2000U2BFF>",
        "<|endoftext|>",
        "<|startoftext|>",
        "<|emoji1|>",
    ]
    lines = [
        ",".join({word(5) for _ in range(draw.randint(1, 3))}) for _ in range(draw.randint(0, 25))
    ] + needed
    draw.shuffle(lines)
    emoji = {word(3): "<|emoji1|>" for _ in range(draw.randint(0, 8))}
    emoji = {key: tag for key, tag in emoji.items() if key not in tag}
    return lines, {"emoji": emoji, "emoji_inv": {"<|emoji1|>": "^"}}


def test_any_vocabulary(tmp_path: Path) -> None:
    draw = random.Random(5)
    compiled = 0
    for number in range(150):
        folder = write_vocabulary(tmp_path / str(number), *random_vocabulary(draw))
        files = folder / "vocab.txt", folder / "emoji.json"
        fast, plain = (GPTNeoXJapaneseTokenizer(*files, impl=impl) for impl in ("fast", "plain"))
        compiled += fast._compiled(1) is not None
        texts = ["".join(draw.choices(SYMBOLS + " \r\nX", k=draw.randint(0, 12))) for _ in range(40)]
        assert fast.encode_texts(texts) == plain.encode_texts(texts), (number, texts)
    assert 50 < compiled < 150  # the others have emoji that can stand across the border of a tag


def test_an_emoji_across_the_border_of_a_tag_is_left_to_the_plain_form(tmp_path: Path) -> None:
    lines = [
        "あ",
        "<SP>",
        "<BR>",
        "<TAB>",
        "<KIGOU>",
        "<U2000U2BFF>",
        "<|endoftext|>",
        "<|startoftext|>",
        "<|emoji1|>",
    ]
    for key in (">あ", "|>", "あ<|e", "(<|emoji1|>)"):
        emoji = {
            "emoji": {"^": "<|emoji1|>", key + "!": "<|emoji1|>", key: "<|emoji1|>"},
            "emoji_inv": {"<|emoji1|>": "^"},
        }
        emoji["emoji"] = {k: v for k, v in emoji["emoji"].items() if k not in v}
        folder = write_vocabulary(tmp_path / str(len(key)), lines, emoji)
        tokenizer = GPTNeoXJapaneseTokenizer(folder / "vocab.txt", folder / "emoji.json")
        if len(emoji["emoji"]) == 3:
            assert tokenizer._compiled(1) is None


# ---- what changes a tokenizer, and what the compiled form leaves to the plain one


def test_tokens_added_later(make_sparse) -> None:
    fast, plain = both(make_sparse, compat="original")
    texts = ["日本の猫<|endoftext|>", "猫" * 3, "のの 猫"]
    for token in ("猫", " の", "本"):
        for tokenizer in (fast, plain):
            tokenizer.add_tokens([token])
        assert fast.encode_texts(texts) == plain.encode_texts(texts)


def test_a_spelling_that_gets_a_second_id(make_sparse) -> None:
    fast, plain = both(make_sparse, compat="original")
    for tokenizer in (fast, plain):
        tokenizer.add_tokens(AddedToken("慶應", single_word=True))
    assert fast._compiled(1) is None
    assert fast.encode_texts(["の慶應"]) == plain.encode_texts(["の慶應"])


def test_another_unknown_token(make_toy) -> None:
    fast, plain = both(make_toy)
    for unknown in ("<unk>", "世界", None):
        for tokenizer in (fast, plain):
            tokenizer.unk_token = unknown
        if unknown is not None:
            assert fast.encode_texts(["é世界"]) == plain.encode_texts(["é世界"])


def test_dropout_is_drawn_by_the_plain_form(make_sparse) -> None:
    fast, plain = (
        make_sparse(compat="original", bpe_dropout_rate=0.5, seed=3, impl=i) for i in ("fast", "plain")
    )
    assert fast.encode_texts(["日本東京慶應"] * 20) == plain.encode_texts(["日本東京慶應"] * 20)


def test_a_lone_surrogate_is_reported_as_ever(pair) -> None:
    fast, _ = pair
    with pytest.raises(TextInputError) as caught:
        fast.encode_texts(["a", "日\ud800"])
    assert (caught.value.position, caught.value.where) == (1, "text 1")
    assert fast.encode_text("日\ud800", surrogates="replace").ids == fast.encode_text("日\ufffd").ids


def test_a_pickled_copy_encodes_too(pair) -> None:
    fast, _ = pair
    assert pickle.loads(pickle.dumps(fast)).encode_text("日本") == fast.encode_text("日本")


def test_calls_side_by_side(pair) -> None:
    fast, plain = pair
    texts = ["".join(words) for words in itertools.product(["日本", "😀", " ", "é"], repeat=4)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda text: fast.encode_text(text).ids, texts * 4))
    assert found == [plain.encode_text(text).ids for text in texts] * 4


def test_short_texts_do_without_numba(sparse_folder: Path) -> None:
    program = (
        "import sys; from refimpl.tokenizer import GPTNeoXJapaneseTokenizer;"
        f"t = GPTNeoXJapaneseTokenizer({str(sparse_folder / 'vocab.txt')!r}, {str(sparse_folder / 'emoji.json')!r});"
        "t('日本' * 100); before = 'numba' in sys.modules; t('日本' * 60_000); print(before, 'numba' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "True"]
