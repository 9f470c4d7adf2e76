"""`explain`: its tokens are those of `tokenize`, and every reason is the one that decided."""

from __future__ import annotations

import json
import random
import time
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refimpl.errors import InputError, ResourceLimitError, TextInputError
from refimpl.tokenizer import AddedToken, GPTNeoXJapaneseTokenizer, GPTNeoXTokenizerFast
from refimpl.tokenizer.byte_level import nfc
from refimpl.tokenizer.clean_text import clean_text
from refimpl.tokenizer.codec import TokenCodec
from refimpl.tokenizer.explanation import MAX_CHARACTERS, Change, Explanation
from refimpl.tokenizer.japanese_text import find_words, normalize
from tests.tokenizer.neox_toy import MERGES, added, content, toy, vocabulary, write

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "tokenizer"
TEXTS = [
    case["text"]
    for line in (GOLDEN / "japanese.jsonl").read_text(encoding="utf-8").split("\n")
    if line and "text" in (case := json.loads(line))
]


def check(tokenizer: TokenCodec, text: str) -> Explanation:
    """The explanation, after what must be true of every one."""
    explanation = tokenizer.explain(text)
    tokens = tokenizer.tokenize(text)
    assert [token.token for token in explanation.tokens] == tokens
    assert explanation.ids == tokenizer.convert_tokens_to_ids(tokens)
    assert [token.data for token in explanation.tokens] == list(map(tokenizer.token_bytes, explanation.ids))
    for piece in explanation.pieces:
        assert "".join(step.text for step in piece.steps) == piece.normalized
        position = 0
        for step in piece.steps:
            assert step.start == position
            assert step.tokens
            position += len(step.text)
    return explanation


def reasons(explanation: Explanation) -> list[tuple[str, str]]:
    return [(step.kind, step.reason) for step in explanation.steps]


def changes(explanation: Explanation) -> list[Change]:
    return [change for piece in explanation.pieces for change in piece.changes]


# ---- Japanese


@pytest.fixture(scope="module")
def cleaning(make_sparse) -> GPTNeoXJapaneseTokenizer:
    return make_sparse(do_clean_text=True)


def test_the_golden_texts(sparse, original, cleaning) -> None:
    assert len(TEXTS) > 100
    for text in TEXTS:
        for tokenizer in (sparse, original, cleaning):
            check(tokenizer, text)


def test_the_smallest_id_wins(sparse) -> None:
    (step,) = [s for s in check(sparse, "慶応大学").steps if s.text == "慶応"]
    assert (step.kind, step.reason) == ("smallest", "smallest id of 2 candidates")
    assert [(c.token, c.id) for c in step.candidates] == [("慶応", 17749), ("慶", step.candidates[1].id)]
    assert step.candidates[1].id > 17749


def test_the_longest_need_not_win(sparse) -> None:
    found = [
        step
        for text in TEXTS
        for step in sparse.explain(text).steps
        if step.kind == "smallest" and step.text != step.candidates[0].token
    ]
    assert found
    for step in found:
        ids = {candidate.token: candidate.id for candidate in step.candidates}
        assert ids[step.text] == min(ids.values())


def test_candidates_are_all_words_that_fit(sparse) -> None:
    for text in TEXTS[:60]:
        for piece in sparse.explain(text).pieces:
            for step in piece.steps:
                if step.kind in ("smallest", "only", "tag"):
                    words = find_words(piece.normalized, step.start, sparse._words)
                    assert [candidate.token for candidate in step.candidates] == words
                    assert (step.kind == "smallest") == (len(words) > 1)


def japanese(tmp_path: Path, *words: str, **options) -> GPTNeoXJapaneseTokenizer:
    from tests.tokenizer.conftest import maker, write_vocabulary

    tags = ["<SP>", "<BR>", "<TAB>", "<KIGOU>", "<U2000U2BFF>", "<unk>", "<|emoji1|>"]
    bytes_ = [f"<|byte{value}|>" for value in range(256)]
    emoji = {"emoji": {"👨\u200d👩": "<|emoji1|>", "👨": "<|emoji1|>"}, "emoji_inv": {"<|emoji1|>": "👨"}}
    folder = write_vocabulary(tmp_path / "own", [*words, *tags, *bytes_, "end"], emoji)
    return maker(folder, unk_token="<unk>", pad_token="<unk>", bos_token="<unk>", eos_token="<unk>")(
        **options
    )


