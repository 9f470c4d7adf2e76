"""Steps that are recorded as a CUDA graph and launched again, on a GPU whose kernels run on the processor."""

from __future__ import annotations

import gc
import warnings
from types import SimpleNamespace

import numpy as np
import pytest

from refimpl.backends import get_backend
from refimpl.errors import NumericalError
from refimpl.prompt_cache import PromptCache
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


def counted(gpu):
    return np.array([gpu.synchronizations, gpu.uploads, gpu.replays, len(gpu.launches)])


@pytest.mark.parametrize(
    ("sampled", "uploads"), [({}, 0), ({"do_sample": True, "seed": 4, "temperature": 9.0}, 4)]
)
def test_a_token_is_one_launch_and_one_answer(sampled, uploads, pretended_gpu):
    model = tiny_model(backend="cupy", dtype="float16")
    counts = []
    for tokens in (6, 10):
        before = counted(pretended_gpu)
        model.generate(IDS, attention_mask=MASK, max_new_tokens=tokens, eos_token_id=[], **sampled)
        counts.append(counted(pretended_gpu) - before)
    assert (counts[1] - counts[0]).tolist() == [4, uploads, 4, 0]


def test_a_greedy_text_leaves_its_logits_on_the_device(monkeypatch):
    model, copied = tiny_model(backend="cupy"), []
    to_numpy = model.backend.to_numpy

    def counting(array):
        copied.append(array.shape)
        return to_numpy(array)

    monkeypatch.setattr(model.backend, "to_numpy", counting)
    model.generate(IDS, max_new_tokens=5, eos_token_id=[])
    # The first token is chosen from the logits of the prompt; then ids, positions and length of two rows come.
    assert copied == [(2, 1, 40), *[(2 * 2 + 1,)] * 4]


PADDED = {"attention_mask": MASK}
SCORES = {"output_scores": True, "return_dict_in_generate": True}
GREEDY = {
    "a row": ([IDS[:1]], {}),
    "rows": ([IDS], {}),
    "padding": ([IDS], PADDED),
    "static": ([IDS], PADDED | {"cache_implementation": "static"}),
    "max_length": ([IDS], {"max_length": 11, "max_new_tokens": None}),
    "a prompt cache": (
        [IDS[:1], IDS[:1, :3], np.array([[3, 4, 5, 6, 9, 9, 9]])],
        {"past_key_values": PromptCache},
    ),
    "a processor": ([IDS], PADDED | {"logits_processor": lambda ids, scores: -scores}),
    "a criterion": (
        [IDS],
        PADDED | {"stopping_criteria": lambda ids, scores: np.isin(scores.argmax(axis=1), (28, 6))},
    ),
    "scores": ([IDS], PADDED | SCORES),
    "penalties": ([IDS], PADDED | {"repetition_penalty": 1.5}),
}


@pytest.mark.parametrize("make", [tiny_model, tiny_neox])
@pytest.mark.parametrize(("prompts", "settings"), GREEDY.values(), ids=list(GREEDY))
def test_greedy_texts_are_those_of_numpy(make, prompts, settings, pretended_gpu):
    """There scores are asked for, and chosen from."""
    plain, model = make(seed=5), make(backend="cupy", seed=5)
    caches = [cache() for cache in [settings.get("past_key_values", lambda: None)] * 2]
    before = pretended_gpu.replays
    for prompt in prompts:
        asked = {"max_new_tokens": 8, "eos_token_id": [], "pad_token_id": 0} | settings
        expected = plain.generate(prompt, **(asked | SCORES | {"past_key_values": caches[0]}))
        found = model.generate(prompt, **(asked | {"past_key_values": caches[1]}))
        if "output_scores" in settings:
            np.testing.assert_allclose(found.scores, expected.scores, rtol=0, atol=1e-4)
            found = found.sequences
        assert np.array_equal(found, expected.sequences)
    assert pretended_gpu.replays > before


def test_rows_end_where_they_end_on_numpy():
    """The device goes on with its own choice in a row that has ended; the host puts the padding there."""
    asked = {"attention_mask": MASK, "max_new_tokens": 12, "pad_token_id": 0, "eos_token_id": [20, 6]}
    texts, put = [], []
    for backend in ("numpy", "cupy"):
        streamer = SimpleNamespace(put=lambda ids: put.append(ids.tolist()), end=lambda: None)
        texts.append(tiny_neox(backend=backend, seed=5).generate(IDS, streamer=streamer, **asked))
    assert np.array_equal(*texts)
    assert put[: len(put) // 2] == put[len(put) // 2 :]
    assert (texts[0][:, IDS.shape[1] :] != 0).sum(axis=1).tolist() == [10, 3]


@pytest.mark.parametrize("settings", [{}, SCORES], ids=["on the device", "on the host"])
def test_nan_in_a_recorded_step_is_an_error(settings):
    asked = {"attention_mask": MASK, "max_new_tokens": 8, "eos_token_id": [], "pad_token_id": 0}
    free = tiny_neox(seed=5).generate(IDS, **asked)
    # The token whose embedding is broken is the second new one of the second row, and stands nowhere before.
    rows, places = np.nonzero(free == free[1, 6])
    assert (rows.tolist(), places.min()) == ([1], 6)
    model = tiny_neox(backend="cupy", seed=5)
    model.base_model.embed_in.weight[int(free[1, 6])] = np.nan
    with pytest.raises(NumericalError) as caught:
        model.generate(IDS, **asked, **settings)
    assert (caught.value.row, caught.value.position) == (1, 7)
    assert np.array_equal(caught.value.sequences, free[:, :7])


def test_a_row_that_has_ended_may_hold_nan():
    asked = {"attention_mask": MASK, "max_new_tokens": 8, "pad_token_id": 30, "eos_token_id": 6}
    expected = tiny_neox(seed=5).generate(IDS, **asked)
    assert (expected == 30).sum(axis=1).tolist() == [0, 5]
    model = tiny_neox(backend="cupy", seed=5)
    model.base_model.embed_in.weight[30] = np.nan
    assert np.array_equal(model.generate(IDS, **asked), expected)


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
