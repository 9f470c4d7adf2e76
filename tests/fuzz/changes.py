"""Random changes of files: of their bytes, of their lines, and of the values in their JSON."""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

#: Texts that have broken readers: of this one and of others.
TEXTS = [
    *[
        "",
        " ",
        "\n",
        "\r\n",
        "\x00",
        "\x1b[2J",
        "\x85",
        "\u2028",
        "\ufeff",
        "\ufffe",
        "\ud800",
        "\udfff\ud800",
    ],
    *[
        "e\u0301",
        "é",
        "\u1100\u1161",
        "가",
        "İ",
        "ß",
        "\u200d",
        "\U0010ffff",
        "😀",
        "日本",
        "Ġ",
        "ĠĠ",
        "Ċ",
        "Ā",
    ],
    *[
        "a",
        "b",
        "ab",
        "abc",
        "a b",
        "a,b",
        ",",
        "<",
        ">",
        "|",
        "><",
        "<|",
        "|>",
        "<|endoftext|>",
        "<SP>",
        "<BR>",
    ],
    *[
        "<|byte0|>",
        "<|byte300|>",
        "<|byte-1|>",
        "<|bytexx|>",
        "<|byte٣|>",
        "<|byte",
        "<|emoji1|>",
        "<|emoji0001|>",
    ],
    *[
        "(a+)+$",
        "(",
        "\\",
        "[",
        ".*",
        "\\p{L}+",
        "$(id)",
        "../../etc/passwd",
        "%s%n",
        "null",
        "NaN",
        "-0",
        "1e999",
    ],
    *["a" * 33, "a" * 256, "a" * 257, "<" * 300, "a" * 1024, "a" * 1025, "\u0301" * 600, "日" * 3000],
]
NUMBERS = [
    *[
        0,
        1,
        -1,
        2,
        3,
        7,
        11,
        255,
        256,
        10_000,
        10**9,
        2**31 - 1,
        2**31,
        -(2**31),
        2**32,
        2**63,
        2**64,
        10**30,
    ],
    *[10**400, 0.0, -0.0, 0.5, 1.0, 1.5, 1e20, 1e308, 5e-324, float("nan"), float("inf"), float("-inf")],
]
#: JSON that no value of Python stands for, put in after it is written.
RAW = [
    *[
        "1e999",
        "-1e999",
        "9" * 5000,
        "01",
        "1.",
        "+1",
        "-",
        "0x1",
        "nul",
        "True",
        "'a'",
        "[1,]",
        "{,}",
        "{1:2}",
        "//",
    ],
    *[
        '{"a": 1, "a": 2}',
        '"\\ud800"',
        '"\\udc00\\ud800"',
        '"\\u12"',
        '"\\x"',
        '"a',
        '"\t"',
        "Infinity",
        "NaN",
    ],
]
_MARK = "raw-value-"
_MARKED = re.compile(f'"{_MARK}([0-9]+)"')


def value(draw: random.Random, words: Sequence[Any] = ()) -> Any:
    """Some value of JSON, often one of `words`; a few stand for what only `written` can write."""
    kind = draw.randrange(12)
    if kind < 4 and words:
        return copy.deepcopy(draw.choice(words))  # a later change may go into it
    if kind < 6:
        return draw.choice(TEXTS)
    if kind < 8:
        return draw.choice(NUMBERS)
    if kind == 8:
        return draw.choice((None, True, False))
    if kind == 9:
        return draw.choice(
            ([], {}, [[]], [None], {"": None}, {"type": "ByteLevel"}, {"content": "x"}, ["a", "b"])
        )
    if kind == 10:
        return {draw.choice(TEXTS): draw.choice(NUMBERS)}
    return _MARK + str(draw.randrange(len(RAW) + 40))


def _raw(draw: random.Random, number: int) -> str:
    if number < len(RAW):
        return RAW[number]
    # Python stops at about a thousand; what is not quite as deep may still break what handles the value.
    depth = draw.choice((5, 60, 400, draw.randrange(850, 1050), 3000))
    opened, closed = draw.choice((("[", "]"), ('{"a":', "}"), ('[{"a":', "}]")))
    return opened * depth + "1" + closed * depth


def place(draw: random.Random, tree: Any) -> tuple[Any, Any]:
    """Some place in a tree that is not empty, as (what a value stands in, its key or index)."""
    while True:
        key = draw.choice(list(tree)) if isinstance(tree, dict) else draw.randrange(len(tree))
        inner = tree[key]
        if not inner or not isinstance(inner, dict | list) or draw.random() < 0.25:
            return tree, key
        tree = inner


