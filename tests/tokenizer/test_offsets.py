"""Where tokens stand in the text and to which words they belong, in rows of every kind."""

from __future__ import annotations

import copy
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refimpl.errors import InputError
from refimpl.tokenizer import AddedToken
from refimpl.tokenizer.encoding import CharSpan, TokenSpan
from refimpl.tokenizer.japanese_text import REPLACEMENTS, normalize
from refimpl.tokenizer.traced_text import TracedText
from tests.tokenizer.neox_toy import toy as neox_toy

PARTS = [
    "日本",
    "こん",
    "世界",
    "、",
    " ",
    "\u3000",
    "\r\n",
    "\n",
    "\r",
    "\t",
    "—",
    "−",
    "é",
    "한",
    "\u0301",
    "⚀",
    "😀",
]
TEXTS = st.lists(
    st.sampled_from([*PARTS, "(^_^)", "👍🏽", "<SP>", "<", "<|endoftext|>", "a"]), max_size=10
).map("".join)


def spans(tokenizer, text: str, **options) -> list[str]:
    """The piece of the text for which each token stands."""
    return [
        text[start:end]
        for start, end in tokenizer(text, return_offsets_mapping=True, **options).offset_mapping
    ]


# ---- Japanese text


@pytest.mark.parametrize("compat", ["hf", "original"])
@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("こん、東京", ["こん", "、", "東京"]),
        ("", []),
        ("a b\u3000c", ["a", " ", "b", "\u3000", "c"]),
        ("、\r\n。\n\r\t", ["、", "\r\n", "。", "\n", "\r", "\t"]),
        ("a—b−", ["a", "—", "b", "−"]),
        ("é、한", ["é", "é", "、", "한", "한", "한"]),
        ("¡‖", ["¡", "‖"]),
        ("😀、👍🏽。", ["😀", "、", "👍", "🏽", "🏽", "🏽", "🏽", "。"]),
        ("、<|endoftext|>é", ["、", "<|endoftext|>", "é", "é"]),
        ("<SP>\n", ["<SP>", "\n"]),
        ("慶応と慶應", ["慶応", "と", "慶應"]),
    ],
)
def test_every_token_has_its_piece_of_the_text(make_sparse, compat, text, pieces) -> None:
    assert spans(make_sparse(compat=compat), text) == pieces


@pytest.mark.parametrize("compat", ["hf", "original"])
@given(text=TEXTS)
@settings(deadline=None, max_examples=150)
def test_offsets_cover_the_text_in_order(make_sparse, compat, text) -> None:
    tokenizer = make_sparse(compat=compat)
    encoding = tokenizer(text, return_offsets_mapping=True)
    assert encoding.input_ids == tokenizer(text).input_ids
    words = encoding.word_ids()
    places: dict[int, tuple[int, int]] = {}
    for word, span in zip(words, encoding.offset_mapping, strict=True):
        assert places.setdefault(word, span) == span, "the tokens of one word have one place"
    assert list(places) == list(range(len(places)))
    ends = [0, *(end for _, end in places.values())]
    assert [start for start, _ in places.values()] == ends[:-1]
    assert ends[-1] == len(text)


@given(text=TEXTS)
@settings(deadline=None, max_examples=150)
def test_a_word_that_is_not_replaced_is_what_it_stands_for(original, text) -> None:
    replaced = {old for old, _ in REPLACEMENTS} | original._emoji.tags.keys()
    encoding = original(text, return_offsets_mapping=True)
    for index, (start, end) in zip(encoding.input_ids, encoding.offset_mapping, strict=True):
        spellings = original._words.lines[index]
        if not spellings[0].startswith("<") and text[start:end] not in replaced:
            assert text[start:end] in spellings


@given(text=TEXTS)
def test_traced_text_is_replaced_like_a_str(original, text) -> None:
    traced = normalize(TracedText.of(text, text), original._emoji.tags)
    assert str(traced) == normalize(text, original._emoji.tags)
    assert len(traced.spans) == len(traced)
    assert traced.spans == sorted(traced.spans)


def test_words_are_numbered(sparse) -> None:
    encoding = sparse("日本é。\r\n한<|endoftext|>")
    assert encoding.tokens()[-1] == "<|endoftext|>"
    assert encoding.word_ids() == [0, 1, 1, 2, 3, 4, 4, 4, 5]
    assert encoding.words() == encoding.word_ids()


