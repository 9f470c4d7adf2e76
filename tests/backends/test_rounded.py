"""Matrix products of rounded numbers (`matmul_dtype`): what is rounded, how exact the rest is, on which processor."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
import pytest

from refimpl import AutoModelForCausalLM
from refimpl.backends import get_backend
from refimpl.errors import BackendError
from tests.backends.test_numba import FORMS, dense, every_form, normal
from tests.tiny import save_tiny, tiny_ids, tiny_model, tiny_neox

ROWS = (16, 17, 40, 48, 530)

#: Columns of x that share a unit, in int8.
BLOCK = 512


def in_bfloat16(array):
    return array.astype(ml_dtypes.bfloat16).astype(np.float64)


def in_int8(x):
    """x as whole multiples of a unit for each row and block of columns."""
    rounded = np.zeros(x.shape)
    for k in range(0, x.shape[1], BLOCK):
        part = x[:, k : k + BLOCK]
        largest = np.abs(part).max(axis=1, keepdims=True)
        rounded[:, k : k + BLOCK] = np.rint(part * (np.float32(127) / largest)) * (largest / np.float32(127))
    return rounded


def close(found, exact):
    """Whether the sums are those of float32, relative to the largest."""
    return np.abs(found - exact).max() <= 1e-6 * max(1, np.abs(exact).max())


# --- what is computed ------------------------------------------------------------------------------


@every_form
@pytest.mark.parametrize("shape", [(64, 128), (100, 384), (31, 640), (129, 1280)])
def test_bfloat16_rounds_both_factors_and_nothing_else(form, shape):
    """int8 weights are exact in bfloat16; their units, and the bias, are not rounded."""
    matrix = FORMS[form](normal(*shape))
    ops = get_backend("numba", threads=2, matmul_dtype="bfloat16")
    weight, bias = ops.weight(matrix), normal(shape[0], seed=2)
    rounded = dense(matrix) if form == "int8" else in_bfloat16(np.asarray(matrix, np.float32))
    for rows in ROWS:
        x = normal(rows, shape[1], seed=rows)
        exact = in_bfloat16(x) @ rounded.T
        assert close(ops.linear(x, weight), exact), rows
        assert close(ops.linear(x, weight, bias), exact + bias), rows


@pytest.mark.parametrize("shape", [(64, 128), (100, 1030), (31, 30), (129, 1281), (3, 2)])
def test_int8_rounds_x_by_rows_and_blocks(shape):
    matrix = FORMS["int8"](normal(*shape))
    ops = get_backend("numba", threads=2, matmul_dtype="int8")
    weight, bias = ops.weight(matrix), normal(shape[0], seed=2)
    for rows in ROWS:
        x = normal(rows, shape[1], seed=rows)
        exact = in_int8(x) @ dense(matrix).T
        assert close(ops.linear(x, weight), exact), rows
        assert close(ops.linear(x, weight, bias), exact + bias), rows


@pytest.mark.parametrize("length", [1, 30, 33, 127, 257])
@pytest.mark.parametrize("form", ["float32", "float16", "bfloat16", "int8"])
def test_lengths_that_fill_no_word(form, length):
    matrix = FORMS[form](normal(40, length))
    x = normal(20, length, seed=1)
    ops = get_backend("numba", matmul_dtype="bfloat16")
    exact = in_bfloat16(x) @ (dense(matrix) if form == "int8" else in_bfloat16(dense(matrix))).T
    assert close(ops.linear(x, ops.weight(matrix)), exact)


def test_how_bfloat16_is_rounded():
    """To the nearest, ties to even, infinity beyond the largest; NaN stays NaN; below 1.2e-38 it may be 0."""
    numbers = np.array(
        [1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -1 - 2**-8, 3.4e38, -3.4e38, 1e-39, 0, np.inf, np.nan],
        np.float32,
    )
    wanted = np.array([1, 1 + 2**-6, 1 + 2**-7, -1, np.inf, -np.inf, 0, 0, np.inf, np.nan], np.float32)
    x = np.zeros((16, 32), np.float32)
    x[: len(numbers), 5] = numbers
    weight = np.zeros((32, 32), np.float32)
    weight[7, 5] = 1
    for tiles in (True, False):
        ops = get_backend("numba", matmul_dtype="bfloat16")
        ops._unit = ops._unit if tiles else None
        with np.errstate(invalid="ignore"):
            found = ops.linear(x, ops.weight(weight))[: len(numbers), 7]
        assert np.allclose(found, wanted, rtol=0, atol=1e-38, equal_nan=True)


def test_int8_of_rows_without_a_number():
    """A row of zeros or next to nothing gives zeros; NaN or infinity make their row NaN, not others."""
    matrix = FORMS["int8"](normal(40, 600))
    x = normal(20, 600, seed=1)
    x[3], x[4], x[5, 7], x[6, 599] = 0, 1e-38, np.nan, np.inf
    ops = get_backend("numba", matmul_dtype="int8")
    with np.errstate(invalid="ignore"):
        found = ops.linear(x, ops.weight(matrix))
    assert (np.abs(found[3:5]) <= 1e-35).all()
    assert np.isnan(found[[5, 6]]).all()
    others = [row for row in range(20) if row not in (5, 6)]
    assert close(found[others][:3], in_int8(x[:3]) @ dense(matrix).T)


@pytest.mark.parametrize("matmul_dtype", ["bfloat16", "int8"])
@every_form
def test_where_nothing_is_gained_nothing_is_rounded(form, matmul_dtype):
    """Few rows wait for memory: they are multiplied as without the option. So are other weights than int8 in int8."""
    matrix, bias = FORMS[form](normal(96, 640)), normal(96, seed=2)
    exact, rounding = get_backend("numba"), get_backend("numba", matmul_dtype=matmul_dtype)
    weight = exact.weight(matrix)
    for rows in (1, 2, 15, 16, 40):
        x = normal(rows, 640, seed=rows)
        same = (exact.linear(x, weight, bias) == rounding.linear(x, weight, bias)).all()
        assert same == (rows < 16 or (matmul_dtype == "int8" and form != "int8")), rows


@pytest.mark.parametrize("matmul_dtype", ["bfloat16", "int8"])
def test_a_row_has_the_same_bits_with_any_threads_and_in_any_company_of_16(matmul_dtype):
    matrix, bias = FORMS["int8"](normal(96, 640)), normal(96, seed=2)
    x = normal(600, 640, seed=1)
    ops = get_backend("numba", threads=1, matmul_dtype=matmul_dtype)
    weight = ops.weight(matrix)
    whole = ops.linear(x, weight, bias)
    for threads in (1, 2, 5):
        ops = get_backend("numba", threads=threads, matmul_dtype=matmul_dtype)
        for rows in (16, 17, 31, 32, 63, 100, 513):
            assert (ops.linear(x[:rows], weight, bias) == whole[:rows]).all(), (threads, rows)


# --- models and options ----------------------------------------------------------------------------


@pytest.mark.parametrize("make", [tiny_model, tiny_neox])
def test_a_model_with_rounded_products(make):
    """Close to float32, never the same; tokens one by one after the prompt are computed in float32."""
    ids = tiny_ids(2, 20)
    exact, model = make(backend="numba"), make(backend=get_backend("numba", matmul_dtype="bfloat16"))
    expected, found = exact(ids).logits, model(ids).logits
    assert found.dtype == np.float32
    difference = np.abs(found - expected).max() / np.abs(expected).max()
    assert 1e-5 < difference < 5e-2
    assert (exact(ids[:1, :1]).logits == model(ids[:1, :1]).logits).all()
    assert "products in bfloat16" in repr(model)
    assert type(exact)(exact.config, matmul_dtype="int8").backend.matmul_dtype == "int8"


def test_a_loaded_model_with_rounded_products(tmp_path):
    save_tiny(tmp_path, tiny_neox())
    ids = tiny_ids(2, 20)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, weight_dtype="int8", matmul_dtype="float32")
    assert plain.backend.matmul_dtype is None
    expected = plain(ids).logits
    for matmul_dtype in ("bfloat16", "int8"):
        model = AutoModelForCausalLM.from_pretrained(tmp_path, weight_dtype="int8", matmul_dtype=matmul_dtype)
        assert model.backend.matmul_dtype == matmul_dtype
        found = model(ids).logits
        assert 1e-5 < np.abs(found - expected).max() / np.abs(expected).max() < 5e-2
    for dtype in ("bfloat16", "float16"):  # which say how weights are kept, and nothing else
        model = AutoModelForCausalLM.from_pretrained(tmp_path, torch_dtype=dtype)
        assert model.backend.matmul_dtype is None


@pytest.mark.parametrize(
    ("backend", "options", "what"),
    [
        ("numpy", {"matmul_dtype": "bfloat16"}, "the numpy backend does not round .* allowed: float32"),
        ("numba", {"matmul_dtype": "float16"}, "found 'float16'; allowed: float32, bfloat16, int8"),
        ("numba", {"matmul_dtype": "int8", "dtype": "float64"}, "only where float32 is computed"),
        ("numba", {"matmul_dtype": 3}, "not a dtype"),
    ],
)
def test_roundings_that_are_not_there(backend, options, what):
    with pytest.raises(BackendError, match=what):
        get_backend(backend, **options)


def test_a_finished_backend_rounds_as_it_does():
    ops = get_backend("numba", matmul_dtype="bfloat16")
    assert get_backend(ops) is get_backend(ops, matmul_dtype="bfloat16") is ops
    for backend, other in ((ops, "float32"), (ops, "int8"), (get_backend("numpy"), "bfloat16")):
        with pytest.raises(BackendError, match="has another matmul_dtype"):
            get_backend(backend, matmul_dtype=other)


# --- processors ------------------------------------------------------------------------------------


def test_tiles_and_words_give_the_same():
    """Whole numbers: the same bits. bfloat16: the same numbers in another order."""
    from refimpl.backends.numba import cpu

    if not cpu.has_tiles():
        pytest.skip("this processor has no AMX")
    matrix, x = FORMS["int8"](normal(100, 1300)), normal(50, 1300, seed=1)
    for matmul_dtype in ("int8", "bfloat16"):
        ops = get_backend("numba", matmul_dtype=matmul_dtype)
        weight = ops.weight(matrix)
        tiles = ops.linear(x, weight)
        ops._unit = None
        words = ops.linear(x, weight)
        assert (tiles == words).all() == (matmul_dtype == "int8")
        assert close(tiles, words)


def test_tiles_are_left_as_they_were():
    """Another library of this thread may have set them."""
    from numba import njit

    from refimpl.backends.numba import amx, cpu

    if not cpu.has_tiles():
        pytest.skip("this processor has no AMX")

    @njit
    def begin(told, before):
        amx.begin(told, before)

    @njit
    def end(before):
        amx.end(before)

    nothing, seen, told = (np.ones(64, np.uint8) for _ in range(3))
    told[:] = amx.shapes()
    told[48] = 5  # rows of the first tile
    begin(told, nothing)
    try:
        ops = get_backend("numba", threads=1, matmul_dtype="bfloat16")
        ops.linear(normal(16, 64), ops.weight(normal(32, 64)))
        begin(told, seen)
    finally:
        end(nothing)
    assert (seen == told).all()
    assert not nothing.any()


def test_without_permission_there_are_no_tiles(monkeypatch):
    from refimpl.backends.numba import cpu

    monkeypatch.setattr(cpu, "has_tiles", lambda: False)
    ops = get_backend("numba", matmul_dtype="bfloat16")
    x, matrix = normal(20, 64), normal(32, 64, seed=1)
    assert ops._unit is None
    assert close(ops.linear(x, ops.weight(matrix)), in_bfloat16(x) @ in_bfloat16(matrix).T)


def test_python_threads_and_forked_processes():
    ops = get_backend("numba", threads=2, matmul_dtype="bfloat16")
    weight, x = ops.weight(normal(512, 512)), normal(64, 512, seed=1)
    expected = ops.linear(x, weight)

    def compute(_):
        return all((ops.linear(x, weight) == expected).all() for _ in range(50))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(compute, range(4)))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_rounds_too():
    ops = get_backend("numba", threads=2, matmul_dtype="bfloat16")
    weight, x = ops.weight(normal(512, 512)), normal(20, 512, seed=1)
    expected = ops.linear(x, weight)
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if (ops.linear(x, weight) == expected).all() else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


_PROGRAM = """
import hashlib
import numpy as np
from refimpl.backends import get_backend
from refimpl.backends.numba import cpu
from tests.backends.test_numba import FORMS, normal
from tests.backends.test_rounded import close, in_bfloat16, in_int8
x, matrix = normal(40, 600), normal(100, 600, seed=1).astype(np.float16)
ops = get_backend("numba", threads=2, matmul_dtype="bfloat16")
pairs = ops.linear(x, ops.weight(matrix))
ops = get_backend("numba", threads=2, matmul_dtype="int8")
quantized = FORMS["int8"](normal(100, 600, seed=1))
quads = ops.linear(x, ops.weight(quantized))
close = [close(pairs, in_bfloat16(x) @ in_bfloat16(matrix).T), close(quads, in_int8(x) @ np.asarray(quantized).T)]
ops._digits = lambda rows: 3
exact = [ops.linear(x[:rows], ops.weight(quantized)) for rows in (1, 40)]
close.append(np.abs(exact[1] - x.astype(np.float64) @ np.asarray(quantized).T).max() <= 2e-6 * np.abs(exact[1]).max())
close.append((exact[0] == exact[1][:1]).all())
bits = [hashlib.sha256(y.tobytes()).hexdigest() for y in (pairs, quads, exact[1])]
print(cpu.has_tiles(), all(close), *bits)
"""


#: REFIMPL_PROCESSORS=all tries every form of the products, not only that of most machines.
ALL_PROCESSORS = os.environ.get("REFIMPL_PROCESSORS") == "all"


def on_another_processor(name, tmp_path):
    """Whether it has tiles, whether its products are right, and the bits of those in bfloat16, int8 and in digits."""
    environment = dict(os.environ) | {"REFIMPL_CACHE_DIR": str(tmp_path)}
    if name:
        environment |= {"NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": ""}
    result = subprocess.run(
        [sys.executable, "-c", _PROGRAM],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


def host_has(*names):
    from llvmlite import binding

    host = binding.get_host_cpu_features()
    return all(host.get(name) for name in names)


def test_other_processors_give_the_same_bits(tmp_path):
    """With VNNI of both widths and without; in bfloat16 with AMX and with neither it nor AVX512_BF16; with and
    without fused multiplication.  Each has to be compiled anew: all of them are tried by `make check-long`."""
    names = ["haswell"]
    if ALL_PROCESSORS:
        names += ["x86-64"]
        names += ["alderlake"] if host_has("avxvnni") else []
        names += ["cascadelake"] if host_has("avx512vnni") else []
        names += ["znver4"] if host_has("avx512vnni", "avx512bf16") else []
    with ThreadPoolExecutor(2) as pool:
        found = dict(
            zip(names, pool.map(lambda name: on_another_processor(name, tmp_path), names), strict=True)
        )
        here = on_another_processor("", tmp_path) if ALL_PROCESSORS else ["False"]
    for name, (has_tiles, right, in_pairs, *in_quads) in found.items():
        assert (has_tiles, right) == ("False", "True"), name
        if name != "x86-64":
            assert in_quads == found["haswell"][3:], name
        if name in ("alderlake", "cascadelake"):
            assert in_pairs == found["haswell"][2], name
    if here[0] == "True":
        assert here[1:] == found["haswell"][1:]