def test_each_reason(tmp_path) -> None:
    tokenizer = japanese(tmp_path, "あ", "いう", "い", "うえ,うぇう", "<い", "<SPA>")
    expected = {
        "あ": ("only", "the only word that fits"),
        "いう": ("smallest", "smallest id of 2 candidates"),
        " ": ("tag", "a tag: longer than two characters, it alone counts"),
        "<SPA>": ("tag", "a tag: longer than two characters, it alone counts"),
        "<い": ("only", "the only word that fits"),
        "°": ("range", "no word: U+00B0 is in the range U+00A1 to U+00BF -> <KIGOU>"),
        "\u0300": ("range", "no word: U+0300 is in the range U+0300 to U+0362 -> <KIGOU>"),
        "→": ("range", "no word: U+2192 is in the range U+2000 to U+2BFF -> <U2000U2BFF>"),
        "z": ("bytes", "no word: its one UTF-8 byte"),
        "ん": ("bytes", "no word: its 3 UTF-8 bytes"),
        "<unk>": ("added", "an added token, cut out first"),
    }
    for text, reason in expected.items():
        assert reasons(check(tokenizer, text)) == [reason], text


def test_two_spellings_of_one_id(tmp_path) -> None:
    tokenizer = japanese(tmp_path, "うえ,う,え")
    (step,) = check(tokenizer, "うえ").steps
    assert step.reason == "smallest id of 2 candidates; of the spellings with this id the longest"
    assert [c.id for c in step.candidates] == [0, 0]


def test_characters_grow_over_tokens(original) -> None:
    (step,) = check(original, "한").steps
    assert [(t.data, t.text) for t in step.tokens] == [(b"\xed", ""), (b"\x95", ""), (b"\x9c", "한")]


def test_bytes_without_a_word(toy) -> None:
    (step,) = check(toy, "é").steps
    assert step.reason == (
        "no word: its 2 UTF-8 bytes; <|byte195|>, <|byte169|> not in the vocabulary: unk_token"
    )
    assert {token.id for token in step.tokens} == {toy.unk_token_id}


def test_what_was_replaced(tmp_path) -> None:
    explanation = check(japanese(tmp_path, "ー"), " \u3000\r\n\n\r\t—−👨👨\u200d👩👨")
    assert changes(explanation) == [
        Change("white space", " ", "<SP>", 1),
        Change("white space", "\u3000", "<SP>", 1),
        Change("white space", "\r\n", "<BR>", 1),
        Change("white space", "\n", "<BR>", 1),
        Change("white space", "\r", "<BR>", 1),
        Change("white space", "\t", "<TAB>", 1),
        Change("dash", "—", "ー", 1),
        Change("dash", "−", "ー", 1),
        Change("emoji", "👨\u200d👩", "<|emoji1|>", 1),  # the table has it first
        Change("emoji", "👨", "<|emoji1|>", 2),
    ]


def test_what_was_cleaned(cleaning) -> None:
    text = "http://a.jp/x a@b.c 03-1234-5678 12/31 5円 5円 ─━<BLOCK>"
    explanation = check(cleaning, text)
    found = [(c.old, c.new, c.count) for c in changes(explanation) if c.rule == "clean text"]
    assert found == [
        ("http://a.jp/x", "<URL>", 1),
        ("a@b.c", "<EMAIL>", 1),
        ("03-1234-5678", "<TEL>", 1),
        ("12/31", "<DATE>", 1),
        ("5円", "<PRICE>", 2),
        ("─━", "<BLOCK>", 1),
        ("<BLOCK><BLOCK>", "<BLOCK>", 1),
    ]
    (piece,) = explanation.pieces
    assert piece.normalized == clean_text(normalize(text, {}))


def test_dropout_is_a_reason_and_draws_as_tokenize_does(make_sparse) -> None:
    text = "慶応大学は慶応の大学である" * 5
    tokenizer = make_sparse(compat="original", bpe_dropout_rate=0.5, seed=3)
    tokens = tokenizer.tokenize(text)
    tokenizer.set_bpe_dropout(0.5, seed=3)
    explanation = tokenizer.explain(text)
    assert [token.token for token in explanation.tokens] == tokens
    drawn = [step for step in explanation.steps if step.kind == "drawn"]
    assert drawn
    for step in drawn:
        ids = {c.token: c.id for c in step.candidates}
        assert ids[step.text] != min(ids.values())
        assert step.reason == f"drawn from {len(ids)} candidates (dropout)"


def test_added_tokens_cut_the_text_into_pieces(make_sparse) -> None:
    tokenizer = make_sparse(compat="original")
    tokenizer.add_tokens([AddedToken("[X]", lstrip=True, rstrip=True), AddedToken("[Y]", lstrip=True)])
    explanation = check(tokenizer, "は [X] は [Y]<|endoftext|>")
    assert [piece.text for piece in explanation.pieces] == ["は", "[X]", "は", "[Y]", "<|endoftext|>"]
    assert [(step.kind, step.reason.partition(",")[2]) for step in explanation.steps] == [
        ("only", ""),
        ("added", " cut out first, with the white space before and after it"),
        ("only", ""),
        ("added", " cut out first, with the white space before it"),
        ("added", " cut out first"),
    ]


