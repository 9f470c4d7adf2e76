"""`data.pkl`: what torch writes is read; everything else that a pickle can say is refused, and nothing is run."""

from __future__ import annotations

import pickletools
from pathlib import Path

import pytest

from refimpl.checkpoints import torch_pickle
from refimpl.checkpoints.torch_pickle import read_state_dict
from refimpl.checkpoints.torch_values import REFUSED_OPCODES, Storage, Tensor
from refimpl.errors import CheckpointFormatError, RefimplError, ResourceLimitError, UnsafeCheckpointError
from tests.refimpl.checkpoints.torch_files import (
    FALSE,
    HOOKS,
    NONE,
    TRUE,
    call,
    dictionary,
    global_name,
    number,
    numbers,
    pickle_of,
    storage,
    tensor,
    text,
)

REPOSITORY = Path(__file__).parents[3]
HERE = Path("pytorch_model.bin")
REBUILD = ("torch._utils", "_rebuild_tensor_v2")
OF = storage("FloatStorage", "0", 6)
WEIGHT = tensor(OF, 0, (2, 3), (3, 1))
READ = Tensor(Storage("0", "float32", 6), "float32", 0, (2, 3), (3, 1))
ORDERED = call("collections", "OrderedDict")


def read(pickle: bytes) -> dict[str, Tensor]:
    return read_state_dict(pickle, HERE)


def refused(pickle: bytes) -> RefimplError:
    with pytest.raises((UnsafeCheckpointError, CheckpointFormatError, ResourceLimitError)) as caught:
        read(pickle)
    message = str(caught.value)
    assert message.startswith(f"{HERE}: data.pkl byte {caught.value.offset}: ")  # type: ignore[attr-defined]
    assert message.isprintable()
    assert len(message) < 900
    return caught.value


def unsafe(pickle: bytes, words: str = "") -> UnsafeCheckpointError:
    error = refused(pickle)
    assert isinstance(error, UnsafeCheckpointError), error
    assert "Nothing was executed" in str(error)
    assert words in str(error)
    return error


# --- what torch writes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_state_dict(protocol: int) -> None:
    assert read(pickle_of(dictionary({"w": WEIGHT, "b": WEIGHT}), protocol)) == {"w": READ, "b": READ}
    assert read(pickle_of(ORDERED + b"(" + text("w") + WEIGHT + b"u", protocol)) == {"w": READ}
    assert read(pickle_of(b"}" + text("w") + WEIGHT + b"s", protocol)) == {"w": READ}
    assert read(pickle_of(b"}", protocol)) == {}


def test_the_opcodes_of_protocol_4() -> None:
    def short(value: str) -> bytes:
        return b"\x8c" + bytes([len(value)]) + value.encode() + b"\x94"

    body = b"}\x94(" + short("w") + short("torch._utils") + short("_rebuild_tensor_v2") + b"\x93\x94(("
    body += (
        short("storage") + short("torch") + short("FloatStorage") + b"\x93\x94" + short("0") + short("cpu")
    )
    body += b"K\6t\x94QK\0K\2K\3\x86\x94K\3K\1\x86\x94\x89" + short("collections") + short("OrderedDict")
    body += b"\x93\x94)R\x94t\x94R\x94u."
    assert read(b"\x80\4\x95" + len(body).to_bytes(8, "little") + body) == {"w": READ}


@pytest.mark.parametrize("count", [1, 255, 256, 300])
def test_the_memo_in_its_short_and_long_forms(count: int) -> None:
    """Every tensor is the same one, fetched from the memo."""
    body = b"}(" + text("0") + WEIGHT
    for index in range(count):
        body += b"q" + bytes([index]) if index < 256 else b"r" + index.to_bytes(4, "little")
    for index in range(count):
        fetch = b"h" + bytes([index]) if index < 256 else b"j" + index.to_bytes(4, "little")
        body += text(f"x{index}") + fetch
    assert read(pickle_of(body + b"u")) == {"0": READ} | {f"x{index}": READ for index in range(count)}


def test_a_parameter_is_its_tensor() -> None:
    for flag in (TRUE, FALSE):
        parameter = call("torch._utils", "_rebuild_parameter", WEIGHT, flag, HOOKS)
        assert read(pickle_of(dictionary({"w": parameter}))) == {"w": READ}


def test_dtypes_without_a_type_of_storage() -> None:
    of = storage("UntypedStorage", "0", 12, module="torch.storage")
    shape, strides = numbers((6,)), numbers((1,))
    dtype = global_name("torch", "uint16")
    value = call("torch._utils", "_rebuild_tensor_v3", of, number(0), shape, strides, FALSE, HOOKS, dtype)
    read_back = read(pickle_of(dictionary({"w": value})))["w"]
    assert read_back == Tensor(Storage("0", None, 12), "uint16", 0, (6,), (1,))