@pytest.mark.parametrize(
    ("options", "pieces"),
    [
        ({}, [" ", "X", " "]),
        ({"lstrip": True}, ["X", " "]),
        ({"rstrip": True}, [" ", "X"]),
        ({"lstrip": True, "rstrip": True}, ["X"]),
    ],
)
def test_added_tokens_leave_out_what_they_strip(make_sparse, options, pieces) -> None:
    tokenizer = make_sparse()
    with pytest.warns(UserWarning, match="takes id"):
        tokenizer.add_tokens(AddedToken("X", **options))
    assert spans(tokenizer, "日本 X 東京") == ["日本", *pieces, "東京"]


def test_an_added_token_that_may_not_match_is_ordinary_text(make_sparse) -> None:
    tokenizer = make_sparse()
    with pytest.warns(UserWarning, match="takes id"):
        tokenizer.add_tokens(AddedToken("X", single_word=True, rstrip=True))
    assert spans(tokenizer, "日X  本") == ["日", "X", "本"], "the spaces were stripped before"


def test_replaced_surrogates_have_their_place(make_sparse) -> None:
    tokenizer = make_sparse(surrogates="replace")
    assert tokenizer("日\ud800\ud83d\ude00本", return_offsets_mapping=True).offset_mapping == [
        (0, 1),
        *[(1, 2)] * 3,
        (2, 4),
        (4, 5),
    ]


def test_cleaned_text_has_no_offsets(make_sparse) -> None:
    tokenizer = make_sparse(do_clean_text=True)
    with pytest.raises(InputError, match="do_clean_text"):
        tokenizer("2020年", return_offsets_mapping=True)
    encoding = tokenizer("2020年1月1日")
    assert encoding.tokens() == tokenizer.tokenize("2020年1月1日") or encoding.tokens()
    assert encoding.sequence_ids() == [0] * len(encoding.input_ids)
    with pytest.raises(InputError, match="does not know"):
        encoding.word_ids()


def test_offsets_are_cut_and_padded_with_the_ids(make_toy) -> None:
    tokenizer = make_toy(pad_token="<|endoftext|>", truncation_side="left", padding_side="left")
    encoding = tokenizer(
        ["こん、世界", "。"], padding=True, truncation=True, max_length=2, return_offsets_mapping=True
    )
    assert encoding.offset_mapping == [[(2, 3), (3, 5)], [(0, 0), (0, 1)]]
    assert encoding.word_ids(1) == [None, 0]
    assert encoding[1].attention_mask == encoding.attention_mask[1] == [0, 1]
    arrays = tokenizer(["こん、世界"], return_offsets_mapping=True, return_tensors="np")
    assert arrays.offset_mapping.shape == (1, 3, 2)


def test_words_that_are_given_are_the_words(toy) -> None:
    encoding = toy(["こん、", "", "世界"], is_split_into_words=True, return_offsets_mapping=True)
    assert encoding.word_ids() == [0, 0, 2]
    assert encoding.offset_mapping == [(0, 2), (2, 3), (0, 2)], "counted in each word"


def test_ids_have_no_place_in_a_text(toy) -> None:
    with pytest.raises(InputError, match="no offsets"):
        toy([0, 5], return_offsets_mapping=True)
    with pytest.raises(InputError):
        toy.prepare_for_model([0, 5], return_offsets_mapping=True)
    with pytest.raises(InputError):
        toy.prepare_for_model([0, 5]).word_ids()


# ---- rows


@pytest.fixture
def pair():
    """ "Hello the" and " world", with special tokens around both."""
    tokenizer = neox_toy(add_bos_token=True, add_eos_token=True, trim_offsets=False)
    return tokenizer("Hello the", " world", padding="max_length", max_length=10, padding_side="left")


