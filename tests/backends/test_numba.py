"""What the compiled kernels promise beyond the definitions: the same bits in every situation, on every processor."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
import pytest

from refimpl import AutoModelForCausalLM
from refimpl.backends import get_backend
from refimpl.backends.mask import AttentionMask
from refimpl.backends.quantized import quantize_int8, quantize_nf4
from refimpl.errors import BackendError, CheckpointValueError
from tests.tiny import save_tiny, tiny_ids, tiny_model, tiny_neox

FORMS = {
    "float32": lambda matrix: matrix,
    "float16": lambda matrix: matrix.astype(np.float16),
    "bfloat16": lambda matrix: matrix.astype(ml_dtypes.bfloat16),
    "int8": quantize_int8,
    "nf4": quantize_nf4,
    "nf4 double": lambda matrix: quantize_nf4(matrix, double_quant=True),
    "nf4 block 128": lambda matrix: quantize_nf4(matrix, block=128),
}
every_form = pytest.mark.parametrize("form", FORMS)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def dense(matrix):
    return np.asarray(matrix, np.float32).astype(np.float64)


# --- matrix products -----------------------------------------------------------------------------


@every_form
@pytest.mark.parametrize("shape", [(64, 128), (100, 384), (31, 640), (1, 128), (129, 256)])
def test_products_of_any_shape(form, shape):
    """The error is that of sums of 256: measured against float64, relative to the largest output."""
    matrix = FORMS[form](normal(*shape))
    ops = get_backend("numba", threads=2)
    weight, bias = ops.weight(matrix), normal(shape[0], seed=2)
    for rows in (1, 2, 3, 5, 8, 15, 16, 17, 40):
        x = normal(rows, shape[1], seed=rows)
        exact = x.astype(np.float64) @ dense(matrix).T
        for b in (None, bias):
            found = ops.linear(x, weight, b)
            wanted = exact if b is None else exact + b
            assert found.shape == wanted.shape
            assert np.abs(found - wanted).max() <= 1e-6 * max(1, np.abs(wanted).max()), rows


@every_form
def test_a_row_has_the_same_bits_in_any_company(form):
    weight = FORMS[form](normal(96, 640))
    x, bias = normal(50, 640, seed=1), normal(96, seed=2)
    ops = get_backend("numba", threads=1)
    alone = np.concatenate([ops.linear(row, ops.weight(weight), bias) for row in x[:, None]])
    for threads in (1, 2, 5):
        ops = get_backend("numba", threads=threads)
        kept = ops.weight(weight)
        for rows in (2, 3, 4, 7, 9, 16, 23, 50):
            assert (ops.linear(x[:rows], kept, bias) == alone[:rows]).all(), (threads, rows)
    assert (ops.linear(x.reshape(5, 10, 640)[::2], kept, bias).reshape(30, 96)[:10] == alone[:10]).all()


@every_form
def test_packing_loses_nothing(form):
    matrix = FORMS[form](normal(70, 256))
    ops = get_backend("numba")
    kept = ops.weight(matrix)
    home = ops.to_numpy(kept)
    assert type(home) is type(matrix)
    assert np.asarray(home).tobytes() == np.asarray(matrix).tobytes()
    ids = np.array([[0, 69, 3]])
    assert (ops.embedding(ids, kept) == dense(matrix)[ids].astype(np.float32)).all()
    assert (kept.shape, kept.ndim, len(kept.shape)) == ((70, 256), 2, 2)
    if isinstance(matrix, np.ndarray):
        assert kept.dtype == matrix.dtype
        assert len(kept) == 70
        assert (kept[5] == matrix[5]).all()
        assert (kept[-1] == matrix[-1]).all()
        assert (kept[2:4, 1] == matrix[2:4, 1]).all()


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_every_half_is_widened_exactly(dtype):
    numbers = np.arange(65536, dtype=np.uint16).view(dtype)
    with np.errstate(invalid="ignore"):
        numbers = numbers[np.isfinite(numbers)]
    matrix = np.zeros((len(numbers), 16), dtype)
    matrix[:, 3] = numbers
    x = np.zeros((1, 16), np.float32)
    x[0, 3] = 1
    ops = get_backend("numba")
    with np.errstate(invalid="ignore"):
        assert (ops.linear(x, ops.weight(matrix))[0] == numbers.astype(np.float32)).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_no_number(dtype, number):
    matrix = normal(70, 30).astype(dtype)
    matrix[65, 7] = number
    with pytest.raises(CheckpointValueError) as caught:
        get_backend("numba").weight(matrix)
    assert caught.value.first_index == [65, 7]


def test_a_model_names_the_tensor_that_holds_no_number(tmp_path):
    from safetensors.numpy import load_file, save_file

    save_tiny(tmp_path, tiny_neox())
    tensors = load_file(tmp_path / "model.safetensors")
    name = "gpt_neox.layers.1.mlp.dense_h_to_4h.weight"
    tensors[name][2, 3] = np.nan
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointValueError) as caught:
        AutoModelForCausalLM.from_pretrained(tmp_path, backend="numba")
    assert caught.value.tensor == name
    assert str(caught.value).startswith(f"{name}: ")


def test_a_matrix_whose_blocks_go_on_in_the_next_row_is_computed_by_the_definition():
    matrix = quantize_nf4(normal(9, 70))
    ops = get_backend("numba")
    x = normal(2, 70, seed=1)
    assert np.abs(ops.linear(x, ops.weight(matrix)) - x @ matrix.dense().T).max() <= 1e-5


# --- attention -----------------------------------------------------------------------------------


@pytest.mark.parametrize("head_dim", [3, 8, 16, 20, 64, 80, 129])
def test_a_query_has_the_same_bits_however_its_keys_came(head_dim):
    """In one prefill, token by token over a longer storage, with padding and without, by any number of threads."""
    batch, heads, seq, pad = 2, 3, 71, 5
    query, keys, values = (normal(batch, heads, pad + seq, head_dim, seed=seed) for seed in (1, 2, 3))
    storage = [np.concatenate([array, np.full_like(array, 7)], axis=2) for array in (keys, values)]
    visible = np.ones((batch, pad + seq), bool)
    visible[0, :pad] = False
    scale = head_dim**-0.5
    ops = get_backend("numba", threads=2)
    mask = AttentionMask(key_visible=visible)
    whole, weights = ops.attention(query, keys, values, mask, scale, need_weights=True)
    assert (whole == ops.attention(query, keys, values, mask, scale)[0]).all()
    assert weights.shape == (batch, heads, pad + seq, pad + seq)
    assert (whole[0, :, :pad] == 0).all()  # these see nothing
    for threads in (1, 3):
        other = get_backend("numba", threads=threads)
        assert (other.attention(query, keys, values, mask, scale)[0] == whole).all()
    for t in (0, 1, 6, 17, 75):
        seen = [array[:, :, : t + 1] for array in storage]
        step = AttentionMask(offset=t, key_visible=visible[:, : t + 1])
        one, _ = ops.attention(query[:, :, t : t + 1], *seen, step, scale)
        assert (one[:, :, 0] == whole[:, :, t]).all(), t
    bare, _ = ops.attention(
        query[:1, :, pad:], keys[:1, :, pad:], values[:1, :, pad:], AttentionMask(), scale
    )
    assert (bare == whole[:1, :, pad:]).all()
    double = get_backend("numpy", dtype="float64")
    exact, _ = double.attention(*(a.astype(np.float64) for a in (query, keys, values)), mask, scale)
    assert np.abs(whole - exact).max() <= 1e-6 * np.abs(exact).max()


def test_arrays_of_any_layout():
    ops, plain = get_backend("numba"), get_backend("numpy")
    query, key, value = (normal(2, 6, 3, 8, seed=s).transpose(0, 2, 1, 3) for s in (1, 2, 3))
    turned = normal(2, 3, 8, 6, seed=2).swapaxes(-1, -2)
    for keys in (key, turned):
        found, _ = ops.attention(query, keys, value, AttentionMask(), 0.3)
        expected, _ = plain.attention(query, keys, value, AttentionMask(), 0.3)
        assert np.abs(found - expected).max() <= 1e-6
    x = normal(6, 5, 48, seed=5)[::2, ::-1]
    one, zero = np.ones(48, np.float32), np.zeros(48, np.float32)
    assert np.abs(ops.layer_norm(x, one, zero, 1e-5) - plain.layer_norm(x, one, zero, 1e-5)).max() <= 2e-6
    assert np.abs(ops.activation(x, "gelu") - plain.activation(x, "gelu")).max() <= 1e-6


# --- activations ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gelu", "gelu_new", "gelu_fast", "silu", "quick_gelu", "sigmoid"])
def test_activations_between_minus_and_plus_20(name):
    """Largest error: 3 units in the last place of the result or 2e-7, whichever is larger."""
    x = np.linspace(-20, 20, 100_003, dtype=np.float32)
    found = get_backend("numba").activation(x, name)
    exact = get_backend("numpy", dtype="float64").activation(x.astype(np.float64), name)
    assert (np.abs(found - exact) <= np.maximum(2e-7, 3 * np.spacing(np.abs(exact).astype(np.float32)))).all()
    ends = np.array([0.0, -0.0, 1e30, -1e30, np.inf, np.nan], np.float32)
    found = get_backend("numba").activation(ends, name)
    assert np.isnan(found[5])
    assert (found[2:5] == ([1, 0, 1] if name == "sigmoid" else [np.float32(1e30), 0, np.inf])).all()


# --- models --------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [tiny_model, tiny_neox])
def test_a_model_gives_the_same_bits_in_every_situation(make):
    model = make(backend="numba")
    ids = tiny_ids(3, 21)
    whole = model(ids).logits
    for row in range(3):
        assert (model(ids[row : row + 1]).logits[0] == whole[row]).all()
    first = model(ids[:, :8])
    rest = [model(ids[:, 8:9], past_key_values=first.past_key_values).logits]
    rest += [model(ids[:, t : t + 3], past_key_values=first.past_key_values).logits for t in range(9, 21, 3)]
    assert (np.concatenate([first.logits, *rest], axis=1) == whole).all()
    padded = np.concatenate([np.full((3, 4), 3), ids], axis=1)
    mask = np.concatenate([np.zeros((3, 4), int), np.ones((3, 21), int)], axis=1)
    positions = np.maximum(mask.cumsum(axis=1) - 1, 0)
    assert (model(padded, attention_mask=mask, position_ids=positions).logits[:, 4:] == whole).all()
    assert (model(ids, output_attentions=True).logits == whole).all()


# --- threads -------------------------------------------------------------------------------------


def test_python_threads_that_compute_at_once():
    model = tiny_model(backend="numba")
    rows = [tiny_ids(1, 30, seed=seed) for seed in range(8)]
    expected = [model(row).logits for row in rows]

    def compute(index):
        return all((model(rows[index]).logits == expected[index]).all() for _ in range(20))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(compute, range(8)))


def test_workers_sleep_and_wake():
    ops = get_backend("numba", threads=3)
    weight, x = ops.weight(normal(4096, 512)), normal(64, 512, seed=1)
    expected = ops.linear(x, weight)
    time.sleep(0.3)
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.2  # nobody waits in a loop any more
    for _ in range(5):
        assert (ops.linear(x, weight) == expected).all()
    assert sum(thread.name.startswith("refimpl-") for thread in threading.enumerate()) >= 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_computes():
    ops = get_backend("numba", threads=2)
    weight, x = ops.weight(normal(512, 512)), normal(20, 512, seed=1)
    expected = ops.linear(x, weight)
    child = os.fork()
    if child == 0:
        try:
            same = all((ops.linear(x, weight) == expected).all() for _ in range(50))
            os._exit(0 if same else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert (ops.linear(x, weight) == expected).all()


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, "two", 2000])
def test_numbers_of_threads_that_are_none(threads):
    with pytest.raises(BackendError, match="threads: not a number of threads"):
        get_backend("numba", threads=threads)


def test_threads_of_the_environment(monkeypatch):
    from refimpl.backends.numba.regions import default_threads

    monkeypatch.setenv("OMP_NUM_THREADS", "3,2")
    assert default_threads() == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    monkeypatch.setenv("NUMBA_NUM_THREADS", "7")
    assert default_threads() == 7
    monkeypatch.delenv("NUMBA_NUM_THREADS")
    assert default_threads() == len(os.sched_getaffinity(0))


# --- other processors ----------------------------------------------------------------------------

_PROGRAM = """
import hashlib, sys
import numpy as np
from refimpl.backends.numba import cpu, tiles
from tests.backends.test_numba import FORMS, normal
from refimpl.backends import get_backend
from tests.tiny import tiny_ids, tiny_neox
ops = get_backend("numba", threads=2)
ops._digits = lambda rows: 0  # int8 in float32 here: whole numbers are tried in test_digits.py
bits = hashlib.sha256()
for make in FORMS.values():
    weight = ops.weight(make(normal(100, 384)))
    for rows in (1, 3, 20):
        bits.update(ops.linear(normal(rows, 384, seed=rows), weight).tobytes())
