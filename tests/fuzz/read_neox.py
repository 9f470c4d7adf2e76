"""The readers of `tokenizer.json`, and of `vocab.json` with `merges.txt`."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from refimpl.tokenizer import GPTNeoXTokenizerFast, kernels
from refimpl.tokenizer.byte_level import GPT2_PATTERN
from refimpl.tokenizer.neox_files import NeoxFile, read_tokenizer_json, read_vocab_and_merges
from tests.fuzz.changes import change_json, change_lines
from tests.fuzz.harness import Files, Reader, memory_folder

TOKENS = ["<|endoftext|>", "<|padding|>", *"abcet", "Ġ", "Ã", "©", "Ģ", "Ċ"]
MERGES = ["Ġ t", "a b", "ab c", "Ã ©", "Ġ Ġ", "ab ab"]
VOCABULARY = {token: i for i, token in enumerate([*TOKENS, *(m.replace(" ", "") for m in MERGES)])}

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
SPLIT = {"type": "Split", "pattern": {"Regex": GPT2_PATTERN}, "behavior": "Isolated", "invert": False}
TRUNCATION = {"direction": "Right", "max_length": 10**9, "strategy": "LongestFirst", "stride": 0}
PADDING = {
    "strategy": {"Fixed": 10**9},
    "direction": "Right",
    "pad_to_multiple_of": None,
    "pad_id": 1,
    "pad_type_id": 0,
    "pad_token": "<|padding|>",
}


def added(index: int, content: str, **options: bool) -> dict[str, Any]:
    names = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return {"id": index, "content": content, **dict.fromkeys(names, False), **options}


def around(sequence: str, type_id: int) -> list[dict[str, Any]]:
    return [
        {"SpecialToken": {"id": "<|endoftext|>", "type_id": type_id}},
        {"Sequence": {"id": sequence, "type_id": type_id}},
    ]


TEMPLATE = {
    "type": "TemplateProcessing",
    "single": around("A", 0),
    "pair": around("A", 0) + around("B", 1),
    "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}},
}


def content() -> dict[str, Any]:
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            added(0, "<|endoftext|>", special=True),
            added(len(VOCABULARY), "  ", normalized=True),
            added(len(VOCABULARY) + 1, "<x>", lstrip=True, rstrip=True),
        ],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": BYTE_LEVEL,
        "post_processor": BYTE_LEVEL,
        "decoder": BYTE_LEVEL,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<|endoftext|>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "vocab": VOCABULARY,
            "merges": MERGES,
        },
    }


def newer() -> dict[str, Any]:
    """The same in the forms that newer versions write."""
    file = content()
    file["model"] |= {
        "merges": [merge.split(" ") for merge in MERGES],
        "byte_fallback": False,
        "ignore_merges": True,
        "fuse_unk": True,
        "dropout": 0.0,
    }
    file["truncation"], file["padding"] = TRUNCATION, PADDING
    file["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [SPLIT, {**BYTE_LEVEL, "use_regex": False}]}
    file["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "NFC"}]}
    file["post_processor"] = {"type": "Sequence", "processors": [BYTE_LEVEL, TEMPLATE]}
    return file


REGEX = [
    GPT2_PATTERN,
    "(a+)+$",
    "(?=(a+))a*b\\1",
    "(" * 500,
    "\\p{L}{1,1000}{1,1000}",
    "",
    GPT2_PATTERN + "|",
]
WORDS = [
    *[
        "NFC",
        "NFKC",
        "ByteLevel",
        "Split",
        "Sequence",
        "Replace",
        "BPE",
        "Unigram",
        "Left",
        "Right",
        "Isolated",
    ],
    *["TemplateProcessing", "OnlyFirst", "BatchLongest", "<|endoftext|>", "<x>", "Ġ", "a b", "ab ab", "a x"],
    *[BYTE_LEVEL, SPLIT, TRUNCATION, PADDING, TEMPLATE, {"Fixed": 10**9}, {"Fixed": -1}, {"type": "NFC"}],
    *[{"Regex": pattern} for pattern in REGEX],
    *[
        {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "aa"},
        {"type": "Prepend", "prepend": "a"},
    ],
    *[{"type": "Sequence", "normalizers": [{"type": "NFC"}] * 9}, ["a", "b"], ["a", "b", "c"], ["", ""]],
]


def change_section(draw: random.Random, tree: Any) -> None:
    """Another section, or none."""
    name = draw.choice(["truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder"])
    other = draw.choice([None, *WORDS, newer()[name], content()[name]])
    tree[name] = json.loads(json.dumps(other))


def change_vocabulary(draw: random.Random, tree: Any) -> None:
    """Ids that repeat or leave gaps, tokens that are strange."""
    model = tree.get("model", {"vocab": tree})
    vocab, some = model["vocab"], draw.choice(list(model["vocab"]))
    kind = draw.randrange(4)
    if kind == 0:
        vocab[some] = draw.choice([0, 1, 5, len(vocab), len(vocab) + 50, 2**31 - 1, 2**31])
    elif kind == 1:
        del vocab[some]
    elif kind == 2:
        vocab[draw.choice(["zz", "世", " ", "a b", "Ġ" * 600, "a" * 1025, ""])] = len(vocab) + draw.choice(
            (0, 9)
        )
    else:
        vocab[some], vocab["a"] = vocab["a"], vocab[some]


def some_merge(draw: random.Random) -> str:
    tokens = list(VOCABULARY)
    return f"{draw.choice(tokens)} {draw.choice(tokens)}"


def change_merges(draw: random.Random, tree: Any) -> None:
    """Merges that repeat, that make what is not there, that are made of what comes later."""
    merges = tree["model"]["merges"]
    pairs = bool(merges) and isinstance(merges[0], list)
    kind = draw.randrange(5)
    new = draw.choice(
        ["a a", "ab ab", "<|endoftext|> a", "a", " ", "a  b", "b a b", "世 a", some_merge(draw)]
    )
    if kind == 0:
        merges.append(new.split(" ") if pairs else new)
    elif kind == 1:
        merges.insert(0, new.split(" ") if pairs else new)
    elif kind == 2:
        draw.shuffle(merges)
    elif kind == 3:
        merges.append(draw.choice(merges))
    else:  # with what it makes put into the vocabulary
        new = some_merge(draw)
        tree["model"]["vocab"].setdefault(new.replace(" ", ""), draw.randrange(200))
        merges.append(new.split(" ") if pairs else new)


def change_added(draw: random.Random, tree: Any) -> None:
    """Added tokens that overlap, look like others, are empty or many."""
    contents = [
        "",
        "a",
        "ab",
        "b",
        " ",
        "   ",
        "<",
        "<x",
        "<x>",
        "<x><x>",
        "é",
        "e\u0301",
        "日",
        "a" * 256,
        "a" * 257,
    ]
    options = {
        name: draw.random() < 0.3 for name in ("single_word", "lstrip", "rstrip", "normalized", "special")
    }
    index = draw.choice([0, 1, 3, 30, 31, 100, 2**31 - 1])
    token = added(index, draw.choice([*contents, draw.choice(list(VOCABULARY))]), **options)
    known = tree["model"]["vocab"].get(token["content"])
    if known is not None and draw.random() < 0.7:
        token["id"] = known
    tree["added_tokens"].append(token)


SPECIAL = (change_section, change_vocabulary, change_merges, change_added)


def change_tokenizer_json(draw: random.Random, files: Files) -> Files:
    return {"tokenizer.json": change_json(draw, files["tokenizer.json"], WORDS, SPECIAL)}


def change_two(draw: random.Random, files: Files) -> Files:
    changed = dict(files)
    which = draw.randrange(3)
    if which != 1:
        words = [0, 5, 10**9, "a", "a b"]
        changed["vocab.json"] = change_json(draw, files["vocab.json"], words, (change_vocabulary,))
    if which != 0:
        lines = [
            *MERGES,
            *(some_merge(draw) for _ in range(3)),
            "#version: 0.2",
            "# version",
            "a",
            "a  b",
            " a",
            "a\tb",
        ]
        changed["merges.txt"] = change_lines(draw, files["merges.txt"], lines)
    return changed


def read_json(folder: Path, number: int) -> NeoxFile:
    return read_tokenizer_json(folder / "tokenizer.json")


def read_two(folder: Path, number: int) -> NeoxFile:
    return read_vocab_and_merges(folder / "vocab.json", folder / "merges.txt")


_TEXT = "abcab  <x> té é日abababab\n\n<|endoftext|>cab e\u0301"


def use(_: object, folder: Path, number: int) -> None:
    """Encodes and decodes; with some inputs compares with the compiled form, offsets too."""
    both = {"vocab_file": folder / "vocab.json", "merges_file": folder / "merges.txt"}
    one = {"tokenizer_file": folder / "tokenizer.json"}
    tokenizer = GPTNeoXTokenizerFast(**(one if one["tokenizer_file"].exists() else both), impl="plain")
    text = _TEXT + "".join(tokenizer.get_vocab())[-40:]
    if number % 32 == 0:
        check_compiled(tokenizer, text)
    ids = tokenizer.encode(text)
    assert len(ids) <= 4 * len(text) + 4
    assert isinstance(tokenizer.decode(ids), str)


def check_compiled(tokenizer: GPTNeoXTokenizerFast, text: str) -> None:
    plain = tokenizer.encode_texts([text], offsets=True)
    tokenizer.impl = "fast"
    assert tokenizer.encode_texts([text])[0].ids == plain[0].ids, "the compiled form differs"
    assert tokenizer.encode_texts([text], offsets=True) == plain, "the compiled form has other offsets"
    tokenizer.impl = "plain"


PREPARING = {"tokenizer.json": json.dumps(content()).encode()}


def prepare() -> None:
    """Uses the compiled form once, which compiles it where it was not."""
    kernels.load("bpe_encoder")
    with memory_folder() as folder:
        for name, content in PREPARING.items():
            (folder / name).write_bytes(content)
        use(None, folder, 0)


READERS = [
    Reader(
        "tokenizer.json",
        [{"tokenizer.json": json.dumps(file, ensure_ascii=False).encode()} for file in (content(), newer())],
        change_tokenizer_json,
        read_json,
        use,
        prepare=prepare,
    ),
    Reader(
        "vocab.json",
        [
            {"vocab.json": json.dumps(VOCABULARY).encode(), "merges.txt": text.encode()}
            for text in ("#version: 0.2\n" + "\n".join(MERGES) + "\n", "\r\n".join(MERGES))
        ],
        change_two,
        read_two,
        use,
        prepare=prepare,
    ),
]
