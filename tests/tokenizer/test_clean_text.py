"""`clean_text`: what becomes a tag, in which order, and in how much time."""

from __future__ import annotations

import itertools
import re
import time

import pytest

from refimpl.tokenizer.clean_text import TELEPHONE, clean_text


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("見てhttp://a.jp/x?y=1です", "見て<URL>です"),
        ("https:// ftp://b", "https:// <URL>"),
        ("a.b+c@d.jpへ", "<EMAIL>へ"),
        ("@host @", "<EMAIL> @"),
        ("a@b@c", "<EMAIL><EMAIL>"),
        ("a@b.c@d", "<EMAIL><EMAIL>"),
        ("a@b.c.1", "<EMAIL>.1"),
        ("あa@b", "あ<EMAIL>"),
        ("03-1234-5678", "<TEL>"),
        ("(03)1234-5678", "<TEL>"),
        ("110", "110"),
        ("2020年12月31日", "<DATE>"),
        ("2020年2021年3月", "<DATE>"),
        ("12/31", "<DATE>"),
        ("13/31", "1<DATE>"),
        ("1月10日", "<DATE>日"),
        ("3月4日12時30分", "<DATE>時30分"),
        ("3月4日(日)12:30", "<DATE>"),
        ("3月4日㈰㈪㈯㈱", "<DATE>㈱"),
        ("1/2000/12/", "<DATE>/<DATE>"),
        ("平成31年4月30日", "平成31年<DATE>日"),
        ("平成3年4月30日", "平成3年<DATE>日"),
        ("5円", "<PRICE>"),
        ("1億2,000万円", "<PRICE>"),
        ("1,234,567円+tax", "1,<PRICE>"),
        ("千円万ドル千万ユーロ(税込)", "<PRICE>"),
        ("5千", "5千"),
        ("─━▀あ█", "<BLOCK>あ<BLOCK>"),
        ("<BLOCK>─<BLOCK><BLOCK>", "<BLOCK>"),
        ("", ""),
    ],
)
def test_patterns(text: str, cleaned: str) -> None:
    assert clean_text(text) == cleaned


TAIL = r"(?:[\d:]|\([日月火水木金土]\)|[㈪-㈰])*"
WHOLE_PATTERNS = {
    "<EMAIL>": r"[A-Za-z0-9._+]*@[-_0-9A-Za-z]+(?:\.[A-Za-z]+)*",
    "<DATE>": rf"(?:[12]\d{{3}}[/\-年])*(?:0?[1-9]|1[0-2])[/\-月](?:0?[1-9]日?)*{TAIL}",
    "<PRICE>": r"(?:\d,\d{3}|[\d億])*+(?:\d,\d{3}|[\d万])*+(?:\d,\d{3}|[\d千])*+"
    r"(?:(?:千万|[千万])?(?:円|ドル|ユーロ))+(?:\(税[込抜]\)|\+tax)*",
}


@pytest.mark.parametrize(
    ("tag", "characters", "length"),
    [
        ("<EMAIL>", "a.@-あ", 6),
        ("<DATE>", ("1", "0", "2000/", "月", "日", ":"), 6),
        ("<PRICE>", "1,千万億円", 6),
    ],
)
def test_every_short_text_is_replaced_as_by_the_whole_pattern(tag: str, characters, length: int) -> None:
    pattern = re.compile(WHOLE_PATTERNS[tag])
    for size in range(length + 1):
        for parts in itertools.product(characters, repeat=size):
            text = "".join(parts)
            assert clean_text(text) == pattern.sub(tag, TELEPHONE.sub("<TEL>", text)), text


UNITS = [
    "a",
    "a.",
    "@",
    "a@",
    "http",
    "http://",
    "0",
    "(03)",
    "2000/",
    "1月",
    "1億",
    "1,000",
    "千",
    "円",
    "─",
    "<BLOCK>",
]


@pytest.mark.parametrize("unit", UNITS)
def test_time_grows_with_the_length_and_not_its_square(unit: str) -> None:
    """Far from the limit: the square of this length would take minutes."""
    started = time.perf_counter()
    clean_text(unit * (200_000 // len(unit)) + "!")
    assert time.perf_counter() - started < 10
