"""Every golden text of the GPT-NeoX tokenizer, plain and compiled; and that wrong rules would be noticed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import regex

from refimpl import AutoTokenizer
from refimpl.errors import InputError, RefimplError, TextInputError, TokenizerFileError
from refimpl.tokenizer import AddedToken, GPTNeoXTokenizerFast, kernels, neox
from refimpl.tokenizer.added_tokens import AddedTokenSplitter
from refimpl.tokenizer.bpe import BpeTables
from refimpl.tokenizer.byte_level import GPT2_PATTERN, AlignedText, to_characters

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "tokenizer"
CASES = {
    case["id"]: case
    for name in ("neox.jsonl", "neox_published.jsonl")
    for case in map(json.loads, filter(None, (GOLDEN / name).read_text(encoding="utf-8").split("\n")))
}
ENCODED = [case for case in CASES.values() if "tokens" in case]
DECODED = [case for case in CASES.values() if "decoded" in case]
REFUSED = [case for case in CASES.values() if "expect" in case]
ERRORS = {"text": TextInputError, "input": InputError, "tokenizer_file": TokenizerFileError}
FULL = {"neox_20b_sparse": "neox20b", "gpt2_sparse": "gpt2"}


def each(cases: list[dict[str, Any]]) -> Any:
    return pytest.mark.parametrize("case", [pytest.param(case, id=case["id"]) for case in cases])


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels are used from the first character on."""
    monkeypatch.setattr(kernels, "_BREAK_EVEN", 0)


@cache
def folder_of(vocabulary: str, changes: str, files: str, scratch: Path) -> Path:
    """The folder of a vocabulary; a copy of it with other contents where a case asks for that."""
    if changes == files == "null":
        return GOLDEN / vocabulary
    folder = scratch / str(folder_of.cache_info().misses)
    shutil.copytree(GOLDEN / vocabulary, folder)
    for name, content in (json.loads(files) or {}).items():
        (folder / name).write_text(content, encoding="utf-8")
    for change in json.loads(changes) or []:
        content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        place = content
        for key in change["path"][:-1]:
            place = place[key]
        place[change["path"][-1]] = change["value"]
        (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., GPTNeoXTokenizerFast]:
    """Makes the tokenizer that a case asks for."""
    scratch = tmp_path_factory.mktemp("vocabularies")

    def made(case: dict[str, Any], **options: Any) -> GPTNeoXTokenizerFast:
        keys = (json.dumps(case.get(key)) for key in ("changes", "files"))
        tokenizer = AutoTokenizer.from_pretrained(
            folder_of(case["vocabulary"], *keys, scratch), **case.get("options", {}), **options
        )
        for entry in case.get("added_tokens", ()):
            tokenizer.add_tokens([AddedToken(**{k: v for k, v in entry.items() if k != "id"})])
            assert tokenizer.convert_tokens_to_ids(entry["content"]) == entry["id"]
        return tokenizer

    return made


def test_there_are_cases() -> None:
    assert len(ENCODED) > 300
    assert len(DECODED) > len(ENCODED)
    assert len(REFUSED) > 15
    assert all(bytes.fromhex(c["text_hex"]).decode("utf-8") == c["text"] for c in ENCODED if "text" in c)


def encode(tokenizer: GPTNeoXTokenizerFast, case: dict[str, Any], **wanted: bool) -> Any:
    given = [case["words_given"]] if "words_given" in case else [case["text"]]
    given += [case["pair"]] if "pair" in case else []
    words = {"is_split_into_words": True} if "words_given" in case else {}
    return tokenizer(*given, **case.get("call", {}), **words, **wanted)


@each(ENCODED)
@pytest.mark.parametrize("impl", ["plain", "fast"])
def test_text_is_encoded_like_this(case: dict[str, Any], impl: str, make: Any) -> None:
    tokenizer = make(case, impl=impl)
    assert encode(tokenizer, case)["input_ids"] == case["ids"]
    if "text" in case and "pair" not in case:  # one short text alone never reaches a kernel
        batch = tokenizer([case["text"]] * 2, **case.get("call", {}))
        assert batch["input_ids"] == [case["ids"]] * 2
    for trim, offsets in ((True, case["offsets"]), (False, case["offsets_untrimmed"])):
        tokenizer.trim_offsets = trim
        encoding = encode(
            tokenizer,
            case,
            return_offsets_mapping=True,
            return_token_type_ids=True,
            return_special_tokens_mask=True,
        )
        assert encoding["input_ids"] == case["ids"]
        assert encoding.tokens() == case["tokens"]
        assert encoding.word_ids() == case["words"]
        assert [list(span) for span in encoding["offset_mapping"]] == offsets
        assert encoding["token_type_ids"] == case.get("type_ids", [0] * len(case["ids"]))
        assert encoding["special_tokens_mask"] == case.get("special_tokens_mask", [0] * len(case["ids"]))


@each(DECODED)
def test_ids_are_decoded_like_this(case: dict[str, Any], make: Any) -> None:
    tokenizer = make(case)
    assert tokenizer.decode(case["ids"]) == case["decoded"]
    assert tokenizer.decode(case["ids"], skip_special_tokens=True) == case["decoded_without_special_tokens"]
    if "pieces" in case:
        assert tokenizer.convert_ids_to_tokens(case["ids"]) == case["pieces"]


@each(REFUSED)
def test_what_is_refused(case: dict[str, Any], make: Any) -> None:
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
        with pytest.raises(error):
            make(case)


@pytest.mark.parametrize("vocabulary", ["neox_small", "neox_files", "neox_20b_sparse", "gpt2_sparse"])
def test_the_compiled_form_is_meant(vocabulary: str, make: Any) -> None:
    tokenizer = make({"vocabulary": vocabulary})
    tokenizer(["the", "the"])
    assert tokenizer._encoder is not None


