"""The vocabulary trainer: every rule of the format that its documentation states."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from refimpl.errors import InputError, TextInputError
from refimpl.tokenizer import vocab_trainer
from refimpl.tokenizer.emoji_table import KAOMOJI, MEMBERS, SHOWN, emoji_table, expand
from refimpl.tokenizer.heterographs import KANJI_FORMS, folding, forms, vocabulary_line
from refimpl.tokenizer.vocab_trainer import BYTES, EMOJI_CLASSES, SPECIAL, TAGS, character_type, train_vocab

SMALLEST = 704  # lines that every vocabulary has
WORDS = [
    "慶応",
    "大学",
    "東京",
    "して",
    "ている",
    "ました",
    "から",
    "からだ",
    "コーヒー",
    "テレビ",
    "スポーツ",
    "本",
    "猫",
    "犬",
]
ENDS = ["。", "、", "！", "\n", "　", "①", "5", "A", "―", "（"]


def text(seed: int = 0, length: int = 4000) -> str:
    """Sub-words in random order, so that what occurs together often is known beforehand."""
    rng = random.Random(seed)
    return "".join(
        rng.choice(WORDS) + (rng.choice(ENDS) if rng.random() < 0.3 else "") for _ in range(length)
    )


@pytest.fixture(scope="module")
def lines() -> list[str]:
    return train_vocab([text()], 760)


def spellings(line: str) -> list[str]:
    return [line] if line == "," else line.split(",")


def learned(lines: list[str]) -> list[str]:
    """First forms of the sub-words and learned characters."""
    return [spellings(line)[0] for line in lines[: lines.index("〜")]]


def subwords(lines: list[str]) -> list[str]:
    return [word for word in learned(lines) if len(word) > 1]


def tokens_of(lines: list[str], content: str) -> list[str]:
    """The rule of the tokenizer, written down once more: of three characters the smallest id."""
    ids = {form: number for number, line in enumerate(lines) for form in spellings(line)}
    tokens = []
    while content:
        found = [content[:size] for size in (1, 2, 3) if content[:size] in ids]
        tokens.append(min(found, key=ids.__getitem__) if found else content[0])
        content = content[len(tokens[-1]) :]
    return tokens


def test_size_and_no_doubles(lines):
    assert SMALLEST < len(lines) <= 760
    words = [form for line in lines for form in spellings(line)]
    assert len(words) == len(set(words))
    assert all(words)
    assert all(line == line.strip() and "\n" not in line for line in lines)


def test_subwords_never_cross_character_types(lines):
    found = subwords(lines)
    assert {"ている", "慶応", "テレ"} & set(found)
    for word in found:
        assert len({character_type(char) for char in word}) == 1, word
        assert character_type(word[0]) is not None, word
    assert subwords(train_vocab(["イの国と、アの、Aの国。" * 50], 760)) == []


def test_character_types():
    assert {character_type(char) for char in "ぁんゖゝ"} == {"hiragana"}
    assert {character_type(char) for char in "ァヴヺーヽ"} == {"katakana"}
    assert {character_type(char) for char in "一鿿々㐀𠮟\ufa19"} == {"kanji"}
    assert {character_type(char) for char in "。a１①・〇 "} == {None}


def test_lengths(lines):
    longest = {kind: max(len(w) for w in subwords(lines) if character_type(w[0]) == kind)
               for kind in ("hiragana", "katakana", "kanji")}  # fmt: skip
    assert longest == {"hiragana": 3, "katakana": 3, "kanji": 2}


def test_a_subword_stands_before_its_own_beginnings(lines):
    rank = {word: number for number, word in enumerate(learned(lines))}
    pairs = [(word, word[:size]) for word in rank for size in range(1, len(word)) if word[:size] in rank]
    assert any(len(beginning) == 2 for _, beginning in pairs)
    for word, beginning in pairs:
        assert rank[word] < rank[beginning], (word, beginning)


def test_voiced_half_width_forms_stand_before_what_they_begin_with(lines):
    rank = {form: number for number, line in enumerate(lines) for form in spellings(line)}
    assert rank["ガ"] == rank["ｶﾞ"] < rank["ｶ"] == rank["カ"]
    assert rank["パ"] == rank["ﾊﾟ"] < rank["ﾊ"]


def test_subwords_come_first_then_characters(lines):
    lengths = [len(word) > 1 for word in learned(lines)]
    assert lengths == sorted(lengths, reverse=True)


def test_all_kana_and_the_frequent_kanji_have_lines(lines):
    words = {form for line in lines for form in spellings(line)}
    assert set(vocab_trainer.KANA) <= words
    assert {"慶", "応", "猫", "本"} <= words


def test_heterographs_share_a_line(lines):
    by_first = {spellings(line)[0]: spellings(line) for line in lines}
    assert by_first["慶応"] == ["慶応", "慶應"]
    assert by_first["応"] == ["応", "應"]
    assert by_first["カ"] == ["カ", "ｶ"]
    assert by_first["１"] == ["１", "①", "⑴", "⒈", "⓵"]
    assert by_first["９"] == ["９", "⑨", "⑼", "⒐", "⓽"]
    assert by_first["Ａ"] == ["Ａ", "Ⓐ"]
    assert by_first["ｚ"] == ["ｚ", "⒵", "ⓩ"]
    assert by_first["。"] == ["。", "｡"]
    assert by_first["1"] == ["1"]
    assert by_first[","] == [","]


def test_old_forms_are_counted_as_the_modern_one():
    old = train_vocab(["慶應の大學。" * 50], 760)
    assert old == train_vocab(["慶応の大学。" * 50], 760)
    assert "慶応,慶應" in old
    assert any(line.startswith("大学,大學") for line in old)


def test_forms_of_a_line():
    assert vocabulary_line("学校") == "学校,學校"
    assert vocabulary_line("神") == "神,\ufa19"
    assert vocabulary_line("人") == "人,\u2f08"
    assert vocabulary_line("テレ") == "テレ,ﾃﾚ"
    assert vocabulary_line("デン") == "デン,ﾃﾞﾝ"
    assert (
        vocabulary_line("ビデオ") == "ビデオ"
    )  # five half-width characters: more than the tokenizer looks at
    assert vocabulary_line("の") == "の"


def test_the_table_of_forms_is_sound():
    every = [form for first, others in forms().items() for form in (first, *others)]
    assert len(every) == len(set(every))
    assert all("," not in form and form.strip() == form for form in every)
    assert not set(folding().values()) & {chr(code) for code in folding()}
    assert all(len(entry) > 1 for entry in KANJI_FORMS.split())


def test_the_end_of_the_file(lines):
    end = [*TAGS, *EMOJI_CLASSES, *BYTES, *SPECIAL]
    assert lines[-len(end) :] == end
    assert len(EMOJI_CLASSES) == 12
    assert [f"<|byte{value}|>" for value in range(256)] == BYTES
    assert lines[-4:] == ["<|startoftext|>", "<|separator|>", "<|nottoken|>", "<|endoftext|>"]
    assert lines[-283:-272] == ["<BR>", "<SP>", "<TAB>", "<URL>", "<EMAIL>", "<TEL>", "<DATE>", "<PRICE>",
                                "<BLOCK>", "<KIGOU>", "<U2000U2BFF>"]  # fmt: skip


def test_deterministic_and_independent_of_the_order_of_texts(lines):
    whole = text()
    assert train_vocab([whole], 760) == lines
    parts = whole.split("。")
    assert train_vocab(reversed(parts), 760) == train_vocab(parts, 760)


def test_more_lines_make_text_shorter():
    sizes = [SMALLEST, 710, 716, 722]
    content = text(1, 1500).replace("\n", "").replace("　", "")
    tokens = [len(tokens_of(train_vocab([text()], size), content)) for size in sizes]
    assert all(more < fewer for fewer, more in pairwise(tokens)), tokens
    assert len(content) / tokens[-1] > 1.5


def test_every_subword_is_used(lines):
    used = set(tokens_of(lines, text()))
    assert set(subwords(lines)) <= used


def test_coverage_decides_which_characters_are_kept():
    content = "猫" * 90 + "犬" * 9 + "鼠"
    words = set(learned(train_vocab([content], 800, character_coverage=0.9, min_count=1)))
    assert "猫" in words
    assert "犬" not in words
    words = set(learned(train_vocab([content], 800, character_coverage=0.99, min_count=1)))
    assert "犬" in words
    assert "鼠" not in words
    assert "鼠" in learned(train_vocab([content], 800, character_coverage=1, min_count=1))


def test_characters_take_half_of_the_learned_lines_at_most():
    rng = random.Random(2)
    content = "".join(chr(0x4E00 + rng.randrange(60)) for _ in range(5000))
    found = learned(train_vocab([content], SMALLEST + 40, character_coverage=1))
    assert len([word for word in found if character_type(word[0]) == "kanji" and len(word) == 1]) == 20
    assert len([word for word in found if len(word) == 2]) == 20


def test_no_line_for_emoji_spaces_and_control_characters():
    words = set(learned(train_vocab(["猫🐯\x07\u200b\u2028\ue000\u3000♥️" * 9], 800, character_coverage=1)))
    assert "猫" in words
    assert not words & set("🐯\x07\u200b\u2028\ue000\u3000\ufe0f")


def test_errors():
    with pytest.raises(InputError, match=r"too small.*vocab_size=703.*>= 704"):
        train_vocab(["猫"], SMALLEST - 1)
    assert len(train_vocab(["猫"], SMALLEST)) == SMALLEST
    for nothing in ([], [""], [" \n\t"]):
        with pytest.raises(InputError, match="no text"):
            train_vocab(nothing, 800)
    with pytest.raises(TextInputError, match="text 1, position 2") as caught:
        train_vocab(["猫", "犬と\ud83d"], 800)
    assert caught.value.position == 2
    for share in (0, 1.5, -1, float("nan")):
        with pytest.raises(InputError, match="character_coverage"):
            train_vocab(["猫"], 800, character_coverage=share)
    with pytest.raises(InputError, match="positive"):
        train_vocab(["猫"], 800, min_count=0)


def test_emoji_table_has_twelve_classes():
    table = emoji_table()
    assert list(table) == ["emoji", "emoji_inv"]
    assert set(table["emoji"].values()) == set(EMOJI_CLASSES) == set(table["emoji_inv"])
    assert list(MEMBERS) == list(range(1, 12))
    for number in range(1, 13):
        assert table["emoji"][SHOWN[number]] == f"<|emoji{number}|>"


@pytest.mark.parametrize(
    ("emoji", "number"),
    [("😀", 1), ("😭", 2), ("⚽", 3), ("🐈", 4), ("🇯🇵", 5), ("🏴󠁧󠁢󠁳󠁣󠁴󠁿", 5), ("🍙", 6), ("🥁", 7), ("👍🏽", 8), ("👩🏻‍🔬", 8),
     ("👨‍👩‍👧‍👦", 8), ("🏃🏿‍♀️", 3), ("🧑🏻‍🤝‍🧑🏿", 8), ("❤️", 9), ("❤", 9), ("❤️‍🔥", 9), ("👩‍❤️‍💋‍👨", 9), ("1️⃣", 10),
     ("♀️", 10), ("🌸", 11), ("☀", 11), ("(^_^)", 12), ("(´・ω・`)", 12)],
)  # fmt: skip
def test_emoji_classes(emoji, number):
    assert emoji_table()["emoji"][emoji] == f"<|emoji{number}|>"


def test_longer_emoji_are_replaced_before_their_parts():
    order = list(emoji_table()["emoji"])
    assert [len(emoji) for emoji in order] == sorted((len(emoji) for emoji in order), reverse=True)
    content = "👩🏻‍🔬と🏳️‍🌈と👨‍👩‍👧‍👦と👋🏽"
    for emoji in order:
        content = content.replace(emoji, emoji_table()["emoji"][emoji])
    assert content == "<|emoji8|>と<|emoji5|>と<|emoji8|>と<|emoji8|>"


def test_plain_text_is_no_emoji():
    plain = set("○●◎◇◆□■△▲▽▼☆★♪♭♂♀♠♣♥♦→←↑↓※〒〓‼⁉™©®ℹ〰〽㊗㊙①０0#*・…‥―(^_)ω・;")
    assert not plain & set(emoji_table()["emoji"])
    assert "".join(vocab_trainer.PUNCTUATION) not in emoji_table()["emoji"]


def test_no_key_of_the_table_can_fail_or_feed_on_a_tag():
    classes = " ".join([*EMOJI_CLASSES, *TAGS])
    for emoji in emoji_table()["emoji"]:
        assert emoji not in classes
        assert not set(emoji) & set(" \u3000\r\n\t—−"), (
            "the tokenizer replaces these before it looks for emoji"
        )
    assert all(3 <= len(face) <= 12 for face in KAOMOJI.split())
    assert len(KAOMOJI.split()) == len(set(KAOMOJI.split())) >= 60


def test_the_members_of_the_classes_are_apart():
    members = [char for ranges in MEMBERS.values() for char in expand(ranges)]
    assert len(members) == len(set(members)) > 1300
