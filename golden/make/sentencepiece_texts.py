"""What `make_sentencepiece.py` trains its vocabularies on, and the texts of its cases."""

from __future__ import annotations

import random
import unicodedata
from itertools import product
from typing import Any, NamedTuple

#: Words that are parts of each other and overlap, so that there is more than one way to divide a text.
JAPANESE = (
    "猫 子猫 犬 番犬 東京 京都 東京都 都会 都市 大都市 大阪 大学 学生 大学生 学校 生活 活動 日本 日本語 本日 "
    "本 図書 図書館 書店 館内 会話 会社 社会 海 海外 外国 外国人 人間 時間 間 今日 明日 電話 電車 車内 駅 駅前 "
    "前日 食べる 食べた 食べ物 物語 語る 読む 読んだ 歩く 歩いた 見る 見た 見物 雨 大雨 写真 真夜中 中心 心 "
    "友達 先生 先日 わたし わたしたち ラーメン バス パン"
)
PARTICLES = ("は", "が", "を", "に", "で", "と", "の", "も", "から", "まで", "ので", "のに")
ENDS = ("。", "。", "です。", "ました。", "でした。", "？", "、")
ENGLISH = (
    "a an and answer the then there other another he her here hear heart earth art in rain train training station "
    "nation on one tone stone at cat eat seat read reader ready to too into together get gather book look looking "
    "walk walking king"
)


def training_lines() -> list[str]:
    """Some hundred lines in which the words follow each other by chance, half of them Japanese."""
    draw, japanese, lines = random.Random(20), JAPANESE.split(), []
    for number in range(240):
        words = [draw.choice(japanese) + draw.choice(PARTICLES) for _ in range(draw.randrange(2, 6))]
        lines.append("".join([*words, draw.choice(japanese), draw.choice(ENDS)]))
        english = " ".join(draw.choices(ENGLISH.split(), k=draw.randrange(3, 9)))
        lines.append(f"{english[0].upper()}{english[1:]}." if number % 3 else f"「{english}」は{number}円")
    return lines


def normalization_rules() -> str:
    """A part of NFKC and the spaces of `nmt_nfkc`, the package's default, whose whole map has 240 kB.

    Each line: code points, a tab, the code points that they become.
    """
    rules = {chr(code): unicodedata.normalize("NFKC", chr(code)) for code in range(0xFF01, 0xFFA0)}
    rules |= {chr(code): unicodedata.normalize("NFKC", chr(code)) for code in range(0x2460, 0x2474)}
    for kana, mark in product(map(chr, range(0xFF66, 0xFF9E)), "\uff9e\uff9f"):
        if len(composed := unicodedata.normalize("NFKC", kana + mark)) == 1:
            rules[kana + mark] = composed
    rules |= {"ﷺ": unicodedata.normalize("NFKC", "ﷺ"), "㌔": "キロ", "e\u0301": "\xe9"}
    rules |= dict.fromkeys("\t\n\r\u3000\xa0\u2028", " ") | dict.fromkeys("\u200b\ufeff", "")

    def points(text: str) -> str:
        return " ".join(f"{ord(character):X}" for character in text)

    return "".join(f"{points(old)}\t{points(new)}\n" for old, new in sorted(rules.items()) if old != new)


class Case(NamedTuple):
    """A text for one vocabulary or for all (`vocabularies` empty), with the fields of golden/README.md."""

    name: str
    title: str
    text: str
    vocabularies: tuple[str, ...] = ()
    pair: str | None = None
    options: dict[str, Any] | None = None
    call: dict[str, Any] | None = None
    added_tokens: tuple[dict[str, Any], ...] = ()


PLAIN = {"add_special_tokens": False}
TOKYO = {"content": "東京", "lstrip": False, "rstrip": False, "normalized": False, "special": False}