def test_a_torch_size_is_a_tuple() -> None:
    shape = call("torch", "Size", numbers((2, 3)))
    value = call(*REBUILD, OF, number(0), shape, numbers((3, 1)), FALSE, HOOKS)
    assert read(pickle_of(dictionary({"w": value}))) == {"w": READ}


def test_metadata_is_read_and_forgotten() -> None:
    versions = dictionary(
        {"": dictionary({"version": number(1)}), "attention": dictionary({"version": number(2)})}
    )
    for metadata in (versions, ORDERED + versions[1:], NONE):
        body = ORDERED + b"(" + text("w") + WEIGHT + b"u" + dictionary({"_metadata": metadata}) + b"b"
        assert read(pickle_of(body)) == {"w": READ}


@pytest.mark.parametrize("size", [0, 5, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**40, 2**63 - 1])
def test_sizes_of_every_width(size: int) -> None:
    of = storage("HalfStorage", "0", size)
    read_back = read(pickle_of(dictionary({"w": tensor(of, size, (size,), (size,))})))["w"]
    assert read_back == Tensor(Storage("0", "float16", size), "float16", size, (size,), (size,))


def test_the_device_of_a_tensor_does_not_matter() -> None:
    for location in ("cpu", "cuda:0", "mps", "../../x", ""):
        of = storage("FloatStorage", "0", 6, location)
        assert read(pickle_of(dictionary({"w": tensor(of, 0, (2, 3), (3, 1))}))) == {"w": READ}


# --- every opcode ----------------------------------------------------------------------------------------

CODES = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}
IMPLEMENTED = {
    "BINGET", "BININT", "BININT1", "BININT2", "BINPERSID", "BINPUT", "BINUNICODE", "BUILD", "EMPTY_DICT", "EMPTY_TUPLE",
    "FRAME", "GLOBAL", "LONG1", "LONG_BINGET", "LONG_BINPUT", "MARK", "MEMOIZE", "NEWFALSE", "NEWTRUE", "NONE",
    "REDUCE", "SETITEM", "SETITEMS", "SHORT_BINUNICODE", "STACK_GLOBAL", "STOP", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3",
}  # fmt: skip


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("opcode", range(256))
def test_every_byte_as_an_opcode(opcode: int, protocol: int) -> None:
    """On an empty stack, on a full one, and with any bytes behind it: refused by name, or one of the thirty."""
    known = CODES.get(opcode) in IMPLEMENTED
    for before in (b"", b"}", text("x"), ORDERED + text("w") + WEIGHT, b"((", b"}q\0(" + text("w") + WEIGHT):
        for after in (b"", b".", b"\0" * 9 + b".", b"\xff" * 9, b"os\nsystem\n.", b"\2." + b"\0" * 300):
            pickle = b"\x80" + bytes([protocol]) + before + bytes([opcode]) + after
            if not known:
                error = unsafe(pickle, CODES.get(opcode, f"0x{opcode:02x}"))
                assert error.offset == 2 + len(before)  # type: ignore[attr-defined]
                continue
            try:
                read(pickle)
            except RefimplError:
                refused(pickle)


def test_the_table_of_refused_opcodes_is_pickle_s() -> None:
    assert {REFUSED_OPCODES[code] for code in REFUSED_OPCODES} == set(CODES.values()) - IMPLEMENTED
    assert all(CODES[code] == name for code, name in REFUSED_OPCODES.items())
    assert len(CODES) == 68


@pytest.mark.parametrize(
    "begin", [b"", b"\x80", b"\x80\0", b"\x80\1", b"\x80\6", b"\x80\xff", b"}.", b"(", b"\x80\2"]
)
def test_what_does_not_begin_as_torch_begins(begin: bytes) -> None:
    refused(begin)


def test_every_prefix_of_a_pickle_is_refused() -> None:
    pickle = pickle_of(ORDERED + b"(" + text("w") + WEIGHT + b"u" + dictionary({"_metadata": b"}"}) + b"b")
    assert read(pickle) == {"w": READ}
    for size in range(len(pickle)):
        assert isinstance(refused(pickle[:size]), CheckpointFormatError)
    unsafe(pickle + b".", "behind the end")


# --- what the dictionary holds ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key", [number(0), NONE, numbers((1,)), b"}", WEIGHT, TRUE, global_name(*REBUILD), OF]
)
def test_keys_are_texts(key: bytes) -> None:
    for inner in (b"}(" + key + WEIGHT + b"u", b"}" + key + WEIGHT + b"s"):
        assert "a key is not a text" in str(refused(pickle_of(inner)))