bits.update(tiny_neox(backend="numba")(tiny_ids(2, 20)).logits.tobytes())
print(tiles.ROWS, tiles.VECTORS, "fma" in cpu.features(), bits.hexdigest())
"""


def on_another_processor(name, tmp_path):
    environment = dict(os.environ)
    if name:
        environment |= {
            "NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": "", "REFIMPL_CACHE_DIR": str(tmp_path)
        }  # fmt: skip
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


def test_processors_with_wide_and_narrow_registers_give_the_same_bits(tmp_path):
    here = on_another_processor("", tmp_path)
    narrow = on_another_processor("haswell", tmp_path)
    if here[2] == "True":
        assert narrow[2:] == here[2:]
    assert narrow[:2] == ["6", "1"]


def test_a_processor_that_can_do_little(tmp_path):
    """No fused multiplication, no instruction for float16: it computes, and nearly the same."""
    assert on_another_processor("x86-64", tmp_path)[:3] == ["6", "1", "False"]


def test_an_environment_that_claims_too_much(monkeypatch):
    import numba
    from llvmlite import binding

    from refimpl.backends.numba import cpu

    monkeypatch.setattr(binding, "get_host_cpu_features", lambda: {"avx2": True, "fma": True})
    monkeypatch.setattr(numba.config, "CPU_NAME", "skylake-avx512")
    monkeypatch.setattr(numba.config, "CPU_FEATURES", "")
    with pytest.raises(BackendError, match="lacks what the environment claims") as caught:
        cpu.features.__wrapped__()
    assert "avx512f" in str(caught.value)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize(("head_dim", "queries"), [(16, 1), (64, 5), (20, 33), (7, 4), (80, 1)])
def test_attention_over_a_cache_in_16_bits(dtype, head_dim, queries):
    """Exactly the kernel's float32 numbers for the widened cache, also as a part of longer storage."""
    backend, rng = get_backend("numba"), np.random.default_rng(head_dim)
    query = rng.normal(size=(2, 3, queries, head_dim)).astype(np.float32)
    key, value = (rng.normal(size=(2, 3, 40, head_dim)).astype(dtype)[:, :, :33] for _ in range(2))
    mask = AttentionMask(offset=33 - queries, key_visible=rng.random((2, 33)) < 0.8)
    found, _ = backend.attention(query, key, value, mask, 0.3)
    wide, _ = backend.attention(query, key.astype(np.float32), value.astype(np.float32), mask, 0.3)
    assert (found == wide).all()