CASES = (
    Case("japanese", "A sentence, and the end token after it", "猫は東京都で本を読んだ。"),
    Case(
        "no-end-token",
        "The same as these models want it: without the end token",
        "猫は東京都で本を読んだ。",
        call=PLAIN,
    ),
    Case("english", "Words with spaces between", "The cat walks to the station."),
    Case("mixed", "Both languages in one text", "友達はthe stationで123円のバスに。", call=PLAIN),
    Case("empty", "No text: the end token alone", ""),
    Case("empty-no-end-token", "No text, and no end token: no ids", "", call=PLAIN),
    Case("space", "A space alone", " ", call=PLAIN),
    Case("spaces", "Runs of spaces, at both ends too", "  the  cat   reads ", call=PLAIN),
    Case("line-end", "Line ends and tabs", "猫\n犬\t先生\r\n", call=PLAIN),
    Case("ideographic-space", "The space of Japanese", "猫\u3000犬", call=PLAIN),
    Case(
        "lower-one-eighth",
        "The character that stands for a space in pieces, written in the text",
        "猫▁犬",
        call=PLAIN,
    ),
    Case("emoji", "Characters beyond the basic plane", "猫🍣犬😀", call=PLAIN),
    Case("unknown", "Characters that the training text does not have", "鬱病の蝶", call=PLAIN),
    Case(
        "unknown-row", "A row of unknown characters, and one more behind a known one", "鬱蝶猫鬱", call=PLAIN
    ),
    Case("unknown-only", "Nothing but one unknown character", "鬱"),
    Case("hangul", "Another script", "한국어", call=PLAIN),
    Case(
        "accent", "One accented letter, and the same as letter and accent", "caf\xe9 cafe\u0301", call=PLAIN
    ),
    Case(
        "full-width",
        "Full-width letters and digits, which two of the vocabularies normalise",
        "Ｔｈｅ　ｃａｔ　１２３",
        call=PLAIN,
    ),
    Case(
        "half-width-kana",
        "Half-width kana whose sound marks are characters of their own",
        "ﾗｰﾒﾝ ﾊﾞｽ ﾊﾟﾝ",
        call=PLAIN,
    ),
    Case("becomes-longer", "Characters that normalisation spreads", "①⑳㌔ﷺ", call=PLAIN),
    Case("removed", "Characters that normalisation removes", "猫\u200b犬\ufeff", call=PLAIN),
    Case("nul", "U+0000", "a\0b", call=PLAIN),
    Case("byte-piece-in-text", "The name of a byte piece, written in the text", "<0x41>猫", call=PLAIN),
    Case("end-token-in-text", "The end token, written in the text", "猫</s>犬"),
    Case("begin-token-in-text", "The first token, written in the text", "<s>猫", call=PLAIN),
    Case("unk-token-in-text", "The unknown token, written in the text", "猫<unk> 犬", call=PLAIN),
    Case(
        "no-special-token", "What looks like a special token of another vocabulary", "猫[BOS]犬", call=PLAIN
    ),
    Case("upper-case", "Upper case, of which the training text has little", "THE CAT READS", call=PLAIN),
    Case(
        "lower-case",
        "do_lower_case, as rinna's users set it",
        "THE Cat </s>",
        options={"do_lower_case": True},
        call=PLAIN,
    ),
    Case("pair", "Two texts, the end token after each", "猫", pair="犬 cat"),
    Case(
        "not-the-longest",
        "The longest piece at each place is not the likeliest division",
        "gathe reathe ether 東京都 120円",
        call=PLAIN,
    ),
    Case(
        "added-token",
        "A token that was added: cut out, and decoded between spaces",
        "猫は東京で歩いた",
        call=PLAIN,
        added_tokens=(TOKYO,),
    ),
    Case(
        "new-form",
        "legacy false: no space after a special token",
        "猫 </s>犬 the cat",
        options={"legacy": False},
        call=PLAIN,
    ),
    Case(
        "new-form-no-prefix",
        "legacy false, and no space before the text",
        "the cat",
        options={"legacy": False, "add_prefix_space": False},
        call=PLAIN,
    ),
    Case(
        "extra-ids",
        "Three sentinels behind the vocabulary, the first with the highest id",
        "猫<extra_id_0>犬 <extra_id_2>",
        ("line",),
        options={"extra_ids": 3},
        call=PLAIN,
    ),
    Case(
        "mask",
        "The tokens that BERT has, which rinna's first files name",
        "猫[MASK]犬[SEP]",
        ("small",),
        call=PLAIN,
    ),
    Case(
        "line-end-symbol",
        "A symbol for line ends that is given to the trainer",
        "猫<NL>犬",
        ("bytes",),
        call=PLAIN,
    ),
)

#: Name -> title, vocabularies, pieces.
DECODE: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "end-tokens": (
        "The end token at once after itself, and between texts",
        (),
        ("</s>", "▁", "猫", "</s>", "</s>", "犬"),
    ),
    "space-first": ("A space before the text is not part of it", (), ("▁", "猫", "▁", "犬")),
    "spaces": ("Spaces alone", (), ("▁", "▁")),
    "unknown": ("The unknown token is special: it is written as it is", (), ("猫", "<unk>", "犬")),
    "bytes": (
        "Bytes of one character",
        ("bytes", "line"),
        ("猫", "<0xF0>", "<0x9F>", "<0x8D>", "<0xA3>", "犬"),
    ),
    "bytes-cut": (
        "Bytes that stop within a character",
        ("bytes", "line"),
        ("猫", "<0xF0>", "<0x9F>", "<0x8D>"),
    ),
    "bytes-alone": ("A byte that begins no character", ("bytes", "line"), ("<0xA3>", "猫", "<0x41>")),
    "bytes-parted": (
        "A special token within the bytes of a character",
        ("bytes", "line"),
        ("<0xC3>", "</s>", "<0xA9>"),
    ),
    "roles": (
        "Special tokens in a row: a space before the first alone",
        ("small",),
        ("猫", "[SEP]", "[MASK]", "[CLS]", "犬"),
    ),
}