def test_added_tokens_may_be_ordinary_text(sparse) -> None:
    explanation = sparse.explain("<|endoftext|>", split_special_tokens=True)
    assert [token.token for token in explanation.tokens] == sparse.tokenize(
        "<|endoftext|>", split_special_tokens=True
    )
    assert [step.kind for step in explanation.steps] == ["tag"]


@given(st.text(max_size=30))
def test_any_text(sparse, cleaning, text: str) -> None:
    for tokenizer in (sparse, cleaning):
        check(tokenizer, text)


# ---- GPT-NeoX


def replay(explanation: Explanation, ranks: dict[tuple[str, str], int]) -> None:
    """Repeats all merges by brute force: each has the lowest rank of all neighbours, and is the leftmost such."""
    from refimpl.tokenizer.byte_level import to_characters

    for step in explanation.steps:
        if step.kind == "added":
            continue
        symbols = list(to_characters(step.text.encode()))
        for merge in step.merges:
            rank, index = min((ranks[pair], i) for i, pair in enumerate(pairwise(symbols)) if pair in ranks)
            assert (rank, symbols[index : index + 2]) == (merge.rank, [merge.left, merge.right])
            assert sum(map(len, symbols[:index])) == merge.start
            symbols[index : index + 2] = [merge.token]
        assert symbols == [token.token for token in step.tokens]
        assert not any(pair in ranks for pair in pairwise(symbols))


RANKS = {(left, right): rank for rank, (left, right) in enumerate(merge.split(" ") for merge in MERGES)}


def test_every_merge_in_its_order() -> None:
    explanation = check(toy(), "Hello the world")
    replay(explanation, RANKS)
    hello = explanation.steps[0]
    assert [(m.rank, m.start, m.left, m.right, m.token) for m in hello.merges] == [
        (3, 2, "l", "l", "ll"),
        (4, 1, "e", "ll", "ell"),
        (5, 0, "H", "ell", "Hell"),
        (6, 0, "Hell", "o", "Hello"),
    ]
    assert [m.id for m in hello.merges] == [vocabulary()[m.token] for m in hello.merges]
    assert hello.reason == "5 bytes, 4 merges into one token"


@pytest.mark.parametrize(
    ("text", "kind", "reason"),
    [
        ("x", "bytes", "one byte"),
        ("xyz", "bytes", "3 bytes, and no merge joins any two"),
        ("aa", "merges", "2 bytes, one merge into one token"),
        ("aaa", "merges", "3 bytes, one merge; none joins what is left"),
        ("aaaaa", "merges", "5 bytes, 3 merges; none joins what is left"),
        ("<|endoftext|>", "added", "an added token, cut out first"),
    ],
)
def test_reasons_of_words(text: str, kind: str, reason: str) -> None:
    assert reasons(check(toy(), text)) == [(kind, reason)]


def test_a_word_of_the_vocabulary_without_merges(tmp_path) -> None:
    changed = content()
    changed["model"]["ignore_merges"] = True
    tokenizer = GPTNeoXTokenizerFast(tokenizer_file=write(tmp_path, changed), impl="plain")
    assert reasons(check(tokenizer, "Hello")) == [
        ("whole", "the word is in the vocabulary; its merges are not asked")
    ]
    assert reasons(check(tokenizer, "x")) == [("bytes", "one byte")]


def test_bytes_without_a_token(tmp_path) -> None:
    changed = content()
    del changed["model"]["vocab"]["x"]
    changed["model"]["unk_token"] = "<|endoftext|>"
    tokenizer = GPTNeoXTokenizerFast(tokenizer_file=write(tmp_path, changed), impl="plain")
    ((_, reason),) = reasons(check(tokenizer, "axx"))
    assert reason == "3 bytes, and no merge joins any two; 2 of them without a token: unk_token"


def test_normalisation_character_by_character() -> None:
    text = "e\u0301 a\u0323\u0302 e\u0301 x\u0302\u0323 \u1112\u1161\u11ab \u2126"
    explanation = check(toy(), text)
    assert changes(explanation) == [
        Change("NFC", "e\u0301", "é", 2),
        Change("NFC", "a\u0323\u0302", "ậ", 1),
        Change("NFC", "x\u0302\u0323", "x\u0323\u0302", 1),
        Change("NFC", "\u1112\u1161\u11ab", "한", 1),
        Change("NFC", "\u2126", "Ω", 1),
    ]
    (piece,) = explanation.pieces
    assert (piece.text, piece.normalized) == (text, nfc(text))
    assert changes(check(toy(nfc=False), text)) == []