@pytest.mark.parametrize("name", ["", "a\nb", "\x1b[2J", "\u202e", "x" * 513, "\u3042" * 171])
def test_names_of_tensors_can_be_shown(name: str) -> None:
    assert "name of a tensor" in str(refused(pickle_of(dictionary({name: WEIGHT}))))


def test_long_names_and_other_scripts_are_names() -> None:
    assert list(read(pickle_of(dictionary({"x" * 512: WEIGHT, "重み": WEIGHT})))) == ["x" * 512, "重み"]


@pytest.mark.parametrize("raw", [b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe3\x81"])
def test_texts_are_utf_8(raw: bytes) -> None:
    key = b"X" + len(raw).to_bytes(4, "little") + raw
    assert "not UTF-8" in str(refused(pickle_of(b"}(" + key + WEIGHT + b"u")))
    assert "not UTF-8" in str(refused(pickle_of(b"c" + raw + b"\nx\n")))


def test_a_key_stands_there_once() -> None:
    unsafe(pickle_of(b"}(" + text("w") + WEIGHT + text("w") + WEIGHT + b"u"), "twice")
    unsafe(pickle_of(b"}" + text("w") + WEIGHT + b"s" + text("w") + WEIGHT + b"s"), "twice")


@pytest.mark.parametrize(
    "value", [NONE, number(3), text("x"), numbers((1,)), b")", OF, global_name(*REBUILD)]
)
def test_values_are_tensors(value: bytes) -> None:
    assert "'x' is not a tensor" in str(refused(pickle_of(dictionary({"w": WEIGHT, "x": value}))))
    assert "tensors by name" in str(refused(pickle_of(value)))


@pytest.mark.parametrize("name", ["state_dict", "model", "module"])
def test_weights_inside_of_another_dictionary(name: str) -> None:
    """It is said how to get at them; we do not guess which ones are meant."""
    inner = dictionary({"w": WEIGHT})
    float_number = b"G" + bytes(8)
    for body in (
        dictionary({name: inner}),
        b"}" + text(name) + inner + b"s",
        dictionary({"epoch": number(3), name: inner}),
        dictionary({name: inner, "optimizer": call("torch.optim", "Adam")}),
        dictionary({"epoch": number(3), name: inner, "loss": float_number}),
        dictionary({name: dictionary({"w": WEIGHT, "arguments": call("argparse", "Namespace")})}),
    ):
        error = refused(pickle_of(body))
        assert f"wraps a dictionary as '{name}'" in str(error)
        assert f"torch.load(path, weights_only=True)['{name}']" in (error.hint or "")


# --- containers in containers ----------------------------------------------------------------------------


def in_metadata(value: bytes) -> bytes:
    return pickle_of(ORDERED + dictionary({"_metadata": value}) + b"b")


@pytest.mark.parametrize("depth", [1, 2, 6, 7, 8, 9, 100, 200_000, 1_000_000])
def test_tuples_in_tuples(depth: int) -> None:
    """200,000 of them, as a key, end the process of Python's own machine."""
    nested = b")" + b"\x85" * (depth - 1)
    if depth < 7:  # they lie in two dictionaries
        assert read(in_metadata(nested)) == {}
    else:
        assert isinstance(refused(in_metadata(nested)), ResourceLimitError)
    refused(pickle_of(b"}" + nested + NONE + b"s"))


@pytest.mark.parametrize("depth", [1, 6, 7, 8, 100, 100_000])
def test_dictionaries_in_dictionaries(depth: int) -> None:
    nested = (b"}" + text("x")) * (depth - 1) + b"}" + b"s" * (depth - 1)
    if depth < 7:  # they lie in two dictionaries
        assert read(in_metadata(nested)) == {}
    else:
        assert isinstance(refused(in_metadata(nested)), ResourceLimitError)


@pytest.mark.parametrize(
    "body",
    [
        b"}q\0" + text("x") + b"h\0s",  # contains itself
        b"}q\0(" + text("x") + b"h\0u",
        b"}q\0" + text("x") + b"}" + text("y") + b"h\0ss",  # through another one
        b"}q\0" + text("x") + b"h\0\x85s",  # through a tuple
        b"}q\0\x85h\0" + text("x") + NONE + b"s",
        ORDERED + b"q\0" + text("x") + b"h\0s",
        ORDERED + b"q\0" + dictionary({"_metadata": b"h\0"}) + b"b" + text("x") + NONE + b"s",
        HOOKS + b"q\0" + call(*REBUILD, OF, number(0), numbers((1,)), numbers((1,)), FALSE, b"h\0")
        + b"h\0" + text("x") + NONE + b"s",  # the hooks are filled after they were found to be empty
        dictionary({"_metadata": b"}q\0"}) + b"h\0" + text("x") + NONE + b"s",
    ],
)  # fmt: skip
def test_a_container_is_finished_when_it_is_used(body: bytes) -> None:
    unsafe(pickle_of(body), "contains itself, or is changed")


def test_a_place_of_the_memo_is_used_once() -> None:
    unsafe(pickle_of(b"}q\0q\0"), "used twice")
    unsafe(pickle_of(b"}\x94q\0"), "used twice")
    unsafe(pickle_of(b"}q\1\x94"), "used twice")
    for fetch in (b"h\1", b"j\1\0\0\0", b"j\xff\xff\xff\xff"):
        assert "this place of the memo" in str(refused(pickle_of(b"}q\0" + fetch)))


def test_nothing_is_taken_from_below_a_mark() -> None:
    for opcode in (b"R", b"b", b"s", b"Q", b"\x85", b"\x86", b"\x87", b"\x93", b"q\0", b"\x94"):
        assert "stack is empty" in str(
            refused(pickle_of(ORDERED + text("a") + text("b") + NONE + b"(" + opcode))
        )
    for opcode in (b"t", b"u"):
        assert "no MARK" in str(refused(pickle_of(b"}" + opcode)))
    refused(pickle_of(b"}("))
    refused(pickle_of(b"}}"))
    assert "without a value" in str(refused(pickle_of(b"}(" + text("w") + b"u")))


# --- lengths and limits ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        *(b"X" + size.to_bytes(4, "little") for size in (1, 2**31, 2**32 - 1)),
        b"\x8c\xff", b"\x8c\1", b"J\0\0\0", b"K", b"M\0", b"h", b"j\0\0\0", b"}q", b"}r\0\0\0", b"\x8a",
        b"\x8a\1", b"\x8a\x08" + bytes(7),
        *(b"\x95" + size.to_bytes(8, "little") for size in (2, 2**40, 2**63, 2**64 - 1)), b"\x95" + bytes(7),
        b"cos", b"cos\nsystem", b"c" + b"x" * 600 + b"\nx\n", b"c", b"c\n",
    ],
)  # fmt: skip
def test_a_length_beyond_the_end(body: bytes) -> None:
    """The lengths are compared with what is there before anything is made of them."""
    assert isinstance(refused(b"\x80\4" + body), CheckpointFormatError)


