"""The reader of `spiece.model`: the package sentencepiece, which is not Python, and what is checked before it."""

from __future__ import annotations

import base64
import random
import struct
import zlib
from pathlib import Path
from typing import Any

from refimpl.tokenizer import PreTrainedTokenizer
from tests.fuzz.changes import NUMBERS, TEXTS, change_bytes
from tests.fuzz.harness import Files, Reader

#: A field of a message: its number and its value, which is an int, a float, bytes or a message of its own.
Message = list[tuple[int, Any]]

#: What the package makes of six rules such as Ａ -> A and ｶﾞ -> ガ.
CHARACTER_MAP = zlib.decompress(
    base64.b85decode(
        "c-kG)b?nwf90%~@`N75}f73D=Ndf5&DNzLJ?(S}Qs0{`P2-1zx(w$0oD&0Ril`etT!*_e#`*ye6-R^VWkT8TWK0#<%EG`@gkuc=T5E6$F"
        "ji!x+(TPIri$-MvDWc;v+r~t~_QjDfPd_d;-y{+?tcnXy-bccY7LhR9_!q{LS)7y<BqtRqu|-JD&ut<hjZ8;cGLW83WF!lj$;ww`CmT7*"
        "!Pn#>54rh<yyPbz1t~yb3Q?3I6sH&^DM4vUQI;~4<6A0Fo=Q}tGT-q7-}56?s76()^Ak0xL2YVLmpas^9t~+gV;a$vCN!rREonh(TG5s^w"
        "5J^%=|E>X(UmTAryD)#L2r7|mp=5T9|IY{U<NTHR%C`Tlo1T)Mv@TX9dwlbNJjJIVF+X87{<kF$b{GvVj{orE0dVQWTr8d8BAvuGnvC|<"
        "}sHA%;$H0V-X8k!eW-Ols{O`N>;F%Rjg$V>siM}Hn5pZY-J1E*~U(G@E3own_cW>5Bu52K@M=3LmcG@$2rDHPH>u2{KMaz<qYRJ$3-r1nM"
        "+*d3fH+teC*D-#ZB&Tn|s{l0rz>t!&ohN%zymLGoJE-=e*)2Z+Oi+-ts^1`N)Ux`R6Mg+P4n7mxTDC%flz$Lzng"
    )
)

# Numbers of fields, and of kinds of pieces, in sentencepiece_model.proto.
PIECE, TRAINER, NORMALIZER, SELF_TEST, DENORMALIZER = 1, 2, 3, 4, 5
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
MODEL_TYPE, BYTE_FALLBACK, UNK_ID, PAD_ID = 3, 35, 40, 43
NAME, MAP, DUMMY_PREFIX, EXTRA_SPACES, ESCAPE_SPACES = 1, 2, 3, 4, 5


def piece(text: str, score: float = -1.0, kind: int = NORMAL) -> tuple[int, Message]:
    return PIECE, [(1, text.encode()), (2, score), (3, kind)]


SPECIAL = [piece("<unk>", 0.0, UNKNOWN), piece("<s>", 0.0, CONTROL), piece("</s>", 0.0, CONTROL)]
WORDS = [
    piece(text, -1.0 - n / 8)
    for n, text in enumerate(["▁", "a", "b", "ab", "▁ab", "abc", "c", "猫", "である"])
]
BYTES = [piece(f"<0x{value:02X}>", 0.0, BYTE) for value in range(256)]

PLAIN: Message = [
    *SPECIAL,
    *WORDS,
    piece("<x>", 0.0, USER_DEFINED),
    (TRAINER, [(MODEL_TYPE, 1), (4, 13)]),
    (NORMALIZER, [(NAME, b"identity"), (DUMMY_PREFIX, 1), (EXTRA_SPACES, 1), (ESCAPE_SPACES, 1)]),
]
MAPPED: Message = [
    *SPECIAL,
    piece("<pad>", 0.0, CONTROL),
    *WORDS,
    (TRAINER, [(MODEL_TYPE, 1), (PAD_ID, 3)]),
    (NORMALIZER, [(NAME, b"user"), (MAP, CHARACTER_MAP), (EXTRA_SPACES, 0)]),
    (DENORMALIZER, []),
]
WITH_BYTES: Message = [
    *SPECIAL,
    *BYTES,
    *WORDS,
    (TRAINER, [(MODEL_TYPE, 1), (BYTE_FALLBACK, 1)]),
    (NORMALIZER, [(NAME, b"identity")]),
]
PAIRS: Message = [*PLAIN[:-2], (TRAINER, [(MODEL_TYPE, 2)]), PLAIN[-1]]
MODELS = [PLAIN, MAPPED, WITH_BYTES, PAIRS]


