"""transformers itself, side by side: everything that calls of a tokenizer return, over random settings."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refimpl.errors import RefimplError
from refimpl.tokenizer import AddedToken, GPTNeoXJapaneseTokenizer, GPTNeoXTokenizerFast, PreTrainedTokenizer
from refimpl.tokenizer.byte_level import BYTE_CHARACTERS

os.environ.setdefault("RUST_BACKTRACE", "0")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("ignore")

MERGES = ["a b", "Ġ ab", "c d", "Ġ c", "Ã ©", "e n", "Ġ Ġ", "ã ģ"]
PARTS = [
    "ab",
    "cd",
    " ",
    "  ",
    "\n",
    "a",
    "é",
    "あ",
    "e\u0301",
    "12",
    "'s",
    "<|endoftext|>",
    "X",
    "XY",
    "😀",
    "",
]

# Of these the last is how the Rust code refuses a stride.
THEIR_REFUSALS = ("ValueError", "TypeError", "IndexError", "Exception", "PanicException")


def tiny_vocabulary() -> dict[str, int]:
    tokens = ["<|endoftext|>", "<|padding|>", *BYTE_CHARACTERS, *(merge.replace(" ", "") for merge in MERGES)]
    return {token: index for index, token in enumerate(tokens)}


def random_setting(draw: random.Random) -> dict[str, Any]:
    choices = {
        "add_special_tokens": [True, False],
        "padding": [True, False, "longest", "max_length", "do_not_pad"],
        "truncation": [True, False, "longest_first", "only_first", "only_second"],
        "max_length": [0, 1, 2, 3, 4, 5, 6, 8, 12],
        "stride": [0, 0, 1, 2],
        "pad_to_multiple_of": [1, 4],
        "padding_side": ["left", "right"],
        "return_tensors": ["np"],
        "split_special_tokens": [True, False],
        **{
            f"return_{name}": [True, False]
            for name in (
                "token_type_ids",
                "attention_mask",
                "overflowing_tokens",
                "special_tokens_mask",
                "offsets_mapping",
                "length",
            )
        },
    }
    return {name: draw.choice(values) for name, values in choices.items() if draw.random() < 0.4}


def random_input(draw: random.Random) -> tuple[tuple[Any, ...], dict[str, Any]]:
    def text() -> str:
        return "".join(draw.choices(PARTS, k=draw.randint(0, 6)))

    def words() -> list[str]:
        return [text() for _ in range(draw.randint(0, 4))]

    kind = draw.randrange(9)
    many = range(draw.randint(1, 4))
    if kind == 0:
        return (text(),), {}
    if kind == 1:
        return (text(), text()), {}
    if kind == 2:
        return ([text() for _ in many],), {}
    if kind == 3:
        return ([text() for _ in many], [text() for _ in many]), {}
    if kind == 4:
        return ([draw.choice([text(), (text(), text()), [text(), text()]]) for _ in many],), {}
    split = {"is_split_into_words": True}
    if kind == 5:
        return (words(),), split
    if kind == 6:
        return (words(), words()), split
    if kind == 7:
        return ([words() for _ in many],), split
    return ([(words(), words()) for _ in many],), split


def outcome(tokenizer: Any, given: tuple[Any, ...], settings: dict[str, Any]) -> tuple[Any, Any]:
    """All that a call returns, in its order, arrays as lists; or that it is refused."""
    try:
        result = tokenizer(*given, **settings)
        columns = [(key, value) for key, value in result.items()]
    except RefimplError:
        return "refused", None
    except BaseException as error:
        if (
            isinstance(getattr(tokenizer, "__self__", tokenizer), PreTrainedTokenizer)
            or type(error).__name__ not in THEIR_REFUSALS
        ):
            raise
        return "refused", None
    if any(isinstance(value, np.ndarray) and value.dtype == object for _, value in columns):
        return "refused", None  # rows of different lengths
    lists = [(key, value.tolist() if isinstance(value, np.ndarray) else value) for key, value in columns]
    return lists, result


def mappings(result: Any) -> list[Any]:
    """What the rows of an encoding say about where their tokens come from."""
    found: list[Any] = [len(result.encodings), result.n_sequences, result.is_fast]
    for number, row in enumerate(result.encodings):
        found += [
            result.tokens(number),
            result.word_ids(number),
            result.sequence_ids(number),
            [tuple(span) for span in row.offsets],
            row.special_tokens_mask,
            row.attention_mask,
            [result.token_to_sequence(number, token) for token in range(len(row.ids))],
            [result.token_to_word(number, token) for token in range(len(row.ids))],
            [result.token_to_chars(number, token) for token in range(len(row.ids))],
        ]
        for sequence in range(row.n_sequences):
            found += [result.char_to_token(number, char, sequence) for char in range(12)]
            found += [result.char_to_word(number, char, sequence) for char in range(12)]
            found += [result.word_to_tokens(number, word, sequence) for word in range(5)]
            present = [word for word in range(5) if result.word_to_tokens(number, word, sequence) is not None]
            found += [result.word_to_chars(number, word, sequence) for word in present]
    return found


def compare(draw: random.Random, theirs: Any, ours: Any, count: int) -> int:
    compared = 0
    for _ in range(count):
        given, split = random_input(draw)
        settings = {**random_setting(draw), **split}
        expected, their_result = outcome(theirs, given, settings)
        found, our_result = outcome(ours, given, settings)
        assert found == expected, (given, settings)
        if expected != "refused":
            compared += 1
            assert mappings(our_result) == mappings(their_result), (given, settings)
    return compared


def random_tokenizers(draw: random.Random) -> tuple[Any, GPTNeoXTokenizerFast]:
    """Both tokenizers with the tiny vocabulary, the same settings, and the same added tokens."""
    fixed = {
        "padding_side": draw.choice(["left", "right"]),
        "truncation_side": draw.choice(["left", "right"]),
        "model_max_length": draw.choice([None, None, 5, 9]),
        "add_prefix_space": draw.random() < 0.3,
        "add_bos_token": draw.random() < 0.4,
        "add_eos_token": draw.random() < 0.4,
    }
    vocabulary = tiny_vocabulary()
    theirs = transformers.GPTNeoXTokenizer(
        vocab=vocabulary, merges=[tuple(m.split()) for m in MERGES], **fixed
    )
    # transformers 5 takes trim_offsets and does not obey it
    ours = GPTNeoXTokenizerFast(vocab=vocabulary, merges=MERGES, trim_offsets=False, **fixed)
    if draw.random() < 0.5:
        names = ("lstrip", "rstrip", "single_word", "special", "normalized")
        flags = {name: draw.random() < 0.4 for name in names}
        added = theirs.add_tokens([transformers.AddedToken("X", **flags), "XY"])
        assert ours.add_tokens([AddedToken("X", **flags), "XY"]) == added
    assert ours.get_vocab() == theirs.get_vocab()
    return theirs, ours


def test_calls_with_a_tiny_vocabulary() -> None:
    draw = random.Random(31)
    compared = sum(compare(draw, *random_tokenizers(draw), 60) for _ in range(60))
    assert compared > 1500


def test_calls_with_the_published_vocabulary(data_folder: Path) -> None:
    draw = random.Random(32)
    folder = data_folder / "neox20b"
    theirs = transformers.GPTNeoXTokenizer.from_pretrained(folder)
    ours = GPTNeoXTokenizerFast.from_pretrained(folder, trim_offsets=False)
    assert compare(draw, theirs, ours, 600) > 250


def test_padding_of_rows_that_are_there() -> None:
    draw = random.Random(33)
    for _ in range(20):
        theirs, ours = random_tokenizers(draw)
        for _ in range(20):
            texts = ["".join(draw.choices(PARTS, k=draw.randint(1, 6))) for _ in range(draw.randint(1, 3))]
            texts = [text for text in texts if text] or ["a"]
            settings = {key: value for key, value in random_setting(draw).items() if key in PAD_SETTINGS}
            if draw.random() < 0.5:  # transformers refuses to pad rows to less than they have
                settings["max_length"] = 40
            else:
                settings.pop("max_length", None)
                settings["padding"] = draw.choice([True, False, "longest"])
            rows = draw.choice([texts, texts[0]])
            asked = {"return_special_tokens_mask": True, "return_token_type_ids": True}
            expected, _ = outcome(theirs.pad, (theirs(rows, **asked),), settings)
            found, _ = outcome(ours.pad, (ours(rows, **asked),), settings)
            assert found == expected, (rows, settings)


PAD_SETTINGS = ("padding", "max_length", "padding_side", "pad_to_multiple_of", "return_tensors")


def test_tokens_and_masks() -> None:
    draw = random.Random(34)
    for _ in range(40):
        theirs, ours = random_tokenizers(draw)
        for _ in range(10):
            text, pair = ("".join(draw.choices(PARTS, k=draw.randint(1, 6))) for _ in range(2))
            if "X" in text + pair:
                continue  # transformers shows white space that an added token swallowed
            for add in (True, False):
                assert ours.tokenize(text, add_special_tokens=add) == theirs.tokenize(
                    text, add_special_tokens=add
                )
                both = theirs.tokenize(text, pair, add)
                assert ours.tokenize(text, pair, add) == both
            ids = theirs.encode(text, pair)
            assert ours.get_special_tokens_mask(ids, already_has_special_tokens=True) == (
                theirs.get_special_tokens_mask(ids, already_has_special_tokens=True)
            )
        for is_pair in (True, False):
            assert ours.num_special_tokens_to_add(is_pair) == theirs.num_special_tokens_to_add(is_pair)
        assert ours.max_len_sentences_pair == theirs.max_len_sentences_pair


def test_adding_tokens() -> None:
    """Ids, counts and settings of added tokens."""
    draw = random.Random(35)
    names = ("lstrip", "rstrip", "single_word", "special", "normalized")
    for _ in range(150):
        theirs, ours = random_tokenizers(draw)
        for _ in range(4):
            content = draw.choice(["X", "XY", "ZZ", "ab", "é"])
            if content in ours.all_special_tokens:
                continue  # adding it again as a str takes its mark away there, and not here
            flags = {name: draw.random() < 0.3 for name in names}
            kind = draw.randrange(4)
            if kind == 0:
                pair = [content], [content]
            else:
                pair = [transformers.AddedToken(content, **flags)], [AddedToken(content, **flags)]
            if kind == 3:
                results = [
                    t.add_special_tokens({"cls_token": p[0]})
                    for t, p in zip((theirs, ours), pair, strict=True)
                ]
            else:
                special = draw.random() < 0.3
                results = [
                    t.add_tokens(p, special_tokens=special) for t, p in zip((theirs, ours), pair, strict=True)
                ]
            assert results[0] == results[1]
        assert ours.get_vocab() == theirs.get_vocab()
        assert ours.added_tokens_encoder == theirs.added_tokens_encoder
        found = {index: token.to_dict() for index, token in ours.added_tokens_decoder.items()}
        assert found == {
            index: {name: getattr(token, name) for name in found[index]}
            for index, token in theirs.added_tokens_decoder.items()
        }
        text = "aX XY ab ZZ é X"
        assert ours.encode(text) == theirs.encode(text)


# ---- the Japanese tokenizer, which is one of the other family

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "tokenizer"
JAPANESE_PARTS = ["こんにちは", "、", "世界", " ", "😀", "<|endoftext|>", "猫", ""]


@pytest.fixture
def japanese(tmp_path: Path) -> Any:
    """Makes both tokenizers with the toy vocabulary."""
    content = json.loads((GOLDEN / "japanese_toy.json").read_text(encoding="utf-8"))
    (tmp_path / "vocab.txt").write_text("\n".join(content["lines"]), encoding="utf-8")
    (tmp_path / "emoji.json").write_text(json.dumps({k: content[k] for k in ("emoji", "emoji_inv")}))
    files = [str(tmp_path / "vocab.txt"), str(tmp_path / "emoji.json")]
    return lambda **fixed: (
        transformers.GPTNeoXJapaneseTokenizer(*files, unk_token="<unk>", **fixed),
        GPTNeoXJapaneseTokenizer(*files, unk_token="<unk>", **fixed),
    )


def test_japanese_calls(japanese) -> None:
    """As test_batches of test_tokenizer_live.py, but also the order of the columns."""
    draw = random.Random(36)
    compared = 0
    for _ in range(20):
        sides = {name: draw.choice(["left", "right"]) for name in ("padding_side", "truncation_side")}
        theirs, ours = japanese(**sides, model_max_length=draw.choice([None, 4, 9]))
        for _ in range(40):
            texts = [
                "".join(draw.choices(JAPANESE_PARTS, k=draw.randint(0, 5))) for _ in range(draw.randint(1, 4))
            ]
            given = draw.choice([(texts[0],), (texts,), (texts[0], texts[-1]), (texts, texts[::-1])])
            settings = random_setting(draw)
            settings.pop("return_offsets_mapping", None)  # refused there, given here
            settings.pop("split_special_tokens", None)
            expected, _ = outcome(theirs, given, settings)
            found, _ = outcome(ours, given, settings)
            if expected == "refused" and settings.get("return_overflowing_tokens"):
                continue  # a batch of which only some texts overflow stops transformers
            assert found == expected, (sides, given, settings)
            compared += 1
    assert compared > 600


def test_japanese_ids_are_prepared_and_truncated(japanese) -> None:
    draw = random.Random(37)
    for _ in range(20):
        theirs, ours = japanese(truncation_side=draw.choice(["left", "right"]))
        for _ in range(30):
            ids = [draw.randrange(20) for _ in range(draw.randint(1, 6))]
            pair = draw.choice([None, [draw.randrange(20) for _ in range(draw.randint(1, 6))]])
            settings = random_setting(draw)
            unknown = ["return_offsets_mapping", "split_special_tokens"]
            if "return_tensors" in settings:
                unknown.append("return_length")  # transformers makes no array of a number
            settings = {name: value for name, value in settings.items() if name not in unknown}
            expected, _ = outcome(theirs.prepare_for_model, (ids, pair), settings)
            found, _ = outcome(ours.prepare_for_model, (ids, pair), settings)
            assert found == expected, (ids, pair, settings)
            strategy = draw.choice(["longest_first", "only_first", "only_second"])
            cut = {"num_tokens_to_remove": draw.randint(0, 3), "stride": draw.randint(0, 2)}
            assert ours.truncate_sequences(ids, pair, truncation_strategy=strategy, **cut) == (
                theirs.truncate_sequences(ids, pair, truncation_strategy=strategy, **cut)
            ), (ids, pair, strategy, cut)