def test_numbers_of_more_than_64_bits() -> None:
    assert read(in_metadata(b"\x8a\x08" + b"\xff" * 8)) == {}
    for size in (9, 16, 255):
        unsafe(in_metadata(b"\x8a" + bytes([size]) + b"\1" * size), "64 bits")


def test_a_text_is_no_longer_than_a_name() -> None:
    assert read(in_metadata(text("x" * 65_536))) == {}
    assert isinstance(refused(in_metadata(text("x" * 65_537))), ResourceLimitError)


def test_a_huge_place_in_the_memo_costs_nothing() -> None:
    """An array of that size, as other machines have, would take 32 GB."""
    assert read(pickle_of(b"}r\xff\xff\xff\xff")) == {}


@pytest.mark.parametrize(
    ("limit", "value", "fits", "too_many"),
    [
        ("MAX_STACK", 50, b"N" * 49 + b"0", b"N" * 51),
        ("MAX_STACK", 50, b"(" * 49 + b"0", b"(" * 51),
        ("MAX_MEMO", 9, b"N" + b"\x94" * 9 + b"0", b"N" + b"\x94" * 10),
        ("MAX_VALUES", 10, b"}" * 5 + b"0", b"}" * 6),
        ("MAX_VALUES", 10, b"(" + b"N" * 9 + b"t0", b"(" + b"N" * 10 + b"t"),
        ("MAX_VALUES", 10, b")" * 10 + b"0", b")" * 11),
        ("MAX_OPCODES", 20, b"N\x94" * 9 + b"0", b"N\x94" * 11),
    ],
)
def test_limits_are_limits(
    monkeypatch: pytest.MonkeyPatch, limit: str, value: int, fits: bytes, too_many: bytes
) -> None:
    monkeypatch.setattr(torch_pickle, limit, value)
    unsafe(b"\x80\2" + fits, "POP")  # it comes as far as the opcode that nobody has
    error = refused(b"\x80\2" + too_many)
    assert isinstance(error, ResourceLimitError)
    assert str(value) in str(error)


def test_fifty_thousand_tensors_fit() -> None:
    """In groups of a thousand, as torch writes them; all at once, no pickle writes them."""
    groups = [
        b"(" + b"".join(text(f"layers.{n}.weight") + WEIGHT for n in range(begin, begin + 1000)) + b"u"
        for begin in range(0, 50_000, 1000)
    ]
    assert len(read(pickle_of(b"}" + b"".join(groups)))) == 50_000