def varint(value: int) -> bytes:
    """As protobuf writes whole numbers; those below 0 in ten bytes."""
    value &= 2**64 - 1
    written = bytearray()
    while value > 0x7F:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*written, value])


_AS_WRITTEN: dict[int, bytes] = {}  # of the parts of the models that were not changed


def written(message: Message) -> bytes:
    """The message in the form of a file."""
    parts = []
    for number, value in message:
        if isinstance(value, int):
            parts.append(varint(number << 3) + varint(value))
        elif isinstance(value, float):
            parts.append(varint(number << 3 | 5) + struct.pack("<f", value))
        else:
            content = _AS_WRITTEN.get(id(value)) or (written(value) if isinstance(value, list) else value)
            parts.append(varint(number << 3 | 2) + varint(len(content)) + content)
    return b"".join(parts)


_AS_WRITTEN.update(
    {id(value): written(value) for model in MODELS for _, value in model if isinstance(value, list)}
)


def change_message(draw: random.Random, message: Message) -> None:
    """One change of a field of a message, or of a message in it."""
    place = draw.randrange(len(message))
    number, value = message[place]
    if isinstance(value, list) and value and draw.random() < 0.6:
        inner = list(value)
        change_message(draw, inner)
        message[place] = number, inner
        return
    kind = draw.randrange(8)
    if kind == 0:
        del message[place]
    elif kind == 1:
        message.insert(draw.randrange(len(message) + 1), draw.choice(message))
    elif kind == 2:
        message[place] = draw.choice((1, 2, 3, 4, 5, 35, 40, 43, 2**29 - 1)), value
    elif kind == 3:
        message.insert(place, draw.choice(SPECIAL + WORDS + BYTES))
    else:
        message[place] = number, other_value(draw, value)


def other_value(draw: random.Random, value: Any) -> Any:
    """A value of the same kind, mostly."""
    if draw.random() < 0.1:
        return draw.choice([0, 1.0, b"", [], 2**64 - 1, b"\xff" * 9])
    if isinstance(value, float):
        return draw.choice([0.0, -0.0, -1e30, 1e30, 3.4e38, float("nan"), float("inf"), float("-inf"), -0.5])
    if isinstance(value, int):
        small = [0, 1, 2, 3, 4, 5, 6, 7, -1, 12, 13, 255]
        return draw.choice(
            [*small, *(number for number in NUMBERS if type(number) is int and number < 2**64)]
        )
    if isinstance(value, bytes) and len(value) > 64:
        return change_bytes(draw, value)
    text = draw.choice([*TEXTS, "▁", "▁▁", "<0x41>", "<0xGG>", "<0x41", "<unk>", "</s>", "<pad>", "\u2047"])
    return text.encode("utf-8", "surrogatepass")


def change(draw: random.Random, files: Files) -> Files:
    """Changes of the fields of a model, or of its bytes."""
    if draw.random() < 0.25:
        return {name: change_bytes(draw, content) for name, content in files.items()}
    message = list(draw.choice(MODELS))
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        if message:
            change_message(draw, message)
    content = written(message)
    return {"spiece.model": change_bytes(draw, content) if draw.random() < 0.1 else content}


def read(folder: Path, number: int) -> PreTrainedTokenizer:
    from refimpl.tokenizer.unigram import T5Tokenizer

    return T5Tokenizer(folder / "spiece.model", extra_ids=2, legacy=None if number % 4 else False)


_TEXT = "abc  猫である<x>\t<extra_id_0>Ａｶﾞ㎏é<unk></s> \u2047\x00\U0010ffff"


def use(tokenizer: Any, folder: Path, number: int) -> None:
    """Encodes and decodes; with some inputs, with offsets too."""
    text = _TEXT + "".join(tokenizer.get_vocab())[-40:]
    ids = tokenizer.encode(text)
    assert len(ids) <= 64 * len(text.encode())
    assert all(0 <= index < len(tokenizer) for index in ids)
    assert isinstance(tokenizer.decode(ids), str)
    if number % 8 == 0:
        spans = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
        assert all(0 <= start <= end <= len(text) for start, end in spans)
    tokenizer.convert_ids_to_tokens(list(range(min(len(tokenizer), 20))))
    for index in range(min(len(tokenizer), 20)):
        assert isinstance(tokenizer.token_bytes(index), bytes)


def prepare() -> None:
    import sentencepiece  # noqa: F401


READERS = [
    Reader(
        "spiece.model",
        [{"spiece.model": written(model)} for model in MODELS],
        change,
        read,
        use,
        prepare=prepare,
        native=True,
    )
]
