"""Safetensors files: what is good is read without a copy and bit for bit, all else is refused with its place."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from refimpl.checkpoints import SafetensorsFile
from refimpl.checkpoints.safetensors_file import HEADER_BYTES
from refimpl.errors import CheckpointFormatError, IncompleteCheckpointError, RefimplError, ResourceLimitError
from tests.fuzz.harness import memory_folder
from tests.fuzz.read_safetensors import HEADERS, NUMBERS, STRICTER, entry, file_of, of_the_package, use

ROOT = Path(__file__).parents[3]
A = entry("F32", [1], 0, 4)  # what most headers below are about
FOUR = b"\0\0\0\x40"


def written(folder: Path, header: Any, numbers: bytes = b"") -> Path:
    path = folder / "model.safetensors"
    path.write_bytes(file_of(header, numbers))
    return path


@pytest.fixture
def quick_folder() -> Iterator[Path]:
    """For files that are written again and again: a disk takes its time."""
    with memory_folder() as folder:
        yield folder


def is_view(array: np.ndarray, file: SafetensorsFile) -> bool:
    return np.may_share_memory(array, file._data)


# --- what is read ------------------------------------------------------------------------------------

DTYPES = [
    *[np.float64, np.float32, np.float16, ml_dtypes.bfloat16, np.bool_],
    *[np.int64, np.int32, np.int16, np.int8, np.uint64, np.uint32, np.uint16, np.uint8],
]


@pytest.mark.parametrize("mmap", [True, False])
def test_every_dtype_as_the_package_reads_it(tmp_path: Path, mmap: bool) -> None:
    rng = np.random.default_rng(0)
    tensors = {
        f"{np.dtype(dtype).name}.{shape}": np.asarray(rng.normal(0, 50, shape) % 2).astype(dtype)
        for dtype in DTYPES
        for shape in [(), (1,), (3, 5), (2, 0, 4), (1,) * 8]
    }
    path = tmp_path / "model.safetensors"
    save_file(tensors, path, {"format": "pt", "猫": "a\n"})
    file = SafetensorsFile(path, mmap)
    assert set(file) == set(tensors) == set(load_file(path))
    assert file.metadata == {"format": "pt", "猫": "a\n"}
    assert (file.path, file.paths) == (path, [path])
    assert file.nbytes == sum(array.nbytes for array in tensors.values())
    for name, array in file.items():
        assert type(array) is np.ndarray
        assert (array.dtype, array.shape) == (tensors[name].dtype, tensors[name].shape)
        assert (file.dtype(name), file.shape(name)) == (array.dtype, array.shape)
        assert array.tobytes() == tensors[name].tobytes()
        assert not array.flags.writeable
        assert is_view(array, file) or array.size == 0


@pytest.mark.parametrize("header", HEADERS)
def test_files_that_the_package_has_not_written(tmp_path: Path, header: dict[str, Any]) -> None:
    path = written(tmp_path, header, NUMBERS if header else b"")
    use(SafetensorsFile(path), tmp_path, 0)
    assert SafetensorsFile(path).metadata == header.get("__metadata__", {})


def test_a_name_that_is_not_there(tmp_path: Path) -> None:
    file = SafetensorsFile(written(tmp_path, {"a": A}, FOUR))
    assert "b" not in file
    for ask in (file.__getitem__, file.shape, file.dtype):
        with pytest.raises(KeyError):
            ask("b")


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("spaces", range(8))
def test_numbers_at_odd_places(tmp_path: Path, spaces: int, mmap: bool) -> None:
    """Only what does not lie at a multiple of its size is copied."""
    header = {
        "byte": entry("U8", [3], 0, 3),
        "half": entry("BF16", [2], 3, 7),
        "single": entry("F32", [2], 7, 15),
        "double": entry("F64", [1], 15, 23),
        "empty": entry("F64", [0], 23, 23),
    }
    text = json.dumps(header).encode() + b" " * spaces
    numbers = bytes(range(1, 24))
    file = SafetensorsFile(written(tmp_path, text, numbers), mmap)
    assert b"".join(array.tobytes() for array in file.values()) == numbers
    for name, array in file.items():
        place = 8 + len(text) + header[name]["data_offsets"][0]
        assert array.flags.aligned
        assert not array.flags.writeable
        if array.size:
            assert is_view(array, file) == (place % array.dtype.itemsize == 0)


def test_owned_numbers_do_not_change_with_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, {"a": A}, FOUR)
    mapped, owned = SafetensorsFile(path, mmap=True), SafetensorsFile(path, mmap=False)
    written(tmp_path, {"a": A}, FOUR[::-1])
    assert owned["a"].tobytes() == FOUR
    assert mapped["a"].tobytes() == FOUR[::-1]


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_all_halves_bit_for_bit(tmp_path: Path, dtype: Any, mmap: bool) -> None:
    """Every NaN keeps its payload, -0 its sign; there and back twice."""
    patterns = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)
    array = patterns.view(dtype)
    for round_trip in range(2):
        path = tmp_path / f"{round_trip}.safetensors"
        save_file({"a": array}, path)
        array = SafetensorsFile(path, mmap)["a"]
        assert array.dtype == dtype
        assert (array.view(np.uint16) == patterns).all()
        assert (array.copy().view(np.uint16) == patterns).all()


def test_numbers_of_32_and_64_bits_that_are_none(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for bits, dtype in ((np.uint32, np.float32), (np.uint64, np.float64)):
        patterns = rng.integers(0, np.iinfo(bits).max, 10_000, bits, endpoint=True)
        patterns[:5000] |= np.array(np.inf, dtype).view(bits)  # NaN of either sign, of both kinds
        save_file({"a": patterns.view(dtype)}, tmp_path / "a.safetensors")
        assert (SafetensorsFile(tmp_path / "a.safetensors")["a"].view(bits) == patterns).all()


# --- what is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("header", HEADERS[:2])
def test_every_beginning_of_a_file_is_incomplete(
    quick_folder: Path, header: dict[str, Any], mmap: bool
) -> None:
    path = written(quick_folder, header, NUMBERS)
    content = path.read_bytes()
    numbers = len(content) - len(NUMBERS)
    for size in range(len(content)):
        path.write_bytes(content[:size])
        with pytest.raises(IncompleteCheckpointError) as caught:
            SafetensorsFile(path, mmap)
        assert caught.value.path == path
        if size:
            assert caught.value.found == f"{size} bytes"
        if size < 8:
            assert size == 0 or caught.value.allowed.startswith("8 bytes with the length of the header")
        else:
            announced = len(content) if size >= numbers else numbers
            assert f"{announced} bytes" in caught.value.allowed


@pytest.mark.parametrize("header", HEADERS[:2])
def test_every_bit_of_a_header(quick_folder: Path, header: dict[str, Any]) -> None:
    """With one bit changed the file is refused, or read as the package reads it."""
    content = file_of(header, NUMBERS)
    path = quick_folder / "model.safetensors"
    accepted, refused = 0, []
    for bit in range(8 * (len(content) - len(NUMBERS))):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        try:
            file = SafetensorsFile(path)
        except CheckpointFormatError as error:
            if not any(rule in error.what for rule in STRICTER):
                refused.append(bytes(changed))
        else:
            use(file, quick_folder, bit)
            accepted += 1
    assert accepted > 100  # a bit of a name, mostly
    assert len(refused) > 1000
    assert all(of_the_package(content) is None for content in refused)


def with_name(name: str) -> dict[str, Any]:
    return {name: A}


#: What the package accepts and we do not: the rule -> headers, and what is in the files.
BEYOND_THE_PACKAGE: dict[str, list[tuple[Any, bytes]]] = {
    "must begin with {": [(b' {"a":%s}' % json.dumps(A).encode(), FOUR), (b"\n{}", b"")],
    "must end with }": [(b"{}\n", b""), (b"{}\t ", b"")],
    "stands there twice": [
        (b'{"a":%s,"a":%s}' % ((json.dumps(A).encode(),) * 2), FOUR),
        (b'{"a":%s,"\\u0061":%s}' % ((json.dumps(A).encode(),) * 2), FOUR),
        (b'{"__metadata__":{"a":"b","a":"c"}}', b""),
    ],
    "__metadata__ must be an object of texts": [({"__metadata__": None}, b"")],
    "not a name that a tensor can have": [
        (with_name(name), FOUR) for name in ("", "a\0b", "\x1b[2J", "\x85", "a\n", "x" * 513, "a\u202eb")
    ],
    "its entry has other keys": [({"a": {**A, "stride": [1]}}, FOUR), ({"a": ["F32", [1], [0, 4]]}, FOUR)],
    "a dtype that weights do not have": [
        (with_dtype, FOUR)
        for with_dtype in (
            {"a": entry("F8_E4M3", [4], 0, 4)},
            {"a": entry("F8_E5M2", [4], 0, 4)},
            {"a": entry("F4", [8], 0, 4)},
            {"a": {**A, "dtype": {"F32": None}}},
        )
    ],
    "a shape that no weight has": [
        ({"a": entry("F32", [1] * 9, 0, 4)}, FOUR),
        ({"a": entry("F32", [0, 2**40 + 1], 0, 0)}, b""),
        ({"a": entry("F32", [2**63 - 1, 0], 0, 0)}, b""),
        ({"a": entry("F32", [0, 2**40, 2**40], 0, 0)}, b""),
    ],
}


def test_where_we_are_stricter_is_a_closed_list() -> None:
    assert set(BEYOND_THE_PACKAGE) == set(STRICTER)


@pytest.mark.parametrize("rule", STRICTER)
def test_where_we_are_stricter(tmp_path: Path, rule: str) -> None:
    for header, numbers in BEYOND_THE_PACKAGE[rule]:
        path = written(tmp_path, header, numbers)
        assert of_the_package(path.read_bytes()) is not None, header
        with pytest.raises(CheckpointFormatError) as caught:
            SafetensorsFile(path)
        assert rule in caught.value.what
        assert str(caught.value).isprintable()


def two(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    return {"first": first, "second": second}


#: What neither accepts: header, numbers, what the error says, and the text of the header at its offset.
REFUSED: dict[str, tuple[Any, bytes, list[str], bytes | None]] = {
    "another number of bytes": (
        {"a": entry("F32", [25], 0, 4)}, FOUR, ["'a'", "[25] of F32 takes 100 bytes", "found 4 bytes"], b'"a"',
    ),
    "a product beyond 64 bits": (
        {"a": entry("F32", [2**33, 2**33], 0, 16)}, bytes(16), ["takes 295147905179352825856 bytes"], b'"a"',
    ),
    "a negative dimension": ({"a": entry("F32", [-1], 0, 4)}, FOUR, ["[-1]", "from 0 to 2**40"], b'"a"'),
    "a dimension of -0": (b'{"a":{"dtype":"F32","shape":[-0],"data_offsets":[0,0]}}', b"", ["[-0.0]"], b'"a"'),
    "a fraction": ({"a": entry("F32", [1.0], 0, 4)}, FOUR, ["[1.0]"], b'"a"'),
    "a truth value": ({"a": entry("F32", [True], 0, 4)}, FOUR, ["[True]"], b'"a"'),
    "an exponent": (b'{"a":{"dtype":"F32","shape":[1e0],"data_offsets":[0,4]}}', FOUR, ["[1.0]"], b'"a"'),
    "infinity": (b'{"a":{"dtype":"F32","shape":[Infinity],"data_offsets":[0,4]}}', FOUR, ["[inf]"], b'"a"'),
    "a number in quotes": ({"a": entry("F32", ["1"], 0, 4)}, FOUR, ["['1']"], b'"a"'),
    "a shape that is none": ({"a": {**A, "shape": 1}}, FOUR, ["found 1"], b'"a"'),
    "no shape": ({"a": {**A, "shape": None}}, FOUR, ["None"], b'"a"'),
    "a key less": ({"a": {"dtype": "F32", "shape": [1]}}, FOUR, ["exactly dtype, shape and data_offsets"], b'"a"'),
    "an entry that is none": ({"a": None}, b"", ["None"], b'"a"'),
    "an unknown dtype": ({"a": {**A, "dtype": "F31"}}, FOUR, ["'F31'", "F64, F32, F16, BF16"], b'"a"'),
    "a dtype in small letters": ({"a": {**A, "dtype": "f32"}}, FOUR, ["'f32'"], b'"a"'),
    "a dtype that is none": ({"a": {**A, "dtype": 32}}, FOUR, ["found 32"], b'"a"'),
    "offsets in the other order": ({"a": entry("F32", [1], 4, 0)}, FOUR, ["[4, 0]"], b'"a"'),
    "three offsets": ({"a": {**A, "data_offsets": [0, 4, 4]}}, FOUR, ["[0, 4, 4]"], b'"a"'),
    "offsets below 0": ({"a": entry("F32", [1], -4, 0)}, FOUR, ["[-4, 0]"], b'"a"'),
    "huge offsets": ({"a": entry("F32", [0], 2**64, 2**64)}, FOUR, ["wrong data_offsets"], b'"a"'),
    "not from the beginning": ({"a": entry("F32", [1], 4, 8)}, FOUR * 2, ["[4, 8)", "the next byte, 0"], b'"a"'),
    "a gap": (two(A, entry("F32", [1], 8, 12)), FOUR * 3, ["'second'", "gap", "ends at 4"], b'"second"'),
    "an overlap": (two(A, entry("F32", [1], 2, 6)), FOUR + b"ab", ["'second'", "overlap", "[2, 6)"], b'"second"'),
    "the same place": (two(A, A), FOUR, ["overlap"], None),
    "one inside another": (
        two(entry("U8", [9], 0, 9), entry("U8", [3], 3, 6)), bytes(9), ["'second'", "overlap"], b'"second"',
    ),
    "an empty one beside": (
        two(entry("U8", [4], 0, 4), entry("U8", [0], 2, 2)), FOUR, ["'second'", "overlap", "[2, 2)"], b'"second"',
    ),
    "bytes after the last": ({"a": A}, FOUR + b"x", ["after the last tensor"], b""),
    "bytes of none": ({}, b"x", ["after the last tensor"], b""),
    "metadata that is a list": ({"__metadata__": []}, b"", ["object of texts", "found []"], b'"__metadata__"'),
    "metadata of numbers": ({"__metadata__": {"a": 1}}, b"", ["object of texts"], b'"__metadata__"'),
    "metadata in metadata": ({"__metadata__": {"a": {}}}, b"", ["object of texts"], b'"__metadata__"'),
    "a surrogate in metadata": (b'{"__metadata__":{"a":"\\ud800"}}', b"", ["object of texts"], b'"__metadata__"'),
    "a surrogate in a name": (b'{"\\ud800":%s}' % json.dumps(A).encode(), FOUR, ["name"], b'"\\ud800"'),
    "a list": (b"[]", b"", ["must begin with {"], b"[]"),
    "a byte order mark": (b"\xef\xbb\xbf{}", b"", ["must begin with {"], b"\xef\xbb\xbf{}"),
    "no header": (b"", b"xx", ["must begin with {"], b""),
    "a zero after it": (b"{}\0", b"", ["must end with }"], b""),
    "two of them": (b"{}{}", b"", ["Extra data"], b"{}"),
    "open": (b'{"a":{}', b"", ["valid JSON"], b""),
    "a comma too many": (b'{"a":%s,}' % json.dumps(A).encode(), FOUR, ["valid JSON"], b"}"),
    "a comma after wide letters": ('{"猫😀":1,}'.encode(), b"", ["valid JSON"], b"}"),
    "Latin-1": ('{"é":1}'.encode("latin-1"), b"", ["not UTF-8"], b"\xe9"),
    "a surrogate in UTF-8": (b'{"\xed\xa0\x80":1}', b"", ["not UTF-8"], b"\xed"),
    "a line feed in a name": (b'{"a\nb":1}', b"", ["valid JSON"], b"\nb"),
    "a number of 5,000 digits": (b'{"a":%s}' % (b"9" * 5000), b"", ["valid JSON"], None),
    "lists in lists": (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", b"", ["valid JSON", "recursion"], None),
}  # fmt: skip


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused(tmp_path: Path, kind: str, mmap: bool) -> None:
    header, numbers, said, place = REFUSED[kind]
    path = written(tmp_path, header, numbers)
    assert of_the_package(path.read_bytes()) is None
    with pytest.raises(CheckpointFormatError) as caught:
        SafetensorsFile(path, mmap)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert message.isprintable()
    assert len(message) < 1000
    for words in said:
        assert words in message
    assert not isinstance(caught.value, IncompleteCheckpointError)
    assert caught.value.path == path
    if place is None:
        assert caught.value.offset is None or kind == "the same place"
    else:
        content = path.read_bytes()
        end = len(content) - len(numbers)
        assert content[caught.value.offset : end].startswith(place)
        assert f"at byte {caught.value.offset}" in message
        assert caught.value.offset >= 8


@pytest.mark.parametrize("length", [100_000_001, 2**31, 2**63 - 1, 2**63, 2**64 - 8, 2**64 - 1])
def test_a_length_that_no_header_has(tmp_path: Path, length: int) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + b'{"a"')
    with pytest.raises(CheckpointFormatError, match="at most 100000000") as caught:
        SafetensorsFile(path)
    assert not isinstance(caught.value, IncompleteCheckpointError)
    path.write_text("Entry not found")
    with pytest.raises(CheckpointFormatError, match="Entry not found"):
        SafetensorsFile(path)


# --- limits ------------------------------------------------------------------------------------------


def padded(folder: Path, length: int) -> Path:
    return written(folder, b"{}" + b" " * (length - 2))


def test_the_longest_header(tmp_path: Path) -> None:
    assert len(SafetensorsFile(padded(tmp_path, HEADER_BYTES))) == 0
    longer = padded(tmp_path, HEADER_BYTES + 1)
    with pytest.raises(ResourceLimitError, match="max_header_bytes") as caught:
        SafetensorsFile(longer)
    assert caught.value.found == f"{HEADER_BYTES + 1} bytes"
    assert len(SafetensorsFile(longer, max_header_bytes=HEADER_BYTES + 1)) == 0
    with pytest.raises(ResourceLimitError):
        SafetensorsFile(padded(tmp_path, 100), max_header_bytes=99)


def test_the_format_s_own_limit_cannot_be_raised(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    for length, error in ((100_000_000, IncompleteCheckpointError), (100_000_001, CheckpointFormatError)):
        path.write_bytes(length.to_bytes(8, "little") + b"{}")
        with pytest.raises(error) as caught:
            SafetensorsFile(path, max_header_bytes=1 << 40)
        assert type(caught.value) is error


@pytest.mark.parametrize(
    ("shape", "end"),
    [([1] * 8, 4), ([0, 2**40], 0), ([2**40, 0, 2**20], 0), ([2**40, 0, 1, 1, 1, 1, 1, 1], 0)],
)
def test_shapes_that_are_just_allowed(tmp_path: Path, shape: list[int], end: int) -> None:
    file = SafetensorsFile(written(tmp_path, {"a" * 512: entry("F32", shape, 0, end)}, bytes(end)))
    assert file["a" * 512].shape == file.shape("a" * 512) == tuple(shape)


@pytest.mark.parametrize(("count", "allowed"), [(100_000, True), (100_001, False)])
def test_the_number_of_tensors(tmp_path: Path, count: int, allowed: bool) -> None:
    some = json.dumps(entry("F32", [1] * 7 + [0], 0, 0))
    path = written(tmp_path, ("{" + ",".join(f'"{n}":{some}' for n in range(count)) + "}").encode())
    if allowed:
        assert len(SafetensorsFile(path)) == count
    else:
        with pytest.raises(ResourceLimitError, match="too many tensors"):
            SafetensorsFile(path)


#: Headers that would take more memory than is there, or promise to.
HUNGRY = {
    "lists": b'{"a":[' + b"[]," * 5_000_000 + b"[]]}",
    "objects": b'{"a":[' + b'{"":0},' * 2_000_000 + b"0]}",
    "texts": b'{"a":[' + b'"ab",' * 3_000_000 + b"0]}",
    "lists just below the limit": b'{"a":[' + b"[]," * 299_000 + b"0]}",
    "objects just below the limit": b'{"a":[' + b'{"":0},' * 199_000 + b"0]}",
    "texts just below the limit": b'{"a":[' + b'"abcdefg",' * 1_190_000 + b"0]}",
    "all of these": b'{"a":[' + b'{"":[]},' * 199_000 + b'"abcdefg",' * 990_000 + b"0]}",
    "deep": b'{"a":' * 3_000_000 + b"0" + b"}" * 300_000,
    "a name": b'{"' + b"a" * 15_000_000 + b'":0}',
    "digits": b'{"a":' + b"9" * 15_000_000 + b"}",
    "wide letters": b'{"a":"' + "😀".encode() * 3_900_000 + b'"}',
}
_LIMITED = """
import resource, sys
from pathlib import Path
import ml_dtypes
from refimpl.checkpoints import SafetensorsFile
from refimpl.errors import RefimplError

