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
from collections.abc import Callable, Iterable, Iterator

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
_DATE_START = re.compile(rf"(?={_YEAR.pattern}|{_MONTH}[/\-月])")

ERA_DATE = re.compile(
    rf"(?:明治|大正|昭和|平成|令和|[㍻-㍾\u32ff])\d{{1,2}}年{_MONTH}月(?:0?[1-9]|[12][0-9]|3[01])日{_TIME}"
)

# Price: each part of _AMOUNT as often as it matches, in this order, and then _CURRENCY.
_AMOUNT = [re.compile(rf"\d,\d{{3}}|[\d{unit}]") for unit in "億万千"]
_CURRENCY = re.compile(r"(?:(?:千万|[千万])?(?:円|ドル|ユーロ))++(?:\(税[込抜]\)|\+tax)*+")
_CURRENCY_START = "円ドユ"
# Amounts and currencies have no other characters, so that no price stands where no currency ends a region.
_PRICE_REGION = re.compile(rf"[\d,億万千]++[{_CURRENCY_START}]?|[{_CURRENCY_START}]")

BOX_DRAWING = re.compile("[\u2500-\u259f]+")

Span = tuple[int, int]  # where a match begins, and where it has ended
Find = Callable[[str], Iterable[Span]]


def clean_text(text: str) -> str:
    """`text` (after `normalize`) with its URLs, addresses, numbers, dates and prices as tags."""
    for tag, find in RULES:
        text = replace_spans(text, find(text), tag)
    while "<BLOCK><BLOCK>" in text:
        text = text.replace("<BLOCK><BLOCK>", "<BLOCK>")
    return text


def replace_spans(text: str, spans: Iterable[Span], tag: str) -> str:
    """`text` with `tag` in place of every span; these are in order and do not overlap."""
    pieces, done = [], 0
    for start, end in spans:
        pieces += [text[done:start], tag]
        done = end
    return "".join([*pieces, text[done:]])


def _finder(pattern: re.Pattern[str]) -> Find:
    return lambda text: (found.span() for found in pattern.finditer(text))


def _find_mail(text: str) -> Iterator[Span]:
    """Each address: from its "@" back over the name, but not into the address before."""
    done = 0
    for host in _MAIL_HOST.finditer(text):
        start = host.start()
        while start > done and text[start - 1] in _MAIL_NAME_CHARACTERS:
            start -= 1
        done = host.end()
        yield start, done


# A date or a price is a path of steps, each of which depends on its place alone: a path that comes to a place
# from which another one failed fails too.  `failed` holds these places.


def _find_dates(text: str) -> Iterator[Span]:
    position = 0
    failed: set[int] = set()
    while found := _DATE_START.search(text, position):
        start = found.start()
        end = _date_end(text, start, failed)
        position = end or start + 1
        if end:
            yield start, end


def _date_end(text: str, position: int, failed: set[int]) -> int:
    """The end of the date that begins at `position`, or 0."""
    while year := _YEAR.match(text, position):
        if position in failed:
            return 0
        failed.add(position)  # if it does not fail, nobody comes here again
        position = year.end()
    end = _MONTH_AND_DAY.match(text, position)
    return end.end() if end else 0


def _find_prices(text: str) -> Iterator[Span]:
    done = 0
    failed: set[int] = set()
    for region in _PRICE_REGION.finditer(text):
        if region[0][-1] not in _CURRENCY_START:
            continue
        position = max(region.start(), done)
        while position < region.end():
            end = _price_end(text, position, failed)
            if end:
                yield position, end
                done = end
            position = end or position + 1


def _price_end(text: str, position: int, failed: set[int]) -> int:
    """The end of the price that begins at `position`, or 0."""
    for phase, part in enumerate(_AMOUNT):
        while True:
            step = 3 * position + phase
            if step in failed:
                return 0
            failed.add(step)
            found = part.match(text, position)
            if not found:
                break
            position = found.end()
    end = _CURRENCY.match(text, position)
    return end.end() if end else 0


#: Tag -> where it goes; in this order.
RULES: tuple[tuple[str, Find], ...] = (
    ("<URL>", _finder(URL)),
    ("<EMAIL>", _find_mail),
    ("<TEL>", _finder(TELEPHONE)),
    ("<DATE>", _find_dates),
    ("<DATE>", _finder(ERA_DATE)),
    ("<PRICE>", _find_prices),
    ("<BLOCK>", _finder(BOX_DRAWING)),
)
