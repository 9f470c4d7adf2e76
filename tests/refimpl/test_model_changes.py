"""Changing a loaded model: precision, device, embeddings, vocabulary."""

from __future__ import annotations

import sys
from importlib.util import find_spec

import numpy as np
import pytest

from refimpl import GPTNeoXForCausalLM, GPTNeoXModel, to_numpy
from refimpl.backends import get_backend
from refimpl.errors import BackendError, CheckpointValueError, ConfigError, InputError
from refimpl.layers import Embedding
from tests.tiny import tiny_ids, tiny_model, tiny_neox, tiny_neox_config

BOTH = pytest.mark.parametrize("make", [tiny_model, lambda backend, **c: tiny_neox(backend=backend, **c)])


def logits(model, ids=None):
    return to_numpy(model(tiny_ids() if ids is None else ids).logits)


# --- precision and device ------------------------------------------------------------------------


@BOTH
def test_half_keeps_the_matrices_in_16_bits_and_computes_in_32(backend, make):
    model = make(backend)
    before = logits(model)
    assert model.half() is model
    weights = model.state_dict()
    assert {w.dtype.name for w in weights.values() if w.ndim == 2} == {"float16"}
    assert {w.dtype.name for w in weights.values() if w.ndim != 2} == {"float32"}
    assert model.dtype == np.float32
    rounded = logits(model)
    assert 0 < np.abs(rounded - before).max() < 0.02 * np.abs(before).max()
    # Widening adds nothing: the same numbers in float32 give the same logits. (A GPU multiplies in 16 bits.)
    off = 1e-6 if model.backend.matmul_dtype is None else 0.01
    np.testing.assert_allclose(logits(model.float()), rounded, rtol=0, atol=off * np.abs(rounded).max())
    assert {w.dtype.name for w in model.state_dict().values()} == {"float32"}
    assert {w.dtype.name for w in model.bfloat16().state_dict().values() if w.ndim == 2} == {"bfloat16"}


@BOTH
def test_a_model_can_go_on_in_float64(backend, make):
    single, double = make(backend), make(backend).double()
    assert double.dtype == np.float64
    assert logits(double).dtype == np.float64
    assert np.abs(logits(double) - logits(single)).max() < 1e-5 * np.abs(logits(single)).max()
    # Also the rotary tables are those of a float64 model.
    cos, _ = double.base_model.rotary_emb(double.backend.asarray(np.array([[1000]])))
    assert to_numpy(cos)[0, 0, 0] == np.cos(1000.0)
    assert double.float().dtype == np.float32


@BOTH
def test_a_tied_head_stays_tied(backend, make):
    model = make(backend, tie_word_embeddings=True).half()
    assert model.embed_out.weight is model.base_model.embed_in.weight
    model.resize_token_embeddings(50)
    assert model.embed_out.weight is model.base_model.embed_in.weight


def test_a_number_that_does_not_fit_changes_nothing(backend):
    model = tiny_neox(backend=backend)
    weight = to_numpy(model.gpt_neox.layers[2].mlp.dense_4h_to_h.weight).copy()
    weight[0, 0] = 1e6
    model.gpt_neox.layers[2].mlp.dense_4h_to_h.weight = model.backend.asarray(weight)
    before = logits(model)
    with pytest.raises(CheckpointValueError, match="dense_4h_to_h"):
        model.half()
    assert {w.dtype.name for w in model.state_dict().values()} == {"float32"}
    np.testing.assert_array_equal(logits(model), before)


@BOTH
def test_the_words_of_to(backend, make):
    model = make(backend)
    assert model.to(model.device) is model.to("cpu") is model.cpu() is model
    assert model.to("cpu", "float16").get_input_embeddings().weight.dtype == np.float16
    assert model.to(dtype=np.float64).dtype == np.float64
    for wrong in ("float128", "int8", "tpu"):
        with pytest.raises(BackendError):
            model.to(wrong)
    assert model.dtype == np.float64


