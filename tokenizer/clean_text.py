r"""`do_clean_text`: URLs, mail addresses, telephone numbers, dates, prices and box drawing as tags.

Six patterns are replaced one after the other, each in the result of the one before, then every run of
box-drawing and block characters.  The result is that of transformers since its fix of the runaway price
pattern (CVE-2025-1194); the encoder of 2020 read prices differently.

Where a pattern looks odd, the original is odd: the result counts, not what was meant.  `\d` is any
decimal digit of Unicode (full-width too), `[0-9]` only ASCII.  Three of the patterns, tried from every
character, would take time that grows with the square of the text; they are replaced by functions that
find the same matches and look at no place twice.
"""

from __future__ import annotations

import re
from collections.abc import Callable

URL = re.compile(r"(?:https?|ftp)://[-_.!~*'()a-zA-Z0-9;/?:@&=+$,%#]+")

# Mail: [A-Za-z0-9._+]* and then this.
_MAIL_HOST = re.compile(r"@[-_0-9A-Za-z]+(?:\.[A-Za-z]+)*")
_MAIL_NAME_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._+")

TELEPHONE = re.compile(r"\(?[0-9]{2,4}[)\-(]?[0-9]{2,4}[)\-]?[0-9]{3,4}")

# Date: _YEAR*+ and then _MONTH_AND_DAY.  Days are read digit by digit, times as bare digits and colons,
# so that "1月10日" ends before its last character and "12時" at 12.
_MONTH = r"(?:0?[1-9]|1[0-2])"
_TIME = r"(?:[\d:]|\([日月火水木金土]\)|[㈪-㈰])*+"
_YEAR = re.compile(r"[12]\d{3}[/\-年]")
_MONTH_AND_DAY = re.compile(rf"{_MONTH}[/\-月](?:0?[1-9]日?)*+{_TIME}")
_DATE_START = re.compile(r"[0-9]")

ERA_DATE = re.compile(
    rf"(?:明治|大正|昭和|平成|令和|[㍻-㍾\u32ff])\d{{1,2}}年{_MONTH}月(?:0?[1-9]|[12][0-9]|3[01])日{_TIME}"
)

# Price: each part of _AMOUNT as often as it matches, in this order, and then _CURRENCY.
_AMOUNT = [re.compile(rf"\d,\d{{3}}|[\d{unit}]") for unit in "億万千"]
_CURRENCY = re.compile(r"(?:(?:千万|[千万])?(?:円|ドル|ユーロ))++(?:\(税[込抜]\)|\+tax)*+")
_PRICE_START = re.compile(r"[\d億万千円ドユ]")

BOX_DRAWING = re.compile("[\u2500-\u259f]+")


def clean_text(text: str) -> str:
    """`text` (after `normalize`) with its URLs, addresses, numbers, dates and prices as tags."""
    text = URL.sub("<URL>", text)
    text = _replace_mail(text)
    text = TELEPHONE.sub("<TEL>", text)
    text = _replace(text, _DATE_START, _date_end, "<DATE>")
    text = ERA_DATE.sub("<DATE>", text)
    text = _replace(text, _PRICE_START, _price_end, "<PRICE>")
    text = BOX_DRAWING.sub("<BLOCK>", text)
    while "<BLOCK><BLOCK>" in text:
        text = text.replace("<BLOCK><BLOCK>", "<BLOCK>")
    return text


def _replace_mail(text: str) -> str:
    """Each address as a tag: from its "@" back over the name, but not into the address before."""
    pieces, done = [], 0
    for host in _MAIL_HOST.finditer(text):
        start = host.start()
        while start > done and text[start - 1] in _MAIL_NAME_CHARACTERS:
            start -= 1
        pieces += [text[done:start], "<EMAIL>"]
        done = host.end()
    return "".join([*pieces, text[done:]])


def _replace(
    text: str, may_start: re.Pattern[str], find_end: Callable[[str, int, set[int]], int], tag: str
) -> str:
    """What `re.sub` does with a pattern whose match at a place `find_end` finds (0 for none).

    A match is a path of steps, each of which depends on its place alone: a path that comes to a place
    from which another one failed fails too.  `failed` holds these places.
    """
    pieces, done, position = [], 0, 0
    failed: set[int] = set()
    while found := may_start.search(text, position):
        start = found.start()
        end = find_end(text, start, failed)
        position = end or start + 1
        if end:
            pieces += [text[done:start], tag]
            done = end
    return "".join([*pieces, text[done:]])


def _date_end(text: str, start: int, failed: set[int]) -> int:
    path, position = [], start
    while year := _YEAR.match(text, position):
        if position in failed:
            break
        path.append(position)
        position = year.end()
    end = None if year else _MONTH_AND_DAY.match(text, position)
    if end is None:
        failed.update(path)
        return 0
    return end.end()


def _price_end(text: str, start: int, failed: set[int]) -> int:
    path, position = [], start
    for phase, part in enumerate(_AMOUNT):
        while (step := 3 * position + phase) not in failed:
            path.append(step)
            found = part.match(text, position)
            if not found:
                break
            position = found.end()
        else:
            failed.update(path)
            return 0
    end = _CURRENCY.match(text, position)
    if end is None:
        failed.update(path)
        return 0
    return end.end()
