"""The two quantized formats: bit for bit those of bitsandbytes, and what follows from their definitions."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from refimpl.backends import get_backend, quantizing
from refimpl.backends.quantized import (
    NF4_BLOCKSIZES,
    NF4_CODE,
    Int8Matrix,
    NestedAbsmax,
    NF4Matrix,
    QuantizedMatrix,
    dynamic_code,
    int8_absmax,
    int8_bytes,
    nest_absmax,
    nf4_absmax,
    nf4_bytes,
    nf4_source_dtype,
    quantize_int8,
    quantize_nf4,
)
from refimpl.backends.quantizing import nearest
from refimpl.errors import CheckpointValueError, InputError
from tests.goldens import check, find_cases, inputs_of

CASES = find_cases(operation="quantize")
FORMS = {
    "int8": quantize_int8,
    "nf4": quantize_nf4,
    "nf4 double": lambda array, **names: quantize_nf4(array, double_quant=True, **names),
}
every_form = pytest.mark.parametrize("quantize", FORMS.values(), ids=FORMS)


def normal(*shape: int, seed: int = 0, scale: float = 0.05, dtype: Any = "float32") -> np.ndarray:
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(dtype)


def bits(values: Any) -> np.ndarray:
    """The bits of float32 numbers, as the goldens write them."""
    return np.atleast_1d(np.asarray(values, dtype=np.float32)).view(np.uint32).astype(np.int64)


# --- bitsandbytes' own results -------------------------------------------------------------------


def outputs_of(matrix: QuantizedMatrix) -> dict[str, np.ndarray]:
    if isinstance(matrix, Int8Matrix):
        return {"CB": matrix.CB, "SCB_bits": bits(matrix.SCB), "weight_bits": bits(matrix.dense())}
    assert isinstance(matrix, NF4Matrix)
    if isinstance(matrix.absmax, NestedAbsmax):
        return {
            "absmax": matrix.absmax.absmax,
            "nested_absmax_bits": bits(matrix.absmax.nested_absmax),
            "nested_quant_map_bits": bits(matrix.absmax.nested_quant_map),
            "nested_offset_bits": bits(matrix.absmax.nested_offset),
            "scales_bits": bits(matrix.scales),
        }
    return {
        "packed": matrix.packed,
        "absmax_bits": bits(matrix.absmax),
        "weight_bits": bits(matrix.dense()),
    }


def test_there_are_goldens():
    assert len(CASES) >= 12


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_golden(case):
    arguments = dict(case["inputs"]["arguments"])
    quantize = {"int8": quantize_int8, "nf4": quantize_nf4}[arguments.pop("method")]
    found = outputs_of(quantize(inputs_of(case)["weight"], **arguments))
    assert set(found) == set(case["expected"]["outputs"])
    for name, array in found.items():
        check(case, name, array, "int64")


# --- the tables ----------------------------------------------------------------------------------


def test_the_16_values_are_quantiles_of_the_normal_distribution():
    """QLoRA, appendix E: equal steps of probability on either side, scaled so that the outermost are 1."""
    outermost = 0.9677083
    quantile = NormalDist().inv_cdf

    def side(count: int) -> list[float]:
        return [quantile(outermost + (0.5 - outermost) * i / count) for i in range(count)]

    values = sorted([*(-v for v in side(7)), 0.0, *side(8)])
    assert np.allclose(NF4_CODE, np.array(values) / max(values), rtol=0, atol=2e-7)
    assert NF4_CODE[7] == 0
    assert not NF4_CODE.flags.writeable


def test_the_256_values_of_double_quantization():
    code = dynamic_code()
    assert code.dtype == np.float32
    assert (np.diff(code) > 0).all()
    assert code[127] == 0
    assert code[255] == 1
    assert (code[:127] == -code[128:255][::-1]).all()  # symmetric, but for the 1
    for exponent in range(7):
        decade = [v for v in code if 10.0 ** (exponent - 7) < v < 10.0 ** (exponent - 6)]
        assert len(decade) == 2**exponent
        steps = 0.9 / 2**exponent * (np.arange(2**exponent) + 0.5)
        assert np.allclose(decade, 10.0 ** (exponent - 6) * (0.1 + steps), rtol=1e-6, atol=0)


def test_nearest_takes_the_lower_of_two_that_are_equally_near():
    table = np.array([-1, 0, 2], dtype=np.float32)
    values = np.array([-9, -1, -0.5, -0.4, 0.9, 1, 1.1, 9], dtype=np.float32)
    assert nearest(values, table).tolist() == [0, 0, 0, 1, 1, 1, 2, 2]


def test_nearest_finds_what_a_search_finds():
    """For every kind of float32: between the values, at the midpoints and beside them, tiny, infinite, NaN."""
    rng = np.random.default_rng(0)
    midpoints = (NF4_CODE[:-1] + NF4_CODE[1:]) / np.float32(2)
    beside = [midpoints, NF4_CODE]
    for _ in range(3):
        beside += [np.nextafter(beside[-2], np.float32(2)), np.nextafter(beside[-1], np.float32(-2))]
    tiny = np.array([0, 1, 2, 3, 1 << 22, (1 << 23) - 1, 1 << 23], np.uint32).view(np.float32)
    values = np.concatenate(
        [
            *beside,
            tiny,
            -tiny,
            np.array([np.inf, -np.inf, np.nan], np.float32),
            rng.uniform(-1, 1, 100_000).astype(np.float32),
            rng.integers(0, 1 << 32, 300_000, dtype=np.uint32).view(np.float32),
        ]
    )
    assert (nearest(values, NF4_CODE) == np.searchsorted(midpoints, values)).all()
    found = nearest(values.reshape(-1, 1), NF4_CODE)
    assert (found.dtype, found.shape) == (np.uint8, (values.size, 1))


# --- parts ---------------------------------------------------------------------------------------


@every_form
@pytest.mark.parametrize("shape", [(3, 12288), (2, 70000), (33000, 2), (1, 4097), (64, 1024)])
@pytest.mark.parametrize("layout", ["C", "F"])
def test_the_size_of_the_parts_changes_nothing(quantize, monkeypatch, shape, layout):
    array = np.asarray(normal(*shape), order=layout)
    found = []
    for part in (1 << 12, 1 << 15, 1 << 30):
        monkeypatch.setattr(quantizing, "_PART", part)
        arrays: list[np.ndarray] = []
        quantize(array).map_arrays(lambda array, into=arrays: into.append(array) or array)
        found.append([one.tobytes() for one in arrays])
    assert found[0] == found[1] == found[2]


@every_form
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_the_order_of_bytes_in_memory_changes_nothing(quantize, dtype):
    array = normal(5, 70).astype(f">{dtype}")
    found = [np.asarray(quantize(one)) for one in (array, array.astype(f"<{dtype}"))]
    assert (found[0] == found[1]).all()


@pytest.mark.parametrize("shape", [(1, 1), (7, 65), (3, 12288), (700, 96)])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_absmaxes_alone(shape, dtype):
    array = normal(*shape).astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    assert (int8_absmax(array) == quantize_int8(array).SCB).all()
    for block in (64, 4096):
        assert (nf4_absmax(array, block) == quantize_nf4(array, block=block).absmax).all()
    assert nf4_source_dtype(array.dtype) == quantize_nf4(array).source_dtype


@pytest.mark.parametrize("compute", [*FORMS.values(), int8_absmax, nf4_absmax])
def test_the_place_of_a_wrong_number_is_that_in_the_matrix(compute):
    array = normal(50, 4096)
    array[33, 7] = array[49, 4095] = np.nan
    with pytest.raises(CheckpointValueError, match="cannot be quantized") as caught:
        compute(array, name="w")
    assert (caught.value.first_index, caught.value.count, caught.value.tensor) == ([33, 7], 2, "w")


# --- int8 ----------------------------------------------------------------------------------------


def test_int8_by_hand():
    array = np.array([[1.0, -2.0, 0.5, 0.0], [0.0, 0.0, 0.0, 0.0], [127.0, 0.5, 1.5, -2.5]], dtype=np.float32)
    matrix = quantize_int8(array)
    assert matrix.CB.dtype == np.int8
    assert matrix.CB.tolist() == [[64, -127, 32, 0], [0, 0, 0, 0], [127, 0, 2, -2]]
    assert matrix.SCB.tolist() == [2, 0, 127]
    assert np.allclose(matrix.dense()[0], np.array([64, -127, 32, 0]) * 2 / 127)
    assert matrix.dense()[1].tolist() == [0, 0, 0, 0]


def test_int8_goes_through_float16():
    array = np.array([[1.0001, 0.5]], dtype=np.float32)
    assert quantize_int8(array).SCB.tolist() == [1.0]
    with pytest.raises(CheckpointValueError, match="float16") as caught:
        quantize_int8(np.array([[1.0, 2.0], [3.0, 70000.0]], dtype=np.float32), name="w")
    assert (caught.value.tensor, caught.value.first_index, caught.value.count) == ("w", [1, 1], 1)
    assert "70000.0" in str(caught.value)


def test_int8_error_is_at_most_half_a_step():
    array = normal(40, 100)
    rounded = array.astype(np.float16).astype(np.float64)
    matrix = quantize_int8(array)
    step = matrix.SCB[:, None] / 127
    assert (np.abs(matrix.dense() - rounded) <= step * (0.5 + 1e-4)).all()


# --- NF4 -----------------------------------------------------------------------------------------


def nf4_by_hand(array: np.ndarray, block: int) -> tuple[list[int], list[float], np.ndarray]:
    """Codes one by one, absmax of each block, and the dense matrix: loops over Python floats."""
    flat = [float(v) for v in array.astype(np.float32).reshape(-1)]
    codes, absmaxes, dense = [], [], []
    for start in range(0, len(flat), block):
        part = flat[start : start + block]
        absmax = max(abs(v) for v in part)
        absmaxes.append(absmax)
        for value in part:
            distances = [abs(value - float(c) * absmax) for c in NF4_CODE]
            codes.append(distances.index(min(distances)))
            dense.append(float(NF4_CODE[codes[-1]]) * absmax)
    return codes, absmaxes, np.array(dense).reshape(array.shape)


@pytest.mark.parametrize("shape", [(3, 128), (5, 44), (7, 11), (1, 1), (1, 65)])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_nf4_by_hand(shape, dtype):
    array = normal(*shape).astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    codes, absmaxes, dense = nf4_by_hand(array, 64)
    matrix = quantize_nf4(array)
    assert matrix.shape == shape
    assert matrix.absmax.tolist() == absmaxes
    bytes_ = [16 * a + b for a, b in zip(codes[0::2], [*codes[1::2], 7], strict=False)]  # 7 stands for 0
    assert matrix.packed.tolist() == bytes_
    assert np.allclose(matrix.dense(), dense, rtol=1e-7, atol=0)
    assert matrix.source_dtype == ("float32" if dtype == "float64" else dtype)


@pytest.mark.parametrize("block", sorted(NF4_BLOCKSIZES))
def test_nf4_block_sizes(block):
    matrix = quantize_nf4(normal(3, 5000), block=block)
    assert matrix.absmax.size == math.ceil(15000 / block)
    widest = np.diff(NF4_CODE).max() / 2 + 1e-6
    assert (np.abs(matrix.dense() - normal(3, 5000)) <= np.abs(normal(3, 5000)).max() * widest).all()


def test_nf4_zeros_stay_zeros():
    for shape in ((2, 64), (3, 50)):
        for double_quant in (False, True):
            matrix = quantize_nf4(np.zeros(shape, dtype=np.float32), double_quant)
            assert (matrix.dense() == 0).all()
            assert (matrix.packed == 0x77).all()


def test_nf4_tiny_numbers_keep_their_codes():
    row = np.zeros(64 + 20, dtype=np.float32)
    row[:3] = row[64:67] = (2e-38, -1e-38, 5e-39)
    codes = [15, 2, 10]
    matrix = quantize_nf4(row[None])
    for start in (0, 32):
        assert matrix.packed[start : start + 2].tolist() == [codes[0] * 16 + codes[1], codes[2] * 16 + 7]
    assert matrix.absmax.tolist() == [np.float32(2e-38)] * 2
    # Below 1e-38 that is the divisor; only a last block that is not full shows it as its absmax.
    tinier = quantize_nf4(row[None] / np.float32(8)).absmax
    assert tinier.tolist() == [np.float32(2e-38) / 8, np.float32(1e-38)]


def test_nf4_a_second_time_changes_nothing():
    first = quantize_nf4(normal(30, 100))
    second = quantize_nf4(first.dense())
    assert (second.packed == first.packed).all()
    assert (second.absmax == first.absmax).all()


def test_double_quantization_keeps_the_codes_and_most_of_the_absmax():
    array = normal(300, 256) * np.random.default_rng(1).uniform(0.5, 2, (300, 1)).astype(np.float32)
    plain, double = quantize_nf4(array), quantize_nf4(array, double_quant=True)
    assert (plain.packed == double.packed).all()
    assert double.nbytes < plain.nbytes
    unit = double.absmax.nested_absmax.repeat(256)[: plain.absmax.size]
    half_a_step = np.diff(dynamic_code()).max() / 2
    assert (np.abs(double.scales - plain.absmax) <= unit * half_a_step * 1.001).all()
    assert double.absmax.nested_offset == pytest.approx(plain.absmax.mean(), rel=1e-6)
    assert double.absmax.nested_absmax.size == math.ceil(plain.absmax.size / 256)


def test_another_offset_moves_the_nested_absmax():
    absmax = np.array([1, 2, 3], dtype=np.float32)
    nested = nest_absmax(absmax, offset=1.5)
    assert nested.nested_offset == 1.5
    assert nested.nested_absmax.tolist() == [1.5]
    assert np.allclose(nested.values(), absmax, rtol=0.02)


# --- as a weight ---------------------------------------------------------------------------------


@every_form
@pytest.mark.parametrize("shape", [(7, 128), (7, 44), (6, 11)])
def test_rows_are_those_of_the_dense_matrix(quantize, shape):
    matrix = quantize(normal(*shape))
    ids = np.array([[0, 3, 3], [5, 1, 2]])
    assert (matrix[ids] == matrix.dense()[ids]).all()
    assert matrix[ids].dtype == np.float32
    assert (matrix[2:4] == matrix.dense()[2:4]).all()


@every_form
def test_astype_rounds_to_float32_first(quantize):
    matrix = quantize(normal(6, 70))
    dense = matrix.dense()
    assert dense.dtype == np.float32
    for dtype in (np.float64, np.float32, np.float16, ml_dtypes.bfloat16):
        found = matrix.astype(dtype, copy=False)
        assert found.dtype == dtype
        assert (found == dense.astype(dtype)).all()
    assert (np.asarray(matrix) == dense).all()


@every_form
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_backend_operations_take_a_quantized_weight(backend, quantize, dtype):
    ops = get_backend(backend, dtype=dtype)
    host = quantize(normal(9, 64))
    weight = ops.weight(host)
    for kept in (weight, ops.weight(host, np.dtype("float16"))):  # stays quantized
        assert isinstance(kept, QuantizedMatrix)
        assert isinstance(ops.to_numpy(kept), type(host))
    x, bias = normal(2, 3, 64, seed=1, dtype=dtype), normal(9, seed=2, dtype=dtype)
    found = ops.to_numpy(ops.linear(ops.asarray(x), weight, ops.asarray(bias)))
    expected = x.astype("float64") @ host.dense().T.astype("float64") + bias
    assert found.dtype == dtype
    assert np.abs(found - expected).max() <= (1e-6 if dtype == "float32" else 1e-14)
    ids = np.array([[0, 8, 3]])
    rows = ops.to_numpy(ops.embedding(ops.asarray(ids), weight))
    assert rows.dtype == dtype
    assert (rows == host.dense()[ids].astype(dtype)).all()
    home = ops.to_numpy(weight)
    assert (home.dense() == host.dense()).all()


@every_form
def test_map_arrays_reaches_every_array(quantize):
    matrix = quantize(normal(9, 64))
    seen = []

    def look(array):
        seen.append(array)
        return array.copy()

    copied = matrix.map_arrays(look)
    assert sum(array.nbytes for array in seen) == copied.nbytes == matrix.nbytes
    assert (copied.dense() == matrix.dense()).all()
    assert (copied.dtype, copied.shape) == (matrix.dtype, matrix.shape)


def test_sizes():
    array = normal(256, 128)
    assert quantize_int8(array).nbytes == 256 * 128 + 256 * 4
    assert quantize_nf4(array).nbytes == 256 * 64 + 512 * 4 + 16 * 4
    assert quantize_nf4(array, double_quant=True).nbytes == 256 * 64 + 512 + 2 * 4 + 256 * 4 + 16 * 4
    assert repr(quantize_int8(array)) == "<Int8Matrix [256, 128], 33,792 bytes>"


@every_form
def test_nothing_of_a_quantized_matrix_can_be_changed(quantize):
    matrix = quantize(normal(4, 64))
    arrays = []
    matrix.map_arrays(lambda array: arrays.append(array) or array)
    assert len(arrays) >= 2
    assert not any(array.flags.writeable for array in arrays)
    with pytest.raises(AttributeError):
        matrix.SCB = None


@every_form
def test_the_source_is_left_alone(quantize):
    array = normal(4, 64)
    before = array.copy()
    quantize(array)
    assert (array == before).all()
    assert array.flags.writeable


# --- what is refused -----------------------------------------------------------------------------


@every_form
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused(quantize, value):
    array = normal(4, 64)
    array[2, 5] = array[3, 0] = value
    with pytest.raises(CheckpointValueError, match="cannot be quantized") as caught:
        quantize(array)
    assert caught.value.first_index == [2, 5]
    assert caught.value.count == 2


def test_the_tensor_is_named():
    array = np.full((1, 64), np.nan, dtype=np.float32)
    for quantize in (quantize_int8, quantize_nf4):
        with pytest.raises(CheckpointValueError, match=r"layers\.0\.dense\.weight") as caught:
            quantize(array, name="layers.0.dense.weight")
        assert caught.value.tensor == "layers.0.dense.weight"


def test_a_float64_number_beyond_float32_is_refused():
    for quantize in FORMS.values():
        with pytest.raises(CheckpointValueError):
            quantize(np.full((1, 64), 1e300))


@every_form
@pytest.mark.parametrize(
    "array",
    [
        np.zeros(64, dtype=np.float32),
        np.zeros((2, 3, 4), dtype=np.float32),
        np.zeros((0, 64), dtype=np.float32),
        np.zeros((2, 64), dtype=np.int8),
        np.zeros((2, 64), dtype=np.complex64),
    ],
    ids=lambda array: f"{array.dtype}{list(array.shape)}",
)
def test_other_arrays_are_refused(quantize, array):
    with pytest.raises(InputError, match="only a matrix of floats"):
        quantize(array)


@pytest.mark.parametrize("block", [0, 63, 16, 64.0, "64", None])
def test_other_block_sizes_are_refused(block):
    with pytest.raises(InputError, match="block size"):
        quantize_nf4(normal(2, 64), block=block)


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (7, 64), (130, 129), (64, 1024)])
def test_the_bytes_are_known_before_a_matrix_is_made(shape):
    matrix = normal(*shape)
    assert quantize_int8(matrix).nbytes == int8_bytes(shape)
    for double_quant in (False, True):
        assert quantize_nf4(matrix, double_quant=double_quant).nbytes == nf4_bytes(
            shape, double_quant=double_quant
        )