@pytest.mark.parametrize("vocabulary", FULL)
def test_published_ids_on_the_whole_vocabulary(vocabulary: str, data_folder: Path) -> None:
    cases = [case for case in ENCODED if case["vocabulary"] == vocabulary]
    assert len(cases) > 40
    for case in cases:
        tokenizer = GPTNeoXTokenizerFast.from_pretrained(
            data_folder / FULL[vocabulary], **case.get("options", {})
        )
        assert encode(tokenizer, case)["input_ids"] == case["ids"], case["id"]


# ---- wrong rules: what is broken, and a case that notices


def words_by(pattern: str, flags: int = 0) -> Callable[[AlignedText], Iterator[AlignedText]]:
    compiled = regex.compile(pattern, flags)
    return lambda text: (text.part(*found.span()) for found in compiled.finditer(text.text))


def longest_match(word: bytes, tables: BpeTables) -> tuple[list[int], list[int]]:
    text, ids, ends = to_characters(word), [], [0]
    while ends[-1] < len(text):
        start = ends[-1]
        end = next(end for end in range(len(text), start, -1) if text[start:end] in tables.vocabulary)
        ids.append(tables.vocabulary[text[start:end]])
        ends.append(end)
    return ids, ends[1:]


def all_at_once(word: bytes, tables: BpeTables) -> tuple[list[int], list[int]]:
    """Every occurrence of the best pair is joined before the next one is looked for."""
    symbols = list(to_characters(word))
    while True:
        found = [(tables.vocabulary[a], tables.vocabulary[b]) for a, b in pairwise(symbols)]
        ranks = [tables.ranks[pair] for pair in found if pair in tables.ranks]
        if not ranks:
            break
        left, right = (tables.tokens[ids[min(ranks)]] for ids in (tables.lefts, tables.rights))
        joined: list[str] = []
        for symbol in symbols:
            # A symbol that was just made is not joined again in the same round.
            if symbol == right and joined and joined[-1] == left:
                joined[-1] = left + right + "\0"
            else:
                joined.append(symbol)
        symbols = [symbol.removesuffix("\0") for symbol in joined]
    ends = [sum(map(len, symbols[: i + 1])) for i in range(len(symbols))]
    return [tables.vocabulary[symbol] for symbol in symbols], ends


def rightmost(word: bytes, tables: BpeTables) -> tuple[list[int], list[int]]:
    """Of equal pairs the rightmost is joined."""
    symbols = list(to_characters(word))
    while True:
        pairs = [
            (tables.ranks.get((tables.vocabulary[a], tables.vocabulary[b]), 1 << 30), -i)
            for i, (a, b) in enumerate(pairwise(symbols))
        ]
        rank, place = min(pairs, default=(1 << 30, 0))
        if rank == 1 << 30:
            break
        symbols[-place : 2 - place] = [symbols[-place] + symbols[1 - place]]
    ends = [sum(map(len, symbols[: i + 1])) for i in range(len(symbols))]
    return [tables.vocabulary[symbol] for symbol in symbols], ends


def ranked_by_id(word: bytes, tables: BpeTables) -> tuple[list[int], list[int]]:
    """The pair that makes the smallest id is joined first, as where ids are ranks."""
    order = sorted(range(len(tables.results)), key=lambda rank: tables.results[rank])
    columns = ([column[r] for r in order] for column in (tables.lefts, tables.rights, tables.results))
    return ENCODE_WORD(word, BpeTables(tables.vocabulary, *columns))


ENCODE_WORD = neox.encode_word
SHORTEST = AddedTokenSplitter._longest_match


def shortest_match(splitter: AddedTokenSplitter, text: str, start: int) -> int:
    ends = (SHORTEST(splitter, text[:end], start) for end in range(start + 1, len(text) + 1))
    return next(filter(None, ends), 0)


MISTAKES = {
    "no normalisation": (neox, "nfc_aligned", lambda text: text, "neox-small/nfc-compose"),
    "longest match instead of merges": (neox, "encode_word", longest_match, "neox-order/not-the-longest"),
    "all occurrences at once": (neox, "encode_word", all_at_once, "neox-order/one-at-a-time"),
    "rightmost first": (neox, "encode_word", rightmost, "neox-order/leftmost"),
    "ids as ranks": (neox, "encode_word", ranked_by_id, "neox-order/lowest-rank"),
    "shortest added token": (
        AddedTokenSplitter,
        "_longest_match",
        shortest_match,
        "neox-20b/spaces-03",
    ),
    "contractions in any case": (
        neox,
        "words",
        words_by(GPT2_PATTERN, regex.IGNORECASE),
        "neox-small/contraction-upper-case",
    ),
    "no lookahead": (
        neox,
        "words",
        words_by(GPT2_PATTERN.replace(r"\s+(?!\S)|", "")),
        "neox-files/spaces-3",
    ),
    "ASCII digits": (
        neox,
        "words",
        words_by(GPT2_PATTERN.replace(r"\p{N}", "0-9").replace(" ?0-9+", " ?[0-9]+")),
        "neox-small/digits-superscript",
    ),
    "a letter may follow any white space": (
        neox,
        "words",
        words_by(GPT2_PATTERN.replace(r" ?\p{L}", r"\s?\p{L}")),
        "neox-files/line-ends",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_noticed_by_the_ids(name: str, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    place, attribute, wrong, noticed_by = MISTAKES[name]
    case = CASES[f"tokenizer/{noticed_by}"]
    assert encode(make(case, impl="plain"), case)["input_ids"] == case["ids"]
    monkeypatch.setattr(place, attribute, wrong)
    with suppress(RefimplError):
        assert encode(make(case, impl="plain"), case)["input_ids"] != case["ids"]
