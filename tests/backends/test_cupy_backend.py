"""Whole models on the cupy backend.  Its kernels run on the processor here (tests/cuda_on_cpu), so no GPU is needed.

Every test of the `backend` fixture runs so too, with REFIMPL_CUDA_ON_CPU=1; these few run always.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import refimpl
from refimpl import DynamicCache, StaticCache, to_numpy
from refimpl.attention import build_mask
from refimpl.backends import get_backend, to_dtype
from refimpl.backends.mask import AttentionMask
from refimpl.errors import BackendError, CheckpointValueError, InputError, ResourceLimitError
from tests.goldens import check, expected_of, find_cases, inputs_of, model_folder, real_tokens
from tests.tiny import save_tiny, tiny_ids, tiny_model, tiny_neox

pytestmark = pytest.mark.usefixtures("pretended_gpu")

BOTH = pytest.mark.parametrize("make", [tiny_model, lambda backend, **c: tiny_neox(backend=backend, **c)])
HALVES = pytest.mark.parametrize("half", ["float16", "bfloat16"])

#: How far logits of a tiny model may be off, by the largest: some roundings of 2^-11 and 2^-8 in each of 3 layers.
OFF = {"float32": 5e-6, "float16": 4e-3, "bfloat16": 3e-2}


def logits(model: Any, ids: Any = None, **inputs: Any) -> np.ndarray:
    return to_numpy(model(tiny_ids() if ids is None else ids, **inputs).logits)


def off(found: np.ndarray, right: np.ndarray) -> float:
    return float(np.abs(found.astype(np.float64) - right).max() / np.abs(right).max())


# --- golden cases ------------------------------------------------------------------------------------

CASES = (
    *("gpt_neox/tiny-plain/outputs", "gpt_neox/tiny-plain/left-padding-positions"),
    *("gpt_neox_japanese/tiny-plain/outputs", "gpt_neox_japanese/tiny-partial-rotary/mask-with-holes"),
)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_golden_models(name, dtype):
    case = next(case for case in find_cases(operation="model") if case["id"] == name)
    model = refimpl.AutoModelForCausalLM.from_pretrained(model_folder(case), backend="cupy", dtype=dtype)
    out = model(**inputs_of(case), **case["inputs"]["arguments"])
    found = to_numpy(out.logits)
    if dtype == "float32":
        check(case, "logits", found, dtype)
        return
    assert out.past_key_values[0][0].dtype == to_dtype(dtype)
    right, real = expected_of(case, "logits"), real_tokens(case)
    rows = np.ones(right.shape[:2], bool) if real is None else real
    assert found.dtype == np.float32
    assert off(found[rows], right[rows]) < OFF[dtype]


# --- caches, padding, generation ---------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_token_by_token_after_a_prompt(make, dtype):
    """The rows of a prompt are many and those of a step few: different kernels give the same text."""
    model, ids = make("cupy", dtype=dtype), tiny_ids(2, 12)
    right = logits(make("numpy").double(), ids)
    out = model(ids[:, :9], use_cache=True)
    pieces = [to_numpy(out.logits)]
    for place in range(9, 12):
        out = model(ids[:, place : place + 1], past_key_values=out.past_key_values)
        pieces.append(to_numpy(out.logits))
    assert off(np.concatenate(pieces, axis=1), right) < OFF[dtype]
    assert out.past_key_values.get_seq_length() == 12


@BOTH
def test_padding_on_the_left_changes_nothing(make):
    model, ids = make("cupy"), tiny_ids(1, 6)
    padded = np.concatenate([np.zeros((1, 3), int), ids], axis=1)
    mask = np.concatenate([np.zeros((1, 3), int), np.ones((1, 6), int)], axis=1)
    positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    found = logits(model, padded, attention_mask=mask, position_ids=positions)[:, 3:]
    assert off(found, logits(model, ids)) < 1e-6


@BOTH
def test_greedy_text_is_that_of_the_definitions(make):
    options = {"max_new_tokens": 8, "eos_token_id": [], "pad_token_id": 1}
    ids = tiny_ids(2, 5)
    mask = np.array([[1] * 5, [0, 0, 1, 1, 1]])
    right = make("numpy").generate(ids, mask, **options)
    assert make("cupy").generate(ids, mask, **options).tolist() == right.tolist()
    beams = {"num_beams": 3, **options}
    assert (
        make("cupy").generate(ids, mask, **beams).tolist()
        == make("numpy").generate(ids, mask, **beams).tolist()
    )


@HALVES
def test_a_cache_is_kept_in_16_bits_where_products_are(half):
    model = tiny_model("cupy", half)
    kept = to_dtype(half)
    for cache in (None, DynamicCache(), StaticCache(max_cache_len=32)):
        out = model(tiny_ids(), past_key_values=cache, use_cache=True)
        assert {array.dtype for pair in out.past_key_values for array in pair} == {kept}
    wide = DynamicCache(dtype="float32")
    assert model(tiny_ids(), past_key_values=wide).past_key_values[2][1].dtype == np.float32
    # What version 4 of transformers called a cache goes in again, and so does a cache that is made of it.
    pairs = out.past_key_values.to_legacy_cache()
    right = logits(model, tiny_ids(2, 1), past_key_values=pairs)
    assert (
        logits(model, tiny_ids(2, 1), past_key_values=DynamicCache.from_legacy_cache(pairs)) == right
    ).all()


def test_a_cache_of_another_backend_is_refused():
    cache = tiny_model("numpy")(tiny_ids(), use_cache=True).past_key_values
    with pytest.raises(InputError, match="of another backend"):
        tiny_model("cupy")(tiny_ids(2, 1), past_key_values=cache)


def test_a_finished_mask_stays_as_it_is():
    ops = get_backend("cupy")
    mask = AttentionMask(offset=ops.asarray(np.array([3])))
    assert build_mask(ops, mask, 1, 1, 1, 3) is mask


def test_other_outputs_of_a_call():
    """Losses, weights of attention, masks of one's own, factors of heads: what the definitions compute."""
    ids = tiny_ids()
    bias = np.where(np.tri(9, dtype=bool), 0.0, -np.inf)[None, None]
    inputs = {"labels": ids, "attention_mask": bias, "head_mask": [0.5, 1.0, 2.0], "output_attentions": True}
    found, right = (tiny_model(name)(ids, **inputs) for name in ("cupy", "numpy"))
    assert abs(float(found.loss) - float(right.loss)) < 1e-5
    assert off(to_numpy(found.attentions[1]), right.attentions[1]) < 1e-5
    kept = logits(tiny_model("cupy"), ids, logits_to_keep=np.array([0, -1]))
    assert off(kept, tiny_model()(ids).logits[:, [0, -1]]) < 1e-5


