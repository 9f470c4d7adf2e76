"""The `tokenizers` package and transformers, side by side: ids, offsets, word numbers, texts, saved files."""

from __future__ import annotations

import os
import random
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from refimpl.tokenizer import AddedToken, GPTNeoXTokenizerFast
from refimpl.tokenizer.byte_level import nfc
from refimpl.tokenizer.unicode_classes import (
    INERT,
    LETTERS,
    NUMBERS,
    SPACES,
    WORD_CHARACTERS,
    CharacterClass,
)

tokenizers = pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("ignore")

SCALARS = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000]

MARKS = (
    "\u0300\u0301\u0307\u0308\u0323\u0327\u0331\u0334\u0345\u093c\u094d\u3099\u309a\u05b0\u064b\u0f71\u0f72\u0f74"
    "\u1abf\u0898\U00010d24\u0344\u0340\u0f73\u09be\u09d7\u0dcf\u0dca\u1161\u11a8\u11a7\U00011930\U000113b8"
)
BASES = (
    "aesltvrdmAéßΩжあ漢字가각𝒳ʼ\u0958\u0f43\u212b\u2126\u1e0b\u1e69\u09c7\u0dd9\u0ddc\u1100\ufb1d"
    "\U00011935\U00011938\U000113c2\U000105d2\U000105c9\U0001d15e"
)
SPACE = " \t\n\r\x0b\x0c\x1c\x1f\x85\xa0\u1680\u2003\u2028\u202f\u3000\u180e\u200b\ufeff"
DIGITS = "0123٣४Ⅷ½²𝟘\U00010d30〇"
OTHERS = "'!?.,-<>|_\"—…🦙\u200d\ufe0f\ue000\U0010ffff\ufffe\x00\x7f\u20dd"
FRAGMENTS = [
    *(
        "'s",
        "'t",
        "'re",
        "'ve",
        "'m",
        "'ll",
        "'d",
        "'S",
        " '",
        "''s",
        "Hello",
        " world",
        "\r\n",
        "世界",
        "e\u0301",
    ),
    *(
        "<|endoftext|>",
        "<|padding|>",
        "<|endof",
        "  ",
        " " * 8,
        " " * 23,
        " " * 25,
        " " * 50,
        "def f(x):\n    ",
    ),
]


def hostile(draw: random.Random, longest: int = 14) -> str:
    """Any mixture of marks, spaces, contractions, added tokens, jamo, digits of other scripts and the rest."""
    parts: list[str] = []
    for _ in range(draw.randint(0, longest)):
        kind = draw.choice([FRAGMENTS, FRAGMENTS, MARKS, MARKS, SPACE, BASES, DIGITS, OTHERS, None])
        if kind is None:
            code = draw.randrange(draw.choice([0x80, 0x800, 0x3100, 0xD800, 0x20000, 0x110000]))
            parts.append("?" if 0xD800 <= code < 0xE000 else chr(code))
        else:
            parts.append(draw.choice(kind))
    return "".join(parts)


@pytest.fixture(scope="module")
def file(data_folder: Path) -> Path:
    return data_folder / "neox20b" / "tokenizer.json"


def theirs_with(file: Path, prefix_space: bool = False, trim: bool = True) -> Any:
    theirs = tokenizers.Tokenizer.from_file(str(file))
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    theirs.post_processor = tokenizers.processors.ByteLevel(add_prefix_space=prefix_space, trim_offsets=trim)
    return theirs


def ours_with(file: Path, prefix_space: bool = False, trim: bool = True, impl: str = "plain") -> Any:
    return GPTNeoXTokenizerFast(
        tokenizer_file=file, add_prefix_space=prefix_space, trim_offsets=trim, impl=impl
    )


def assert_same(theirs: Any, ours: Any, texts: Iterable[str]) -> None:
    """Ids, tokens, offsets and word numbers of all texts."""
    texts = list(texts)
    encodings = theirs.encode_batch(texts)
    for text, encoding, found in zip(texts, encodings, ours.encode_texts(texts, offsets=True), strict=True):
        assert found.ids == encoding.ids, text[:200]
        assert found.offsets == encoding.offsets, text[:200]
        assert found.words == encoding.word_ids, text[:200]
        tokens = found.tokens or ours.convert_ids_to_tokens(found.ids)
        assert tokens == encoding.tokens, text[:200]
        assert ours.decode(found.ids) == theirs.decode(encoding.ids, skip_special_tokens=False), text[:200]