def test_the_space_that_was_put_before() -> None:
    explanation = check(toy(add_prefix_space=True), "the the")
    assert changes(explanation) == [Change("prefix space", "", " ", 1)]
    assert [piece.text for piece in explanation.pieces] == ["the the"]
    assert [step.text for step in explanation.steps] == [" the", " the"]
    assert changes(check(toy(add_prefix_space=True), " the")) == []


def test_added_tokens_before_and_after_normalisation(tmp_path) -> None:
    changed = content()
    changed["added_tokens"] += [
        added(290, "ẽ", normalized=True),
        added(291, "[R]", lstrip=True, rstrip=True),
    ]
    tokenizer = GPTNeoXTokenizerFast(tokenizer_file=write(tmp_path, changed), impl="plain")
    explanation = check(tokenizer, "a  [R]  e\u0303a\u0302")
    assert [piece.text for piece in explanation.pieces] == ["a", "  [R]  ", "e\u0303", "a\u0302"]
    assert changes(explanation) == [Change("NFC", "e\u0303", "ẽ", 1), Change("NFC", "a\u0302", "â", 1)]
    assert [step.kind for step in explanation.steps] == ["bytes", "added", "added", "bytes"]
    assert explanation.steps[1].reason.endswith("with the white space before and after it")


@given(st.text(alphabet="Hello thewrld'saé\u0301<|endoftext|> 吾가\u11a8", max_size=30))
def test_any_text_of_neox(text: str) -> None:
    replay(check(_TOY, text), RANKS)


_TOY = toy()


def test_random_unicode_of_neox() -> None:
    draw = random.Random(5)
    for _ in range(300):
        text = "".join(chr(draw.choice((*range(0xD800), *range(0xE000, 0x11000)))) for _ in range(8))
        for change in changes(check(_TOY, text)):
            assert nfc(change.old) == change.new


def test_a_long_word_is_explained_in_linear_time() -> None:
    began = time.perf_counter()
    (step,) = _TOY.explain("a" * MAX_CHARACTERS).steps
    assert len(step.merges) == MAX_CHARACTERS * 3 // 4
    assert time.perf_counter() - began < 20


# ---- both


def test_as_json(sparse) -> None:
    explanation = check(sparse, "慶応 大学é<|endoftext|>")
    value = explanation.to_dict()
    assert json.loads(json.dumps(value)) == value
    assert value["ids"] == explanation.ids
    assert value["tokenizer"] == "GPTNeoXJapaneseTokenizer"
    assert [piece["text"] for piece in value["pieces"]] == ["慶応 大学é", "<|endoftext|>"]
    first = value["pieces"][0]
    assert first["changes"] == [{"rule": "white space", "old": " ", "new": "<SP>", "count": 1}]
    assert first["steps"][0]["tokens"] == [
        {"id": 17749, "token": "慶応", "bytes": "慶応".encode().hex(), "text": "慶応"}
    ]
    assert first["steps"][0]["candidates"][0] == {"token": "慶応", "id": 17749}
    merge = toy().explain("aa").to_dict()["pieces"][0]["steps"][0]["merges"][0]
    assert merge == {
        "rank": 14,
        "start": 0,
        "left": "a",
        "right": "a",
        "token": "aa",
        "id": vocabulary()["aa"],
    }


@pytest.mark.parametrize("which", ["japanese", "neox"])
def test_what_is_refused(sparse, which: str) -> None:
    tokenizer = sparse if which == "japanese" else toy()
    assert tokenizer.explain("").tokens == []
    with pytest.raises(InputError, match="not a str"):
        tokenizer.explain(3)
    with pytest.raises(TextInputError) as caught:
        tokenizer.explain("は\ud800")
    assert caught.value.position == 1
    assert tokenizer.explain("\ud800", surrogates="replace").ids == tokenizer.explain("\ufffd").ids
    with pytest.raises(ResourceLimitError, match="100,001 characters"):
        tokenizer.explain("x" * (MAX_CHARACTERS + 1))


def test_a_tokenizer_without_reasons_says_so(monkeypatch, sparse) -> None:
    monkeypatch.delattr(GPTNeoXJapaneseTokenizer, "_explain_piece")
    with pytest.raises(InputError, match="GPTNeoXJapaneseTokenizer cannot explain its tokens"):
        sparse.explain("は")