# --- weights -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "quantization",
    [
        {"load_in_8bit": True},
        {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
        {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    ],
)
def test_quantized_weights(quantization, tmp_path):
    """Read as they are for a few rows, and widened in pieces for many: the numbers of the definition."""
    save_tiny(tmp_path, tiny_neox(hidden_size=64, num_attention_heads=2))
    models = [
        refimpl.AutoModelForCausalLM.from_pretrained(
            tmp_path, backend=name, quantization_config={"quant_method": "bitsandbytes", **quantization}
        )
        for name in ("cupy", "numpy")
    ]
    for ids in (tiny_ids(2, 9), tiny_ids(1, 2)):
        found, right = (logits(model, ids) for model in models)
        assert off(found, right) < 1e-5
    back = models[0].to("cpu").state_dict()
    for key, weight in models[1].state_dict().items():
        assert (np.asarray(to_numpy_of(weight)) == np.asarray(to_numpy_of(back[key]))).all(), key


def to_numpy_of(weight: Any) -> Any:
    unpacked = getattr(weight, "unpacked", None)
    return weight if unpacked is None else unpacked()


@pytest.mark.parametrize("kept", [None, "float64", "bfloat16"])
def test_weights_go_to_the_device_in_pieces(kept, tmp_path, monkeypatch):
    from refimpl.backends.cupy import transfer

    source = np.random.default_rng(0).normal(size=(50, 41)).astype("float32")
    for piece in (64, 40, 8200, 1 << 20):  # the last is more than there is; 40 cuts rows
        monkeypatch.setattr(transfer, "PIECE", piece)
        transfer._Ring.of.cache_clear()
        dtype = None if kept is None else to_dtype(kept)
        found = get_backend("cupy").weight(source, dtype)
        assert found.dtype == (dtype or source.dtype)
        assert (to_numpy(found) == source.astype(found.dtype)).all()
    transfer._Ring.of.cache_clear()


def test_a_failure_on_the_way_leaves_the_buffers_usable(monkeypatch):
    import cupy

    from refimpl.backends.cupy import transfer

    monkeypatch.setattr(transfer, "PIECE", 64)
    transfer._Ring.of.cache_clear()
    source = np.arange(1000, dtype=np.float32).reshape(10, 100)
    with monkeypatch.context() as broken:
        broken.setattr(cupy.ndarray, "set", lambda *args, **options: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            transfer.upload(cupy, source)
    assert (to_numpy(transfer.upload(cupy, source)) == source).all()
    transfer._Ring.of.cache_clear()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("number", [np.nan, -np.inf])
def test_numbers_that_are_none_are_an_error_that_names_the_tensor(tmp_path, dtype, number):
    model = tiny_model()
    model.gpt_neox_japanese.layers[1].mlp.dense_h_to_4h.weight[5, 7:9] = number
    save_tiny(tmp_path, model)
    with pytest.raises(CheckpointValueError, match="holds NaN or infinity") as caught:
        refimpl.AutoModelForCausalLM.from_pretrained(tmp_path, backend="cupy", weight_dtype=dtype)
    key = "gpt_neox_japanese.layers.1.mlp.dense_h_to_4h.weight"
    assert (caught.value.tensor, caught.value.count, caught.value.first_index) == (key, 2, [5, 7])
    assert key in str(caught.value)


def test_a_number_that_float16_cannot_hold(tmp_path):
    model = tiny_model()
    model.gpt_neox_japanese.layers[2].attention.dense.weight[3, 4] = 1e6
    save_tiny(tmp_path, model)
    with pytest.raises(CheckpointValueError, match=r"float16 cannot hold .* found 1000000.0 at \[3, 4\]"):
        refimpl.AutoModelForCausalLM.from_pretrained(tmp_path, backend="cupy", dtype="float16")
    refimpl.AutoModelForCausalLM.from_pretrained(tmp_path, backend="cupy", dtype="bfloat16")


# --- memory ------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused_before_anything_is_allocated(tmp_path, pretended_gpu):
    save_tiny(tmp_path)
    needed = sum(weight.nbytes for weight in tiny_model().state_dict().values())
    backend = get_backend("cupy")
    free = backend.free_memory()
    pretended_gpu.memory -= free - needed  # as much as the weights, of which 90 % may be taken
    before = dict(pretended_gpu.allocated)
    with pytest.raises(ResourceLimitError, match="of the memory of cuda:0") as caught:
        refimpl.AutoModelForCausalLM.from_pretrained(tmp_path, backend="cupy")
    assert caught.value.requested == needed
    assert caught.value.free == pytest.approx(needed, abs=2048)  # the trial of the device took some
    assert f"{needed:,} of {caught.value.free:,} bytes" in str(caught.value)
    on_host = tiny_model()
    with pytest.raises(ResourceLimitError):
        on_host.to("cuda")
    assert on_host.device == "cpu"
    with pytest.raises(ResourceLimitError):
        tiny_model("cupy")
    assert pretended_gpu.allocated == before
    pretended_gpu.memory += needed // 4
    refimpl.AutoModelForCausalLM.from_pretrained(tmp_path, backend="cupy")
    with pytest.raises(ResourceLimitError):
        refimpl.AutoModelForCausalLM.from_pretrained(tmp_path, backend="cupy", max_memory=needed - 1)


def test_a_device_that_is_full_later_on_is_the_same_error(pretended_gpu):
    import cupy

    model = tiny_model("cupy")
    cupy.get_default_memory_pool().free_all_blocks()
    pretended_gpu.memory = pretended_gpu.allocated[0]
    with pytest.raises(ResourceLimitError, match="the memory of the GPU is full") as caught:
        model(tiny_ids(8, 64))
    assert caught.value.requested > 0
    assert isinstance(caught.value, cupy.cuda.memory.OutOfMemoryError)
    pretended_gpu.memory = 64 << 30
    logits(model)


# --- devices and dtypes ------------------------------------------------------------------------------


@BOTH
def test_to_a_gpu_and_back(make):
    model = make("numba")
    before = logits(model)
    assert model.to("cuda") is model
    assert (model.device, model.backend.name, model.backend.matmul_dtype) == ("cuda:0", "cupy", None)
    assert all(hasattr(array, "__cuda_array_interface__") for array in model.state_dict().values())
    assert off(logits(model), before) < 1e-5
    assert model.to("cuda") is model.cuda() is model.cuda(0) is model
    model.cpu()
    assert (model.device, model.backend.name) == ("cpu", "numba")
    assert (logits(model) == before).all()


@HALVES
def test_half_means_products_of_16_bits_on_a_gpu_whenever_it_was_said(half):
    right = logits(tiny_neox(dtype="float64"))
    for say in (lambda m: m.to(half).cuda(), lambda m: m.cuda().to(half), lambda m: m.to("cuda", half)):
        model = say(tiny_neox(backend="numba"))
        assert model.backend.matmul_dtype == half
        assert model.dtype == np.float32
        assert model.get_input_embeddings().weight.dtype == to_dtype(half)
        assert 0 < off(logits(model), right) < OFF[half]
    loaded = tiny_neox(backend="numba", dtype=half).cuda()
    assert loaded.backend.matmul_dtype == half
    assert loaded.cpu().backend.matmul_dtype is None
    assert loaded.cuda().backend.matmul_dtype == half
    assert loaded.float().backend.matmul_dtype is None
    assert loaded.cpu().cuda().backend.matmul_dtype is None
    assert loaded.double().dtype == np.float64


def test_weights_in_16_bits_that_nobody_asked_for_round_no_products(tmp_path):
    """A file in float16 that was loaded as it is computes on a GPU what it did on the processor."""
    save_tiny(tmp_path, tiny_model().half())
    model = refimpl.AutoModelForCausalLM.from_pretrained(tmp_path, backend="numba")
    before = logits(model)
    assert model.cuda().backend.matmul_dtype is None
    assert model.get_input_embeddings().weight.dtype == np.float16
    assert off(logits(model), before) < 1e-5


def test_float64_is_computed_by_the_definitions():
    model = tiny_neox(backend="cupy", dtype="float64")
    assert off(logits(model), logits(tiny_neox(dtype="float64"))) < 1e-13
    assert model.dtype == np.float64


def test_several_devices(pretended_gpu):
    pretended_gpu.devices = 2
    second, first = tiny_model("cupy").cuda(1), tiny_model("cupy")
    assert (first.device, second.device) == ("cuda:0", "cuda:1")
    for _ in range(2):  # one after the other, in one thread
        for model, index in ((first, 0), (second, 1)):
            out = model(tiny_ids(), use_cache=True)
            assert {array.device.id for pair in out.past_key_values for array in pair} == {index}
            assert out.logits.device.id == index
    assert (logits(first) == logits(second)).all()
    assert second.to("cuda:0").device == "cuda:0"
    with pytest.raises(BackendError, match=r"no such GPU; found 'cuda:2'; allowed: cuda:0 to cuda:1"):
        first.to("cuda:2")
    assert first.device == "cuda:0"


def test_what_dtype_and_matmul_dtype_mean():
    def rounded(**arguments: Any) -> str | None:
        backend = get_backend("cupy", **arguments)
        assert backend.dtype == np.float32
        is_half = backend.matmul_dtype in ("float16", "bfloat16")
        assert backend.cache_dtype == (to_dtype(backend.matmul_dtype) if is_half else None)
        return backend.matmul_dtype

    assert rounded() is rounded(dtype="float32") is rounded(matmul_dtype="float32") is None
    assert rounded(dtype="float16") == rounded(matmul_dtype="float16") == "float16"
    assert rounded(dtype=to_dtype("bfloat16")) == "bfloat16"
    assert rounded(dtype="float16", matmul_dtype="float32") is None
    assert rounded(dtype="float16", matmul_dtype="tf32") == rounded(matmul_dtype="tf32") == "tf32"
    assert get_backend("cupy", dtype="float64").matmul_dtype is None
    assert "products in tf32, cuda:0" in repr(get_backend("cupy", matmul_dtype="tf32"))
    ops = get_backend("cupy", device="cuda", dtype="float16")
    assert get_backend(ops, device="cuda:0") is get_backend(ops, device="cuda") is ops
    for wrong, words in (
        ({"threads": 2}, "no threads to choose"),
        ({"matmul_dtype": "int8"}, "does not round the factors"),
        ({"matmul_dtype": "tf32", "dtype": "float64"}, "only where float32 is computed"),
        ({"device": "cpu"}, "not a device of the cupy backend"),
        ({"device": "cuda:1"}, "no such GPU"),
    ):
        with pytest.raises(BackendError, match=words):
            get_backend("cupy", **wrong)


def test_tf32_is_asked_of_cublas_only_where_it_was_said(pretended_gpu):
    for name, compute in ((None, 68), ("tf32", 77)):  # CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_32F_FAST_TF32
        pretended_gpu.products.clear()
        ops = get_backend("cupy", matmul_dtype=name)
        ops.linear(ops.asarray(np.ones((9, 8), np.float32)), ops.weight(np.ones((8, 8), np.float32)))
        assert compute in pretended_gpu.products[0].values()


def test_a_folder_that_was_saved_from_a_gpu(tmp_path):
    model = tiny_neox(backend="cupy", dtype="float16")
    model.save_pretrained(tmp_path / "saved")
    again = refimpl.AutoModelForCausalLM.from_pretrained(
        Path(tmp_path / "saved"), backend="cupy", dtype="float16"
    )
    assert (logits(again) == logits(model)).all()
