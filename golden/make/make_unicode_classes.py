"""Print the tables of `tokenizer/unicode_classes.py`, measured on the `tokenizers` package.

    python golden/make/make_unicode_classes.py >> tokenizer/unicode_classes.py     # then arrange by hand

Nothing is taken from documentation: every scalar value is put before the library.  Which characters *could*
matter to normalisation comes from `unicodedata2` (a backport of the newest Unicode data, needed here only).
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable

import unicodedata2
from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE

SCALARS = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000]
BLOCK = 4096


def members(pattern: str) -> set[int]:
    """The characters that the library's regular expressions take `pattern` to mean."""
    remover = pre_tokenizers.Split(Regex(pattern), "removed")
    found: set[int] = set()
    for first in range(0, len(SCALARS), BLOCK):
        block = SCALARS[first : first + BLOCK]
        kept = {
            position
            for _, (start, end) in remover.pre_tokenize_str("".join(map(chr, block)))
            for position in range(start, end)
        }
        found.update(code for position, code in enumerate(block) if position not in kept)
    return found


def word_characters() -> set[int]:
    """The characters beside which an added token with `single_word` is not found."""
    tokenizer = Tokenizer(BPE(vocab={"x": 0}, merges=[]))
    tokenizer.add_tokens([AddedToken("@@", single_word=True, normalized=False)])
    number = tokenizer.token_to_id("@@")
    encodings = tokenizer.encode_batch([chr(code) + "@@" for code in SCALARS])
    return {code for code, encoding in zip(SCALARS, encodings, strict=True) if number not in encoding.ids}


def inert_characters(nfc: Callable[[str], str]) -> set[int]:
    """What newer Unicode reorders or composes, and the library's NFC leaves alone."""
    inert = set()
    for code in SCALARS:
        character = chr(code)
        parts = unicodedata2.decomposition(character)
        if parts and "<" not in parts:
            whole = "".join(chr(int(part, 16)) for part in parts.split())
            if unicodedata2.normalize("NFC", whole) != nfc(whole):
                inert.update({code, *map(ord, whole)})
        elif unicodedata2.combining(character) and not reorders(character, nfc):
            inert.add(code)
    return {code for code in inert if not reorders(chr(code), nfc)}


def reorders(character: str, nfc: Callable[[str], str]) -> bool:
    """Whether the library gives `character` a combining class: it then changes places with U+0334 or U+0323."""
    low, high = "\u0334", "\u0323"
    return nfc("q" + character + low) == "q" + low + character or (
        nfc("q" + high + character) == "q" + character + high
    )


def ranges(codes: Iterable[int]) -> list[str]:
    """`41-5a 61-7a aa`: first and last code point of each run, in hexadecimal."""
    runs: list[list[int]] = []
    for code in sorted(codes):
        if runs and runs[-1][1] == code - 1:
            runs[-1][1] = code
        else:
            runs.append([code, code])
    return [f"{first:x}" if first == last else f"{first:x}-{last:x}" for first, last in runs]


def main() -> None:
    tables = {
        "LETTERS": members(r"\p{L}"),
        "NUMBERS": members(r"\p{N}"),
        "SPACES": members(r"\s"),
        "WORD_CHARACTERS": word_characters(),
        "INERT": inert_characters(normalizers.NFC().normalize_str),
    }
    for name, codes in tables.items():
        text = "\n".join(textwrap.wrap(" ".join(ranges(codes)), 110, break_on_hyphens=False))
        print(f'\n#: {len(codes):,} code points\n{name} = """\n{text}\n"""')


if __name__ == "__main__":
    main()
