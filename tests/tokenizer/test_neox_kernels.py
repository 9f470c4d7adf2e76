"""The compiled form of the GPT-NeoX tokenizer gives what the plain form gives, for any vocabulary and text."""

from __future__ import annotations

import itertools
import pickle
import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refimpl.errors import InputError, TextInputError
from refimpl.tokenizer import AddedToken, GPTNeoXTokenizerFast, kernels
from refimpl.tokenizer.byte_level import BYTE_CHARACTERS
from tests.tokenizer import neox_toy

SEEDED = settings(max_examples=300, deadline=None, derandomize=True)

PIECES = [
    *" \t\n\r\x0b\x1c\x85\xa0\u3000'stremvdlTaAbé1²٣Ⅷ中ガ!?.<|\x00\u0301\u0316\u3099\u07fd\ufe0f\u200d🦙\U0010ffff",
    *[
        "'s",
        "'re",
        "'LL",
        "  ",
        " " * 7,
        "Hello",
        " world",
        "the",
        "aaaa",
        "e\u0301",
        "か\u3099",
        "<|endoftext|>",
    ],
    *["<|padding|>", "<|end", "\r\n", " the", "\u1112\u1161\u11ab", "12,5"],
]
TEXTS = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=3)), max_size=12).map("".join)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels are used from the first character on."""
    monkeypatch.setattr(kernels, "_BREAK_EVEN", 0)


def both(**options: Any) -> tuple[GPTNeoXTokenizerFast, GPTNeoXTokenizerFast]:
    made = []
    for impl in ("fast", "plain"):
        tokenizer = neox_toy.toy(impl=impl, **options)
        tokenizer.add_tokens([AddedToken(" " * n, normalized=True) for n in (3, 5, 2)])
        made.append(tokenizer)
    return made[0], made[1]


@pytest.fixture(
    scope="module", params=[{}, {"add_prefix_space": True}, {"nfc": False}, {"trim_offsets": False}]
)
def pair(request: pytest.FixtureRequest) -> tuple[GPTNeoXTokenizerFast, GPTNeoXTokenizerFast]:
    return both(**request.param)


@SEEDED
@given(texts=st.lists(TEXTS, max_size=4), split=st.booleans())
def test_ids_are_equal(pair, texts: list[str], split: bool) -> None:
    fast, plain = pair
    found = fast.encode_texts(texts, split_special_tokens=split)
    assert found == plain.encode_texts(texts, split_special_tokens=split)
    assert fast._encoder is not None


@SEEDED
@given(texts=st.lists(TEXTS, max_size=3))
def test_offsets_are_equal(pair, texts: list[str]) -> None:
    fast, plain = pair
    assert fast.encode_texts(texts, offsets=True) == plain.encode_texts(texts, offsets=True)


def test_every_character(pair) -> None:
    fast, plain = pair
    codes = [*range(0x3400), *range(0x3400, 0x110000, 97)]
    texts = [f"a{chr(code)}1 {chr(code)}" for code in codes if not 0xD800 <= code < 0xE000]
    assert fast.encode_texts(texts) == plain.encode_texts(texts)


def test_the_texts_of_a_batch_do_not_touch(pair) -> None:
    fast, plain = pair
    texts = ["He", "llo", " ", " ", "'", "s", "", "e", "\u0301", "<|end", "oftext|>", "a", "a"]
    assert fast.encode_texts(texts) == plain.encode_texts(texts)
    assert [fast.encode_text(text) for text in texts] == plain.encode_texts(texts)


def test_words_of_every_length(pair) -> None:
    """Those that are remembered, those that are too long for it, and those for which memory must grow."""
    fast, plain = pair
    draw = random.Random(2)
    texts = [
        "".join(draw.choices("aHelotw'é", k=length)) for length in [*range(40), 255, 256, 257, 600, 5000]
    ]
    for _ in range(2):
        assert fast.encode_texts(texts) == plain.encode_texts(texts)


def test_any_merges() -> None:
    draw = random.Random(3)
    for _ in range(60):
        tokens = list("abc")
        merges = {}
        for _ in range(draw.randint(0, 12)):
            left, right = draw.choice(tokens), draw.choice(tokens)
            merges[left, right] = None
            tokens += [left + right] if left + right not in tokens else []
        order = list(merges)
        draw.shuffle(order)  # ranks need not follow the order in which tokens can be made
        vocabulary = {
            token: i for i, token in enumerate(dict.fromkeys([*tokens, *BYTE_CHARACTERS, "<|endoftext|>"]))
        }
        fast, plain = (
            GPTNeoXTokenizerFast(vocab=vocabulary, merges=order, impl=impl) for impl in ("fast", "plain")
        )
        texts = ["".join(draw.choices("abc", k=draw.randint(0, 25))) for _ in range(40)]
        assert fast.encode_texts(texts) == plain.encode_texts(texts), order


@pytest.mark.parametrize(
    "token",
    [
        AddedToken("Hello", normalized=True),
        AddedToken("ll", lstrip=True, normalized=False),
        AddedToken(" w", rstrip=True, normalized=True),
        AddedToken("the", single_word=True, normalized=False),
        AddedToken("e\u0301", normalized=True),
        AddedToken("\x00", normalized=False),
        AddedToken("🦙", special=True),
    ],
)
def test_tokens_added_later(token: AddedToken) -> None:
    fast, plain = both()
    texts = ["Hello  the llama\x00 🦙 w\n é e\u0301", "thethe the ll", "🦙🦙"]
    assert fast.encode_texts(texts) == plain.encode_texts(texts)
    for tokenizer in (fast, plain):
        tokenizer.add_tokens([token])
    assert fast.encode_texts(texts) == plain.encode_texts(texts)
    assert fast.encode_texts(texts, offsets=True) == plain.encode_texts(texts, offsets=True)


def test_a_lone_surrogate_is_reported_as_ever(pair) -> None:
    fast, _ = pair
    with pytest.raises(TextInputError) as caught:
        fast.encode_texts(["a", "b\ud800"])
    assert (caught.value.position, caught.value.where) == (1, "text 1")
    assert fast.encode_text("a\ud800", surrogates="replace").ids == fast.encode_text("a\ufffd").ids


def test_a_pickled_copy_encodes_too(pair) -> None:
    fast, _ = pair
    assert pickle.loads(pickle.dumps(fast)).encode_text(" the") == fast.encode_text(" the")


def test_calls_side_by_side(pair) -> None:
    fast, plain = pair
    texts = ["".join(words) for words in itertools.product(["Hello", " the", "  ", "é"], repeat=4)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda text: fast.encode_text(text).ids, texts * 4))
    assert found == [plain.encode_text(text).ids for text in texts] * 4


def test_threads_share_a_large_batch() -> None:
    texts = ["Hello the world\n" * draw for draw in range(400)]
    alone, shared = (neox_toy.toy(impl="fast", threads=threads) for threads in (1, 3))
    assert shared.encode_texts(texts) == alone.encode_texts(texts)
    assert shared.encode_texts(["a" * 300_000, "", "b"]) == alone.encode_texts(["a" * 300_000, "", "b"])
    for wrong in (0, -1, True, "2", 1.0):
        with pytest.raises(InputError, match="threads is wrong"):
            neox_toy.toy(threads=wrong)
