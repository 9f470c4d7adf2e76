"""What the tokenizers are given to read: the user's files, or samples of prose, code and chat."""

from __future__ import annotations

import os
import random
import sysconfig
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from refimpl.cli import common
from refimpl.errors import InputError, quote

# A sample is at least so long where its source is; a longer one is the sample again and again.
SAMPLE_BYTES = 10_000_000
# Generated text repeats itself anyway.
_GENERATED_BYTES = 1_000_000
_SHORT_CHARACTERS = 200
# Tokenizers remember words: what was read before is read faster.
_VARIANTS = 4


@dataclass(frozen=True)
class Text:
    """A text with a name; `source` says where it comes from."""

    name: str
    source: str
    content: str = field(repr=False)

    def variants(self, size: int) -> list[str]:
        """Up to four different parts of it, of `size` bytes (or a character less) each.

        A text that is too short for two is one part, repeated where it is shorter than that.
        """
        encoded = self.content.encode()
        count = min(_VARIANTS, len(encoded) // size)
        if count < 2:
            return [filled(self.content, size)]
        parts = (encoded[number * size : (number + 1) * size] for number in range(count))
        return [part.decode("utf-8", "ignore") for part in parts]

    def short_strings(self, size: int) -> list[list[str]]:
        """The lines of each of its variants, long ones in pieces of 200 characters."""
        return [_short_strings(variant) for variant in self.variants(size)]


def _short_strings(text: str) -> list[str]:
    pieces = (
        line[start : start + _SHORT_CHARACTERS]
        for line in text.splitlines()
        for start in range(0, len(line), _SHORT_CHARACTERS)
    )
    return [piece for piece in pieces if piece.strip()]


def filled(unit: str, size: int) -> str:
    """`unit` again and again, cut to at most `size` bytes of UTF-8."""
    encoded = unit.encode()
    return (encoded * (size // len(encoded) + 1))[:size].decode("utf-8", "ignore")


def from_file(path: str) -> Text:
    """A text of the user. Raises: as `common.read_text`; InputError when there is nothing in it."""
    content = common.read_text(None, path, "text")
    if not content.strip():
        raise InputError("there is no text in the file", where=quote(path))
    return Text(Path(path).stem, path, content)


def samples(names: Iterable[str]) -> list[Text]:
    """The samples of these names, natural text where REFIMPL_DATA names a folder that has it."""
    folder = os.environ.get("REFIMPL_DATA")
    return [_SAMPLES[name](Path(folder) if folder else None) for name in names]


def _japanese(data: Path | None) -> Text:
    works = sorted((data / "aozora").glob("*.txt")) if data else []
    if works:
        return Text("japanese", "works of Aozora Bunko", _joined(works))
    return _generated("japanese", _JAPANESE, _JAPANESE_WORDS, "。", per_line=4)


def _english(data: Path | None) -> Text:
    file = data / "text" / "tinyshakespeare.txt" if data else None
    if file and file.is_file():
        return Text("english", file.name, _joined([file]))
    return _generated("english", _ENGLISH, _ENGLISH_WORDS, ". ", per_line=4)


def _code(data: Path | None) -> Text:
    """Python's own library: real code, and everybody who can run this has it."""
    own = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    sample = data / "text" / "code_python.txt" if data else None
    if sample and sample.is_file():
        return Text("code", f"{sample.name}, then Python's standard library", _joined([sample, *own]))
    if own:
        return Text("code", "Python's standard library", _joined(own))
    return Text("code", "this file", Path(__file__).read_text(encoding="utf-8"))


def _chat(data: Path | None) -> Text:
    """Short sentences, after each of them one to three emoji."""
    draw = random.Random(1)
    files = [data / "text" / name for name in ("ja_tanaka.txt", "emoji_ja_names.tsv")] if data else []
    if files and all(file.is_file() for file in files):
        sentences = files[0].read_text(encoding="utf-8").split("\n")
        rows = (line.split("\t") for line in files[1].read_text(encoding="utf-8").split("\n"))
        emoji = sorted({row[1] for row in rows if len(row) > 1 and row[1]})
        source = "ja_tanaka.txt with the emoji of emoji_ja_names.tsv"
    else:
        sentences = [
            f"{_JAPANESE[n % len(_JAPANESE)]}".format(*_words(draw, _JAPANESE_WORDS)) for n in range(5000)
        ]
        emoji, source = _EMOJI, "generated"
    lines = (
        sentence + "".join(draw.choices(emoji, k=draw.randint(1, 3))) for sentence in sentences if sentence
    )
    return Text("chat", source, "\n".join(lines))


#: name -> how it is made, with the folder of the large test data where there is one
_SAMPLES: dict[str, Callable[[Path | None], Text]] = {
    "japanese": _japanese,
    "chat": _chat,
    "english": _english,
    "code": _code,
}


def _joined(files: Iterable[Path]) -> str:
    parts: list[bytes] = []
    size = 0
    for file in files:
        parts.append(file.read_bytes())
        size += len(parts[-1])
        if size >= SAMPLE_BYTES:
            break
    return b"\n".join(parts).decode("utf-8", "replace").removeprefix("\ufeff")


def _generated(name: str, patterns: list[str], words: list[list[str]], end: str, per_line: int) -> Text:
    """Sentences drawn from patterns and words, the same on every machine."""
    draw = random.Random(1)
    lines: list[str] = []
    size = 0
    while size < _GENERATED_BYTES:
        line = end.join(draw.choice(patterns).format(*_words(draw, words)) for _ in range(per_line)) + end
        lines.append(line.rstrip(" "))
        size += len(line.encode())
    return Text(name, "generated", "\n".join(lines))


def _words(draw: random.Random, words: list[list[str]]) -> list[str]:
    return [*map(draw.choice, words), str(draw.randint(2, 900))]


_JAPANESE = [
    "{0}の{1}は{2}していた",
    "{2}しながら{0}の{1}を{3}回も眺めた",
    "「{0}には{1}がある」と{4}は{2}した",
    "{4}が{0}へ行くと、{1}はもう{2}したあとであった",
    "なぜ{4}は{0}で{1}に{2}したのだろうか",
    "{3}年前の{0}には、まだ{1}が残っていて、{4}もよく{2}したものだ",
]
_JAPANESE_WORDS = [
    [
        "山",
        "港町",
        "駅前の広場",
        "図書館",
        "古い寺",
        "東京",
        "川べりの道",
        "台所",
        "研究室",
        "コンビニ",
        "雪国",
    ],
    ["灯り", "猫", "新しい機械", "手紙", "桜の木", "数式", "コーヒー", "昔話", "自転車", "雲の影", "約束"],
    [
        "静かに回転",
        "説明",
        "出発",
        "笑ったり泣いたり",
        "計算",
        "心配",
        "ゆっくり移動",
        "料理",
        "沈黙",
        "準備",
    ],
    ["二", "三", "五", "十", "百", "何"],
    ["先生", "私", "妹", "船長", "隣の人", "彼女", "郵便屋", "学生たち", "おばあさん"],
]
_ENGLISH = [
    "The {0} of the {1} had been {2} for {5} days",
    "Nobody in the {1} knew why {4} was {2} again",
    '"There is no {0} here," said {4}, {2} beside the {1}',
    "After {5} years of {2}, {4} left the {1} and took only the {0}",
    "Would {4} have gone on {2} if the {0} hadn't been so {3}",
    "It was a {3} {0}, and the {1} seemed {3} too",
]
_ENGLISH_WORDS = [
    ["lamp", "promise", "engine", "letter", "orchard", "rumour", "clockwork", "river", "question", "violin"],
    ["harbour", "library", "village", "laboratory", "kitchen", "railway station", "valley", "theatre"],
    ["waiting", "turning slowly", "singing", "counting", "arguing with itself", "growing", "thinking"],
    ["bright", "narrow", "unremarkable", "friendly", "very old", "half-forgotten"],
    ["the captain", "my sister", "a stranger", "the postman", "Professor Okada", "everyone"],
]
_EMOJI = [
    *[
        "😀",
        "😂",
        "🥲",
        "❤️",
        "👍",
        "👍🏽",
        "🙏",
        "🍣",
        "🍵",
        "🎉",
        "🇯🇵",
        "👨‍👩‍👧",
        "🌸",
        "☀️",
        "🐈",
        "🚀",
        "💦",
        "✨",
        "🤷‍♀️",
        "🫠",
    ],
]