def change_tree(draw: random.Random, tree: Any, words: Sequence[Any]) -> None:
    """One change of a JSON value that is not empty, in place."""
    node, key = place(draw, tree)
    kind = draw.randrange(10)
    if kind < 4:
        node[key] = value(draw, words)
    elif kind == 4:
        del node[key]
    elif kind == 5:
        other, name = place(draw, tree)
        node[key] = json.loads(json.dumps(other[name]))
    elif kind == 6 and isinstance(node, dict):
        name = draw.choice(TEXTS) if draw.random() < 0.5 else str(place(draw, tree)[1])
        node[name] = node.pop(key)
    elif kind == 7 and isinstance(node, dict):
        name = draw.choice(TEXTS) if draw.random() < 0.7 else str(draw.choice(NUMBERS))
        node[name] = value(draw, words)
    elif isinstance(node, dict):
        other = draw.choice(list(node))
        node[key], node[other] = node[other], node[key]
    elif kind == 8:
        node.insert(key, json.loads(json.dumps(node[key])))
    else:
        node[key] = value(draw, words)


def written(draw: random.Random, tree: Any) -> bytes:
    """The tree as a file of JSON, with what no value of Python stands for."""
    text = json.dumps(tree, ensure_ascii=draw.random() < 0.5)
    text = _MARKED.sub(lambda found: _raw(draw, int(found[1])), text)
    if draw.random() < 0.03:  # a key that stands there twice
        names = [part.rsplit('"', 1)[-1] for part in text.split('": ')[:-1]]
        if names:
            text = text.replace("{", f'{{"{draw.choice(names)}": 1, ', 1)
    return text.encode("utf-8", "surrogatepass")


def change_json(
    draw: random.Random,
    content: bytes,
    words: Sequence[Any] = (),
    special: Sequence[Callable[..., None]] = (),
) -> bytes:
    """A file of JSON with one to four changes of its values, or changes of its bytes.

    `special` are changes `(draw, tree) -> None` that make sense for this file alone.
    """
    if draw.random() < 0.15:
        return change_bytes(draw, content)
    tree = json.loads(content)
    for _ in range(draw.choice((1, 1, 1, 2, 2, 4))):
        if not tree:
            break
        if not special or draw.random() < 0.6:
            change_tree(draw, tree, words)
            continue
        # An earlier change may have taken its place away.
        with suppress(KeyError, IndexError, TypeError, AttributeError):
            draw.choice(special)(draw, tree)
    return written(draw, tree)


_BYTES = [
    *[
        b"\x00",
        b"\xff",
        b"\xfe\xff",
        b"\xc0\x80",
        b"\xe3\x81",
        b"\xed\xa0\x80",
        b"\xf4\x90\x80\x80",
        b"\xef\xbb\xbf",
    ],
    *[
        b"\r\n",
        b"\r",
        b"\n",
        b"\n\n",
        b" ",
        b"\t",
        b",",
        b",,",
        b'"',
        b"\\",
        b"{",
        b"}",
        b"[",
        b"]",
        b":",
        b"\\u0000",
    ],
    *[text.encode("utf-8", "surrogatepass") for text in TEXTS],
]


def change_bytes(draw: random.Random, content: bytes) -> bytes:
    """A file with one to four changes of its bytes."""
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        place = draw.randrange(len(content) + 1)
        end = min(place + draw.choice((1, 1, 2, 4, 16, 64)), len(content))
        other = draw.randrange(len(content) + 1)
        kind = draw.randrange(9)
        if kind == 0 and place < len(content):
            content = (
                content[:place] + bytes([content[place] ^ 1 << draw.randrange(8)]) + content[place + 1 :]
            )
        elif kind == 1:
            content = content[:place] + content[end:]
        elif kind == 2:
            content = content[:other] + content[place:end] + content[other:]
        elif kind == 3:
            content = content[:place]
        elif kind == 4:
            content = b"\xef\xbb\xbf" + content
        elif kind == 5:
            content = content.replace(b"\n", b"\r\n") if b"\n" in content else content + b"\r\n"
        elif kind == 6:
            content = content[:place] + content[other:]
        else:
            content = content[:place] + draw.choice(_BYTES) + content[end if kind == 7 else place :]
    return content


def change_lines(draw: random.Random, content: bytes, words: Sequence[str] = ()) -> bytes:
    """A file of lines with one to four changes of its lines, or changes of its bytes."""
    if draw.random() < 0.2:
        return change_bytes(draw, content)
    lines = content.decode().split("\n")
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        place = draw.randrange(len(lines))
        word = draw.choice(words) if words and draw.random() < 0.5 else draw.choice(TEXTS)
        kind = draw.randrange(8)
        if kind == 0:
            lines[place] = word
        elif kind < 3:
            lines.insert(place, word)
        elif kind == 3:
            lines.insert(place, draw.choice(lines))
        elif kind == 4 and len(lines) > 1:
            del lines[place]
        elif kind == 5:
            lines[place] += draw.choice((",", " ", "")) + word
        elif kind == 6:
            lines[place] = draw.choice(lines) + lines[place]
        else:
            other = draw.randrange(len(lines))
            lines[place], lines[other] = lines[other], lines[place]
    return "\n".join(lines).encode("utf-8", "surrogatepass")
