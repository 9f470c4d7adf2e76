"""Steps that are recorded as a CUDA graph and launched again, on a GPU whose kernels run on the processor."""

from __future__ import annotations

import gc
import warnings

import numpy as np
import pytest

from refimpl.backends import get_backend
from tests.tiny import tiny_model, tiny_neox

pytestmark = pytest.mark.usefixtures("pretended_gpu")

IDS = np.array([[3, 4, 5, 6, 7], [8, 9, 10, 11, 12]])
MASK = np.array([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])


@pytest.mark.parametrize("make", [tiny_model, tiny_neox])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_text_is_that_of_single_calls(make, dtype, pretended_gpu):
    options = {"attention_mask": MASK, "max_new_tokens": 8, "eos_token_id": [], "pad_token_id": 0}
    model = make(backend="cupy", dtype=dtype)
    before = pretended_gpu.replays
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text = model.generate(IDS, output_logits=True, return_dict_in_generate=True, **options)
    assert pretended_gpu.replays - before == 6  # one token with the prompt, one while it is recorded
    # The same tokens one by one, without a record.
    ids, mask, cache = IDS, MASK, None
    for step in range(8):
        positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
        past = 0 if cache is None else cache.get_seq_length()
        out = model(
            ids[:, past:], attention_mask=mask, position_ids=positions[:, past:], past_key_values=cache
        )
        cache, logits = out.past_key_values, model.backend.to_numpy(out.logits)[:, -1]
        assert np.abs(logits - text.logits[step]).max() <= 1e-5 * np.abs(logits).max()
        ids = np.concatenate([ids, logits.argmax(-1)[:, None]], axis=1)
        mask = np.concatenate([mask, np.ones((2, 1), mask.dtype)], axis=1)
    assert np.array_equal(ids, text.sequences)


def test_nothing_but_the_logits_is_waited_for(pretended_gpu):
    model = tiny_model(backend="cupy", dtype="float16")
    counts = []
    for tokens in (6, 10):
        before = pretended_gpu.synchronizations
        model.generate(IDS, max_new_tokens=tokens, eos_token_id=[])
        counts.append(pretended_gpu.synchronizations - before)
    assert counts[1] - counts[0] == 4


def test_a_graph_reads_what_has_changed_in_place():
    backend = get_backend("cupy")
    xp = backend.xp
    x, w = xp.asarray(np.ones((1, 8), np.float32)), backend.weight(np.eye(8, dtype=np.float32))
    step = backend.recorded(lambda: backend.linear(x, w) + x)
    assert backend.to_numpy(step()).tolist() == [[2.0] * 8]
    for number in (3.0, 5.0):
        x[...] = number
        others = [xp.zeros((1, 8), np.float32) for _ in range(4)]  # must not get the memory of the record
        assert backend.to_numpy(step()).tolist() == [[2 * number] * 8]
        assert all((backend.to_numpy(other) == 0).all() for other in others)


def test_a_step_that_cannot_be_recorded_is_computed_as_it_stands():
    backend = get_backend("cupy")
    x = backend.xp.asarray(np.arange(4.0, dtype=np.float32))
    step = backend.recorded(lambda: x * float(x.max()))
    with pytest.warns(UserWarning, match="cannot be recorded as a CUDA graph"):
        assert backend.to_numpy(step()).tolist() == [0.0, 3.0, 6.0, 9.0]
    x[...] = 2.0
    assert backend.to_numpy(step()).tolist() == [4.0] * 4
    # And the next one is recorded again.
    again = backend.recorded(lambda: x + 1)
    again()
    x[...] = 7.0
    assert backend.to_numpy(again()).tolist() == [8.0] * 4


def test_angles_that_depend_on_the_length_are_computed_call_by_call(pretended_gpu):
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    expected = tiny_model(rope_parameters=rope).generate(IDS, max_new_tokens=6, eos_token_id=[])
    model = tiny_model(backend="cupy", rope_parameters=rope)
    before = pretended_gpu.replays
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(model.generate(IDS, max_new_tokens=6, eos_token_id=[]), expected)
    assert pretended_gpu.replays == before


@pytest.mark.parametrize(
    ("matmul_dtype", "kept"), [(None, "float32"), (None, "float16"), ("bfloat16", "bfloat16")]
)
def test_products_of_many_rows_are_recorded(matmul_dtype, kept, pretended_gpu):
    """CuPy's own call of cuBLAS refuses while a stream is recorded."""
    backend = get_backend("cupy", matmul_dtype=matmul_dtype)
    numbers = np.random.default_rng(0).standard_normal((24, 16)).astype(np.float32)
    x, w = backend.asarray(numbers[:12].copy()), backend.weight(numbers, kept)
    bias = backend.asarray(numbers[:, 0].copy())
    step = backend.recorded(lambda: backend.linear(x, w, bias))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step()
    before = pretended_gpu.replays
    for scale in (2.0, -3.0):
        x[...] = backend.asarray(numbers[:12] * np.float32(scale))
        expected = backend.to_numpy(backend.linear(x, w, bias))
        assert np.array_equal(backend.to_numpy(step()), expected)
    assert pretended_gpu.replays - before == 2


def test_a_step_of_float64_is_computed_call_by_call(pretended_gpu):
    model, before = tiny_model(backend="cupy", dtype="float64"), pretended_gpu.replays
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text = model.generate(IDS, max_new_tokens=5, eos_token_id=[])
    assert np.array_equal(text, tiny_model(dtype="float64").generate(IDS, max_new_tokens=5, eos_token_id=[]))
    assert pretended_gpu.replays == before


def test_the_memory_of_a_record_goes_back_with_it(pretended_gpu):
    """A pool of CuPy that is dropped takes its memory with it."""
    backend = get_backend("cupy")
    x = backend.asarray(np.ones((4, 1 << 16), np.float32))
    gc.collect()
    before, found = pretended_gpu.allocated[0], []
    for _ in range(3):
        step = backend.recorded(lambda: x + 1)
        step()
        step()
        assert pretended_gpu.allocated[0] > before
        found.append(step._place.pool)
        del step
        assert pretended_gpu.allocated[0] == before
    assert found[0] is found[1] is found[2]


def test_two_records_keep_out_of_each_other():
    backend = get_backend("cupy")
    x = backend.asarray(np.zeros((1, 64), np.float32))
    steps = [backend.recorded(lambda more=more: (x + more) * 2) for more in (1, 5)]
    for step in steps:
        step()
    found = [step() for step in steps]
    assert [backend.to_numpy(one)[0, 0] for one in found] == [2.0, 10.0]


def test_memory_that_is_kept_for_later_is_there_for_a_record(pretended_gpu):
    backend = get_backend("cupy")
    x = backend.asarray(np.ones((4, 1 << 16), np.float32))  # 1 MB
    later = [backend.xp.zeros((1 << 18) * n, np.float32) for n in (1, 2, 4)]
    pretended_gpu.memory = pretended_gpu.allocated[0] + (1 << 20)  # room for one result, and two are needed
    del later
    step = backend.recorded(lambda: x + 1)
    step()
    assert backend.to_numpy(step())[0, 0] == 2.0