def test_a_row_knows_its_texts(pair) -> None:
    end, pad = "<|endoftext|>", "<|padding|>"
    assert pair.tokens() == [*[pad] * 3, end, "Hello", "Ġthe", end, end, "Ġworld", end]
    assert pair.sequence_ids() == [*[None] * 4, 0, 0, None, None, 1, None]
    assert pair.word_ids() == [*[None] * 4, 0, 1, None, None, 0, None]
    assert pair[0].type_ids() == [*[0] * 7, 1, 1, 1]
    assert pair[0].special_tokens_mask == [1, 1, 1, 1, 0, 0, 1, 1, 0, 1]
    assert pair[0].offsets == [*[(0, 0)] * 4, (0, 5), (5, 9), (0, 0), (0, 0), (0, 6), (0, 0)]
    assert pair.n_sequences == 2
    assert (len(pair[0]), len(pair.encodings), len(pair[:1])) == (10, 1, 1)
    assert "10 ids" in repr(pair[0])


def test_positions_are_translated(pair) -> None:
    assert pair.token_to_sequence(4) == pair.token_to_sequence(0, -6) == 0
    assert pair.token_to_sequence(8) == 1
    assert pair.token_to_sequence(0) is pair.token_to_word(0) is pair.token_to_chars(0) is None
    assert pair.token_to_chars(5) == CharSpan(5, 9)
    assert pair.token_to_word(0, 5) == 1
    assert pair.word_to_tokens(1) == TokenSpan(5, 6)
    assert pair.word_to_tokens(0, 0, sequence_index=1) == TokenSpan(8, 9)
    assert pair.word_to_chars(1) == CharSpan(5, 9)
    assert pair.char_to_token(6) == 5
    assert pair.char_to_token(0, 5, sequence_index=1) == 8
    assert pair.char_to_word(6) == 1
    assert (
        pair.char_to_token(99)
        is pair.char_to_word(99)
        is pair.word_to_tokens(9)
        is pair.word_to_chars(9)
        is None
    )
    assert pair.token_to_chars(99) is None


@pytest.mark.parametrize(
    "ask",
    [
        lambda encoding: encoding.tokens(1),
        lambda encoding: encoding.word_ids("a"),
        lambda encoding: encoding.char_to_token(None),
        lambda encoding: encoding.char_to_token(1.5),
        lambda encoding: encoding.char_to_token(1, sequence_index=2),
        lambda encoding: encoding[7],
    ],
)
def test_positions_that_are_none_are_refused(pair, ask) -> None:
    with pytest.raises(InputError):
        ask(pair)


def test_rows_are_made_when_they_are_asked_for(make_toy) -> None:
    tokenizer = make_toy()
    encoding, other = tokenizer("こん、世界"), tokenizer(["こん"], padding=False, return_length=True)
    assert encoding.word_ids() == [0, 1, 2]
    tokenizer.add_tokens("X")
    assert encoding.tokens() == ["こん", "、", "世界"]
    with pytest.raises(InputError, match="return_offsets_mapping"):
        other.word_ids()
    at_once = tokenizer("こんX", return_offsets_mapping=True)
    tokenizer.add_tokens("Y")
    assert at_once.word_ids() == [0, 1]


def test_dropout_has_no_second_look(make_sparse) -> None:
    tokenizer = make_sparse(compat="original", bpe_dropout_rate=0.5, seed=1)
    with pytest.raises(InputError, match="return_offsets_mapping"):
        tokenizer("日本").word_ids()
    encoding = tokenizer("日本" * 9, return_offsets_mapping=True)
    assert len(encoding.word_ids()) == len(encoding.input_ids)


def test_copies_know_their_rows(toy) -> None:
    encoding = toy("こん、")
    for twin in (copy.copy(encoding), copy.deepcopy(encoding), encoding.copy()):
        assert twin == encoding
        assert twin.tokens() == ["こん", "、"]
    assert copy.deepcopy(encoding).input_ids is not encoding.input_ids
    late = pickle.loads(pickle.dumps(encoding))
    assert late == encoding
    with pytest.raises(InputError, match="does not know"):
        late.tokens()
    encoding.tokens()
    known = pickle.loads(pickle.dumps(encoding))
    assert (known.tokens(), known.word_ids()) == (["こん", "、"], [0, 1])


def test_encodings_made_by_hand_have_no_rows() -> None:
    from refimpl.tokenizer import BatchEncoding

    with pytest.raises(InputError, match="does not know"):
        BatchEncoding({"input_ids": [1]}).word_ids()