def test_what_the_backend_was_told_stays():
    model = GPTNeoXForCausalLM(tiny_neox_config(), backend="numba", threads=1, matmul_dtype="bfloat16")
    for change in (model.half, lambda: model.to("cpu", "bfloat16"), model.float):
        change()
        assert (model.backend.threads, model.backend.matmul_dtype) == (1, "bfloat16")
    assert model.double().backend.threads == 1
    with pytest.raises(BackendError, match="has another threads"):
        get_backend(model.backend, threads=2)
    assert get_backend(model.backend, threads=1) is model.backend


def test_a_gpu_that_is_not_there(backend):
    if backend == "cupy" or "cupy" in sys.modules or find_spec("cupy"):
        pytest.skip("there may be a GPU")
    model = tiny_neox(backend=backend)
    for move in (model.cuda, lambda: model.cuda(0), lambda: model.to("cuda:0"), lambda: model.half().cuda()):
        with pytest.raises(BackendError):
            move()
    logits(model)


# --- embeddings ----------------------------------------------------------------------------------


@BOTH
def test_embeddings_can_be_looked_at_and_replaced(backend, make):
    model = make(backend)
    assert model.get_input_embeddings() is model.base_model.embed_in
    assert model.get_output_embeddings() is model.embed_out
    new = np.random.default_rng(5).normal(size=(40, 24)).astype(np.float32)
    model.set_input_embeddings(new)
    np.testing.assert_array_equal(to_numpy(model.base_model.embed_in.weight), new)
    expected = logits(model)
    other = make(backend)
    embedding = Embedding(other.backend, 40, 24)
    embedding.weight = other.backend.asarray(new)
    other.set_input_embeddings(embedding)
    np.testing.assert_array_equal(logits(other), expected)
    for wrong in (new[:-1], new.T, new.astype(int)):
        with pytest.raises(InputError):
            model.set_input_embeddings(wrong)
    np.testing.assert_array_equal(logits(model), expected)


def test_an_output_head_of_its_own_can_be_replaced(backend):
    model = tiny_neox(backend=backend)
    model.set_output_embeddings(np.zeros((40, 24), np.float32))
    assert (logits(model) == 0).all()
    with pytest.raises(InputError, match="tie_word_embeddings"):
        tiny_model(backend).set_output_embeddings(np.zeros((40, 24), np.float32))
    base = tiny_neox(GPTNeoXModel, backend)
    assert base.get_output_embeddings() is None
    with pytest.raises(InputError):
        base.set_output_embeddings(np.zeros((40, 24), np.float32))


# --- vocabulary ----------------------------------------------------------------------------------


@BOTH
def test_a_larger_vocabulary_keeps_what_was_there(backend, make):
    model = make(backend, dtype="float64")
    before = logits(model)
    assert model.resize_token_embeddings(45) is model.get_input_embeddings()
    assert model.config.vocab_size == 45
    after = logits(model)
    assert after.shape[-1] == 45
    np.testing.assert_allclose(after[..., :40], before, atol=1e-12)
    weight = to_numpy(model.get_input_embeddings().weight)
    np.testing.assert_allclose(weight[40:], np.tile(weight[:40].mean(0), (5, 1)), atol=1e-12)
    # A new token is as likely as the old ones are on average.
    np.testing.assert_allclose(after[..., 40:], before.mean(-1, keepdims=True).repeat(5, -1), atol=1e-9)
    model(np.array([[44]]))


@BOTH
def test_a_smaller_vocabulary(backend, make):
    model = make(backend)
    ids = tiny_ids() % 30
    before = logits(model, ids)
    model.resize_token_embeddings(30)
    np.testing.assert_allclose(logits(model, ids), before[..., :30], atol=1e-6)
    with pytest.raises(InputError, match="vocabulary"):
        model([[30]])
    assert model.num_parameters() < make(backend).num_parameters()


def test_sizes_can_be_rounded_up(backend):
    model = tiny_neox(backend=backend)
    model.resize_token_embeddings(pad_to_multiple_of=64)
    assert model.config.vocab_size == 64
    model.resize_token_embeddings(65, pad_to_multiple_of=8, mean_resizing=False)
    assert model.config.vocab_size == 72
    new = to_numpy(model.embed_out.weight)[64:]
    assert 0.1 < new.std() < 0.6  # initializer_range is 0.3
    assert model.resize_token_embeddings().weight.shape == (72, 24)