limit, which, paths = int(sys.argv[1]), getattr(resource, sys.argv[2]), sys.argv[3:]
field = {"RLIMIT_AS": "VmSize", "RLIMIT_DATA": "VmData"}[sys.argv[2]]
used = next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith(field))
resource.setrlimit(which, (used + limit, used + limit))
for path in paths:
    try:
        file = SafetensorsFile(Path(path))
        print("opened", len(file), sum(file.shape(name)[0] for name in file), float(file["last"][-1]))
    except RefimplError as error:
        print(type(error).__name__)
"""


def limited(limit: int, which: str, *paths: Path) -> list[str]:
    """What opening gives in a process that gets `limit` more bytes than it has."""
    command = [sys.executable, "-c", _LIMITED, str(limit), which, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


linux = pytest.mark.skipif(sys.platform != "linux", reason="asks the system how much memory is used")


@linux
def test_hostile_headers_take_little_memory(tmp_path: Path) -> None:
    paths = []
    for name, header in HUNGRY.items():
        paths.append(tmp_path / name)
        paths[-1].write_bytes(file_of(header))
    outcomes = limited(192 << 20, "RLIMIT_AS", *paths)
    assert len(outcomes) == len(paths)
    assert set(outcomes) <= {"CheckpointFormatError", "ResourceLimitError"}


@linux
def test_promises_take_no_memory(tmp_path: Path) -> None:
    """A length of 100 MB in a file of 30 bytes, and tensors of terabytes in a file of 100."""
    paths = []
    for length in (10**7, 10**8):
        paths.append(tmp_path / f"{length}")
        paths[-1].write_bytes(length.to_bytes(8, "little") + b'{"a":0}')
    paths.append(tmp_path / "terabytes")
    paths[-1].write_bytes(file_of({"a": entry("F32", [2**40, 2], 0, 2**43)}))
    assert limited(8 << 20, "RLIMIT_DATA", *paths) == ["IncompleteCheckpointError"] * 3


@linux
def test_a_large_file_takes_no_memory_and_no_time(tmp_path: Path) -> None:
    """400 tensors, 5 GB: opened, and a number at the end read, with next to no memory."""
    size = 12_500_000
    names = [f"layers.{n}" for n in range(399)] + ["last"]
    header = {name: entry("F16", [size // 2], n * size, (n + 1) * size) for n, name in enumerate(names)}
    path = written(tmp_path, header)
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size + len(names) * size)
    start = time.process_time()
    assert len(SafetensorsFile(path)) == 400
    assert time.process_time() - start < 1
    assert limited(16 << 20, "RLIMIT_DATA", path) == [f"opened 400 {400 * size // 2} 0.0"]


def test_no_error_is_kept_from_its_class() -> None:
    """The errors are what a caller would catch who knows only the built-in ones."""
    assert issubclass(CheckpointFormatError, ValueError)
    assert issubclass(IncompleteCheckpointError, CheckpointFormatError)
    assert issubclass(ResourceLimitError, RefimplError)