@pytest.mark.parametrize("impl", ["plain", "fast"])
@pytest.mark.parametrize("trim", [True, False])
@pytest.mark.parametrize("prefix_space", [False, True])
def test_random_texts(file: Path, prefix_space: bool, trim: bool, impl: str) -> None:
    draw = random.Random(2 * prefix_space + trim)
    theirs, ours = theirs_with(file, prefix_space, trim), ours_with(file, prefix_space, trim, impl)
    for _ in range(60):
        assert_same(theirs, ours, [hostile(draw) for _ in range(200)])


def assert_same_ids(theirs: Any, ours: Any, texts: list[str]) -> None:
    for text, encoding, found in zip(
        texts, theirs.encode_batch(texts), ours.encode_texts(texts), strict=True
    ):
        assert found.ids == encoding.ids, text[:200]


def test_many_random_texts(file: Path) -> None:
    """The ids alone, of REFIMPL_STRINGS texts, by the compiled form."""
    draw = random.Random(25)
    theirs, ours = theirs_with(file), ours_with(file, impl="fast")
    for _ in range(int(os.environ.get("REFIMPL_STRINGS", "100000")) // 1000):
        assert_same_ids(theirs, ours, [hostile(draw) for _ in range(1000)])


def test_works(data_folder: Path, file: Path) -> None:
    """Whole works and line by line: 200 of Aozora Bunko with REFIMPL_WORKS=200; every line of the other texts."""
    theirs, ours = theirs_with(file), ours_with(file, impl="fast")
    works = sorted((data_folder / "aozora").glob("*.txt"))
    step = max(1, len(works) // int(os.environ.get("REFIMPL_WORKS", "20")))
    texts = [work.read_text(encoding="utf-8") for work in works[::step]]
    texts += [text for _, text in texts_of(data_folder)]
    for text in texts:
        assert_same_ids(theirs, ours, [text, *text.splitlines()])


def texts_of(data_folder: Path) -> Iterator[tuple[str, str]]:
    for path in sorted((data_folder / "text").iterdir()):
        yield path.name, path.read_bytes().decode("utf-8", "replace")


@pytest.mark.parametrize("name", ["neox20b", "gpt2"])
def test_texts(data_folder: Path, name: str) -> None:
    """Every file as a whole and line by line."""
    folder = data_folder / name
    if name == "gpt2":
        model = tokenizers.models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
        theirs = tokenizers.Tokenizer(model)
        theirs.normalizer = tokenizers.normalizers.NFC()
        theirs.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        theirs.post_processor = tokenizers.processors.ByteLevel(trim_offsets=True, add_prefix_space=False)
        theirs.decoder = tokenizers.decoders.ByteLevel()
        theirs.add_special_tokens(["<|endoftext|>"])
    else:
        theirs = theirs_with(folder / "tokenizer.json")
    ours = GPTNeoXTokenizerFast.from_pretrained(folder)
    texts = dict(texts_of(data_folder))
    assert len(texts) > 10
    for text in texts.values():
        lines = text.splitlines(keepends=True)
        assert_same(theirs, ours, [text, *lines[:: 1 + len(lines) // 1500]])


def test_plain_texts(data_folder: Path, file: Path) -> None:
    theirs, ours = theirs_with(file), ours_with(file)
    for _, text in texts_of(data_folder):
        assert_same(theirs, ours, [text[:20_000], *text[:100_000].splitlines()[::20]])


def test_every_character(file: Path) -> None:
    """Alone, and between a letter and a digit, so that its class shows in the word numbers."""
    theirs, ours = theirs_with(file), ours_with(file, impl="fast")
    codes = [*range(0x3400), *random.Random(4).sample(SCALARS, 20_000), *CharacterClass(INERT).firsts]
    for first in range(0, len(codes), 5000):
        block = [code for code in codes[first : first + 5000] if not 0xD800 <= code < 0xE000]
        assert_same(theirs, ours, [f"a{chr(code)}1" for code in block])


# ---- the tables


@pytest.mark.parametrize(("table", "pattern"), [(LETTERS, r"\p{L}"), (NUMBERS, r"\p{N}"), (SPACES, r"\s")])
def test_classes(table: str, pattern: str) -> None:
    remover = tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern), "removed")
    members = CharacterClass(table)
    for first in range(0, len(SCALARS), 4096):
        block = SCALARS[first : first + 4096]
        kept = "".join(piece for piece, _ in remover.pre_tokenize_str("".join(map(chr, block))))
        assert kept == "".join(chr(code) for code in block if code not in members)


def test_word_characters() -> None:
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={"x": 0}, merges=[]))
    theirs.add_tokens([tokenizers.AddedToken("@@", single_word=True, normalized=False)])
    members = CharacterClass(WORD_CHARACTERS)
    encodings = theirs.encode_batch([chr(code) + "@@" for code in SCALARS])
    for code, encoding in zip(SCALARS, encodings, strict=True):
        assert (1 in encoding.ids) == (code not in members), hex(code)


def test_normalisation_of_every_character() -> None:
    theirs = tokenizers.normalizers.NFC().normalize_str
    for code in SCALARS:
        assert nfc(chr(code)) == theirs(chr(code)), hex(code)


def test_normalisation_of_every_mark_between_others() -> None:
    theirs = tokenizers.normalizers.NFC().normalize_str
    inert = CharacterClass(INERT)
    marks = [code for code in SCALARS if unicodedata.combining(chr(code)) or code in inert]
    assert len(marks) > 900
    for code in marks:
        c = chr(code)
        for text in (
            f"a\u0334{c}\u0301\u0323{c}\u093c",
            f"e{c}\u0301",
            f"e\u0323{c}",
            f"{c}\u0334{c}",
            f"가{c}\u11a8",
        ):
            assert nfc(text) == theirs(text), ascii(text)


def test_normalisation_of_pairs() -> None:
    """All pairs that any known version of Unicode composes, and random rows."""
    theirs = tokenizers.normalizers.NFC().normalize_str
    draw = random.Random(5)
    inert = CharacterClass(INERT)
    new = [chr(code) for code in SCALARS if code in inert]
    parts = [unicodedata.decomposition(chr(code)) for code in SCALARS]
    pairs = ["".join(chr(int(c, 16)) for c in part.split()) for part in parts if part and "<" not in part]
    pairs += [a + b for a in new for b in new] + [a + "\u0307" for a in new]
    rows = ["".join(draw.choice([*MARKS, *BASES, *new]) for _ in range(8)) for _ in range(20_000)]
    for text in [*pairs, *rows]:
        assert nfc(text) == theirs(text), ascii(text)


# ---- added tokens


CONTENTS = [
    *(
        "<m>",
        "<m",
        "m>",
        "ab",
        "b",
        " ",
        "  ",
        "\n",
        "é",
        "e\u0301",
        "é!",
        "\u0301",
        "Ω",
        "\u212b",
        "a\u0323",
        "x",
    ),
    *("日本", "\u3099", "'s", " a", "\ta", "<|endoftext|>", "Hello", "Ġ"),
]


def random_tokens(draw: random.Random) -> list[dict[str, Any]]:
    tokens: dict[str, dict[str, Any]] = {}
    for content in draw.sample(CONTENTS, draw.randint(1, 6)):
        options = {name: draw.random() < 0.25 for name in ("single_word", "lstrip", "rstrip")}
        options["rstrip"] &= bool(content.strip())  # our one difference: see AddedTokenFinder.find
        options |= {name: draw.random() < 0.5 for name in ("special", "normalized")}
        looks = unicodedata.normalize("NFC", content) if options["normalized"] else f"raw {content}"
        tokens.setdefault(looks, {"content": content, **options})  # they cannot have two that look the same
    return list(tokens.values())


def test_random_added_tokens() -> None:
    draw = random.Random(6)
    for round_ in range(120):
        prefix_space, trim, split = (draw.random() < p for p in (0.3, 0.5, 0.3))
        model = tokenizers.models.BPE(vocab=TOY, merges=TOY_MERGES)
        theirs = tokenizers.Tokenizer(model)
        theirs.normalizer = tokenizers.normalizers.NFC()
        theirs.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
        theirs.post_processor = tokenizers.processors.ByteLevel(
            trim_offsets=trim, add_prefix_space=prefix_space
        )
        theirs.encode_special_tokens = split
        ours = GPTNeoXTokenizerFast(
            vocab=TOY,
            merges=TOY_MERGES,
            add_prefix_space=prefix_space,
            trim_offsets=trim,
            split_special_tokens=split,
            impl="plain" if round_ % 2 else "fast",
        )
        tokens = random_tokens(draw)
        theirs.add_tokens([tokenizers.AddedToken(**token) for token in tokens])
        ours.add_tokens([AddedToken(**token) for token in tokens])
        assert ours.get_added_vocab() == {
            token.content: index for index, token in theirs.get_added_tokens_decoder().items()
        }
        pool = [*FRAGMENTS, *SPACE, *MARKS, *BASES, *OTHERS, *[token["content"] for token in tokens] * 9]
        for _ in range(100):
            text = "".join(draw.choice(pool) for _ in range(draw.randint(0, 10)))
            try:
                encoding = theirs.encode(text)
            except BaseException as error:  # "AddedVocabulary bad split": a token swallowed by two others
                if "Panic" not in type(error).__name__:
                    raise
                continue
            found = ours.encode_text(text, offsets=True)
            assert (found.ids, found.offsets, found.words) == (
                encoding.ids,
                encoding.offsets,
                encoding.word_ids,
            ), (text, tokens, prefix_space, trim, split)
            assert (found.tokens or ours.convert_ids_to_tokens(found.ids)) == encoding.tokens, (text, tokens)
            assert ours.encode_text(text).ids == encoding.ids


ALPHABET = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
TOY_MERGES = [("Ġ", "Ġ"), ("l", "l"), ("e", "ll"), ("Ã", "©"), ("H", "ell"), ("Hell", "o"), ("Ġ", "a")]
TOY = {t: i for i, t in enumerate(dict.fromkeys([*ALPHABET, *(a + b for a, b in TOY_MERGES)]))}


# ---- transformers' class


@pytest.fixture(scope="module")
def pair(data_folder: Path) -> tuple[Any, GPTNeoXTokenizerFast]:
    folder = data_folder / "neox20b"
    return transformers.GPTNeoXTokenizer.from_pretrained(folder), GPTNeoXTokenizerFast.from_pretrained(folder)


def test_the_class(pair: Any) -> None:
    theirs, ours = pair
    assert (len(ours), ours.vocab_size) == (len(theirs), theirs.vocab_size)
    assert ours.special_tokens_map == theirs.special_tokens_map
    assert ours.all_special_ids == theirs.all_special_ids
    assert ours.get_vocab() == theirs.get_vocab()
    assert ours.get_added_vocab() == theirs.get_added_vocab()
    assert ours.is_fast
    assert ours.is_fast == theirs.is_fast
    for token in ("Hello", "ĠHello", "nothing like it", "<|padding|>", "   "):
        assert ours.convert_tokens_to_ids(token) == theirs.convert_tokens_to_ids(token)


def test_ids_of_the_padding(pair: Any) -> None:
    theirs, ours = pair
    assert theirs.convert_ids_to_tokens([50_300]) == [None]
    assert ours.convert_ids_to_tokens([50_300]) == [""]
    assert ours.decode([12092, 50_300]) == theirs.decode([12092, 50_300]) == "Hello"


def test_random_ids(pair: Any) -> None:
    theirs, ours = pair
    draw = random.Random(7)
    for _ in range(2000):
        ids = [draw.randrange(50_432) for _ in range(draw.randint(0, 12))]
        for skip in (False, True):
            assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("eos", [False, True])
def test_tokens_around_texts(data_folder: Path, tmp_path: Path, bos: bool, eos: bool) -> None:
    folder = data_folder / "neox20b"
    settings = {"add_bos_token": bos, "add_eos_token": eos, "pad_token": "<|padding|>"}
    theirs = transformers.GPTNeoXTokenizer.from_pretrained(folder, **settings)
    ours = GPTNeoXTokenizerFast.from_pretrained(folder, **settings)
    wanted = {
        "return_token_type_ids": True,
        "return_special_tokens_mask": True,
        "padding": "max_length",
        "max_length": 20,
        "truncation": True,
    }
    for inputs in (("Hello  world",), ("Hello", " there it is")):
        assert dict(ours(*inputs, **wanted)) == dict(theirs(*inputs, **wanted))
    # What either writes, the other and `tokenizers` read.
    theirs.save_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    text = "Hello  <|endoftext|> e\u0301\n"
    assert GPTNeoXTokenizerFast.from_pretrained(tmp_path / "theirs").encode(text) == theirs.encode(text)
    read = tokenizers.Tokenizer.from_file(str(tmp_path / "ours" / "tokenizer.json"))
    assert read.encode(text).ids == ours.encode(text)
    assert read.encode("a", "b").ids == ours.encode("a", "b")
    assert read.encode("a", "b").type_ids == ours("a", "b", return_token_type_ids=True)["token_type_ids"]
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert type(again).__name__ == "GPTNeoXTokenizer"
    assert again.encode(text, add_special_tokens=False) == ours.encode(text, add_special_tokens=False)
    assert again.special_tokens_map == ours.special_tokens_map


def test_the_files_of_gpt2(data_folder: Path) -> None:
    theirs = transformers.GPTNeoXTokenizer.from_pretrained(data_folder / "gpt2")
    ours = GPTNeoXTokenizerFast.from_pretrained(data_folder / "gpt2")
    draw = random.Random(8)
    texts = [hostile(draw).replace("<|padding|>", "") for _ in range(2000)]
    assert [ours.encode(text) for text in texts] == theirs(texts)["input_ids"]
    assert (len(theirs), len(ours)) == (50_258, 50_257)  # theirs makes a <|padding|>
    without = transformers.GPT2Tokenizer.from_pretrained(data_folder / "gpt2")
    raw = GPTNeoXTokenizerFast.from_pretrained(data_folder / "gpt2", nfc=False)
    assert [raw.encode(text) for text in texts] == without(texts)["input_ids"]