@BOTH
@pytest.mark.parametrize("size", [0, -1, 1.5, "9", True, 1 << 23])
def test_impossible_sizes(backend, make, size):
    model = make(backend)
    with pytest.raises(InputError):
        model.resize_token_embeddings(size)
    assert model.config.vocab_size == 40


def test_a_vocabulary_must_hold_its_special_tokens(backend):
    model = tiny_neox(backend=backend, eos_token_id=39)
    with pytest.raises(ConfigError, match="eos_token_id"):
        model.resize_token_embeddings(30)
    assert model.config.vocab_size == model.get_input_embeddings().weight.shape[0] == 40


def test_heads_are_masked_not_pruned(backend):
    with pytest.raises(InputError, match="head_mask"):
        tiny_neox(backend=backend).prune_heads({0: [1]})


def test_the_range_of_bfloat16_is_not_that_of_float16(backend):
    model = tiny_neox(backend=backend)
    weight = to_numpy(model.gpt_neox.embed_in.weight).copy()
    weight[3, 5] = 1e6
    model.set_input_embeddings(weight)
    model.bfloat16()
    with pytest.raises(CheckpointValueError) as caught:
        model.half()
    assert caught.value.tensor == "gpt_neox.embed_in.weight"
    assert caught.value.first_index == [3, 5]
    assert model.get_input_embeddings().weight.dtype.name == "bfloat16"


def test_models_of_one_config_are_changed_one_by_one(backend):
    config = tiny_neox_config()
    first, second = (GPTNeoXForCausalLM(config, backend=backend) for _ in range(2))
    first.resize_token_embeddings(50)
    assert (config.vocab_size, second.config.vocab_size) == (40, 40)
    with pytest.raises(InputError, match="vocabulary"):
        second([[45]])
    second.resize_token_embeddings(50)
    second([[45]])


def test_a_tied_head_follows_its_base_model(backend):
    model = tiny_model(backend)
    model.base_model.set_input_embeddings(2 * to_numpy(model.base_model.embed_in.weight))
    assert model.embed_out.weight is model.base_model.embed_in.weight
    model.base_model.resize_token_embeddings(50)
    assert logits(model).shape[-1] == 50


def test_an_untied_head_can_catch_up_with_its_base_model(backend):
    model = tiny_neox(backend=backend)
    model.base_model.resize_token_embeddings(50)
    model.resize_token_embeddings(50)
    assert logits(model).shape[-1] == 50


def test_quantized_rows_are_neither_added_nor_cut(backend):
    from refimpl import BitsAndBytesConfig

    everything = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=[])
    model = GPTNeoXForCausalLM(tiny_neox_config(), backend=backend, quantization_config=everything)
    with pytest.raises(InputError, match="quantized"):
        model.resize_token_embeddings(50)
    assert model.config.vocab_size == len(model.get_input_embeddings().weight) == 40


def test_the_caller_s_array_stays_the_caller_s(backend):
    model, new = tiny_neox(backend=backend), np.ones((40, 24), np.float32)
    model.set_input_embeddings(new)
    before = logits(model)
    new[:] = 5
    np.testing.assert_array_equal(logits(model), before)


def test_arrays_in_bfloat16_are_arrays(backend):
    model = tiny_neox(backend=backend).bfloat16()
    before = logits(model)
    model.set_input_embeddings(model.get_input_embeddings())
    np.testing.assert_array_equal(logits(model), before)
    embeds = to_numpy(model.get_input_embeddings().weight)[tiny_ids()]
    np.testing.assert_allclose(to_numpy(model(inputs_embeds=embeds).logits), before, atol=1e-5)


def test_settings_of_the_rotation_hold_from_the_start(backend):
    """They are taken when a model is made; moving it to another precision does not read them again."""
    model = tiny_neox(backend=backend)
    before = logits(model)
    model.config.rotary_emb_base = 50
    np.testing.assert_array_equal(logits(model), before)
    np.testing.assert_array_equal(logits(model.float()), before)
