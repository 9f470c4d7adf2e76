"""With a cache the model computes each token once, and gets what it would have got without."""

from __future__ import annotations

import numpy as np
import pytest

from refimpl import DynamicCache, PromptCache, StaticCache, to_numpy
from refimpl.errors import InputError, RefimplError
from tests.tiny import tiny_config, tiny_ids, tiny_model

#: Measured: 6e-7 (float32), 1.2e-15 (float64) of the largest logit; times about four.
TOLERANCE = {"float32": 3e-6, "float64": 5e-15}


def same(a, b, dtype):
    a, b = to_numpy(a), to_numpy(b)
    assert a.dtype == b.dtype == dtype
    assert np.abs(a - b).max() <= TOLERANCE[dtype] * np.abs(b).max()


def joined(pieces):
    return np.concatenate([to_numpy(piece) for piece in pieces], axis=1)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("split", range(1, 9))
def test_split_at_every_position(backend, dtype, split):
    model = tiny_model(backend, dtype)
    ids = tiny_ids()
    full = model(ids).logits
    first = model(ids[:, :split])
    second = model(ids[:, split:], past_key_values=first.past_key_values)
    same(joined([first.logits, second.logits]), full, dtype)
    assert second.past_key_values is first.past_key_values
    assert second.past_key_values.get_seq_length() == 9


def test_token_by_token_with_left_padding(backend):
    model = tiny_model(backend, "float64")
    ids, mask = tiny_ids(), np.ones((2, 9), np.int64)
    mask[1, :4] = 0
    positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    full = to_numpy(model(ids, attention_mask=mask, position_ids=positions).logits)
    cache = DynamicCache()
    for i in range(9):
        step = model(
            ids[:, i : i + 1],
            attention_mask=mask[:, : i + 1],
            position_ids=positions[:, i : i + 1],
            past_key_values=cache,
        )
        real = mask[:, i] == 1
        same(to_numpy(step.logits)[real, 0], full[real, i], "float64")


def test_many_tokens_cross_the_blocks_of_storage(backend):
    model = tiny_model(backend, "float64", max_position_embeddings=512)
    ids = tiny_ids(1, 200)
    cache = DynamicCache()
    steps = [model(ids[:, i : i + 1], past_key_values=cache).logits for i in range(200)]
    same(joined(steps), model(ids).logits, "float64")


def test_the_tuple_of_earlier_versions_goes_in_and_reads_out(backend):
    model = tiny_model(backend)
    ids = tiny_ids()
    cache = model(ids[:, :5]).past_key_values
    assert len(cache) == 3
    key, value = cache[0]
    assert key.shape == value.shape == (2, 3, 5, 8)
    pairs = tuple((to_numpy(k).copy(), to_numpy(v).copy()) for k, v in cache)
    before = pairs[0][0].copy()
    out = model(ids[:, 5:], past_key_values=pairs)
    same(out.logits, model(ids).logits[:, 5:], "float32")
    assert len(out.past_key_values.to_legacy_cache()) == 3
    assert (pairs[0][0] == before).all()
    again = DynamicCache.from_legacy_cache(out.past_key_values.to_legacy_cache())
    assert again.get_seq_length() == 9


def test_crop_forgets_the_end(backend):
    model = tiny_model(backend)
    ids = tiny_ids()
    cache = model(ids).past_key_values
    cache.crop(4)
    assert cache.get_seq_length() == 4
    same(model(ids[:, 4:], past_key_values=cache).logits, model(ids).logits[:, 4:], "float32")
    cache.crop(-2)
    assert cache.get_seq_length() == 7


def test_no_cache_unless_asked_for(backend):
    model = tiny_model(backend)
    assert model(tiny_ids(), use_cache=False).past_key_values is None
    assert tiny_model(backend, use_cache=False)(tiny_ids()).past_key_values is None


@pytest.mark.parametrize("wrong", [3, "cache", ((1, 2),), [(np.zeros(3), np.zeros(3))]])
def test_what_is_no_cache(backend, wrong):
    with pytest.raises(InputError, match="past_key_values"):
        tiny_model(backend)(tiny_ids(), past_key_values=wrong)


def test_a_cache_of_another_model_or_batch(backend):
    cache = tiny_model(backend, num_hidden_layers=2)(tiny_ids()).past_key_values
    with pytest.raises(InputError, match="2 layers"):
        tiny_model(backend)(tiny_ids(), past_key_values=cache)
    cache = tiny_model(backend)(tiny_ids(batch=3)).past_key_values
    with pytest.raises(InputError, match="another model or batch"):
        tiny_model(backend)(tiny_ids(), past_key_values=cache)
    assert cache.get_seq_length() == 9


def fail_in_layer(model, index, error):
    """Make one layer of the model fail, after its attention has written to the cache."""

    def fail(hidden_states):
        raise error

    model.gpt_neox_japanese.layers[index].mlp = fail


@pytest.mark.parametrize("filled", [0, 5])
@pytest.mark.parametrize("layer", [0, 2])
def test_a_call_that_fails_or_is_interrupted_leaves_the_cache_as_it_was(backend, filled, layer):
    good, bad = tiny_model(backend, "float64"), tiny_model(backend, "float64")
    fail_in_layer(bad, layer, KeyboardInterrupt())
    ids, cache = tiny_ids(), DynamicCache()
    if filled:
        good(ids[:, :filled], past_key_values=cache)
    with pytest.raises(KeyboardInterrupt):
        bad(ids[:, filled:], past_key_values=cache)
    assert cache.get_seq_length() == filled
    out = good(ids[:, filled:], past_key_values=cache)
    same(out.logits, good(ids).logits[:, filled:], "float64")


def test_a_cache_of_another_dtype_or_with_layers_of_different_length(backend):
    ids = tiny_ids()
    wide = tiny_model(backend, "float64")(ids).past_key_values
    with pytest.raises(InputError, match="float64"):
        tiny_model(backend)(ids, past_key_values=wide)
    # A tuple is only numbers, and is converted.
    out = tiny_model(backend)(ids, past_key_values=wide.to_legacy_cache())
    assert out.logits.dtype == "float32"
    pairs = [list(pair) for pair in wide.to_legacy_cache()]
    pairs[1] = [array[:, :, :4] for array in pairs[1]]
    with pytest.raises(InputError, match=r"past_key_values\[1\]"):
        tiny_model(backend, "float64")(ids, past_key_values=pairs)


def test_a_copy_stays_as_it_is(backend):
    model, ids = tiny_model(backend), tiny_ids()
    cache = model(ids).past_key_values
    snapshot = cache.to_legacy_cache()
    before = [key.copy() for key, _ in snapshot]
    cache.crop(3)
    model(ids[:, :6], past_key_values=cache)
    assert all((key == old).all() for (key, _), old in zip(snapshot, before, strict=True))


def test_storage_is_not_much_larger_than_what_it_holds(backend):
    model, cache = tiny_model(backend, max_position_embeddings=2048), DynamicCache(config=tiny_config())
    model(tiny_ids(1, 1100), past_key_values=cache)
    model(tiny_ids(1, 1), past_key_values=cache)
    needed = 1101 * 2 * 3 * 24 * 4
    assert needed <= cache.nbytes <= 1.3 * needed


@pytest.mark.parametrize("wrong", [{"labels": [[1]]}, {"logits_to_keep": -1}, {"position_ids": [[0]]}])
def test_a_refused_call_leaves_the_cache_as_it_was(backend, wrong):
    model, ids = tiny_model(backend), tiny_ids()
    cache = model(ids[:, :4]).past_key_values
    with pytest.raises(InputError):
        model(ids[:, 4:], past_key_values=cache, **wrong)
    assert cache.get_seq_length() == 4


# --- kept in 16 bits -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_cache_in_16_bits_is_attention_over_rounded_keys_and_values(backend, dtype):
    """The same as rounding what each layer's attention is given; token by token as at once."""
    model, ids = tiny_model(backend=backend), tiny_ids(2)
    whole = DynamicCache(dtype=dtype)
    logits = to_numpy(model(ids, past_key_values=whole).logits)
    exact = to_numpy(model(ids).logits)
    largest = np.abs(exact).max()
    assert 1e-6 < np.abs(logits - exact).max() / largest < 0.05
    assert whole[0][0].dtype.name == dtype
    one = DynamicCache(dtype=dtype)
    steps = [model(ids[:, i : i + 1], past_key_values=one).logits for i in range(ids.shape[1])]
    assert joined(steps) == pytest.approx(logits, abs=1e-5 * float(largest))
    full = model(ids, use_cache=True).past_key_values
    for rounded, array in zip(
        whole[0], full[0], strict=True
    ):  # the first layer: nothing was rounded before it
        assert (rounded == array.astype(rounded.dtype)).all()
    assert 2 * whole.nbytes == full.nbytes


def test_a_cache_in_16_bits_of_any_kind(backend):
    model, ids = tiny_model(backend=backend), tiny_ids(1)
    asked = {"max_new_tokens": 6, "eos_token_id": [], "pad_token_id": 1}
    wanted = model.generate(ids, past_key_values=DynamicCache(dtype="float16"), **asked).tolist()
    assert model.generate(ids, cache_dtype="float16", **asked).tolist() == wanted
    static = StaticCache(max_cache_len=ids.shape[1] + 6, dtype="float16")
    assert model.generate(ids, past_key_values=static, **asked).tolist() == wanted
    assert static[0][0].dtype == np.float16
    assert (
        model.generate(ids, cache_dtype="float16", cache_implementation="static", **asked).tolist() == wanted
    )


def test_a_prompt_cache_in_16_bits_in_a_file(backend, tmp_path):
    model, ids = tiny_model(backend=backend), tiny_ids(1)
    asked = {"max_new_tokens": 4, "eos_token_id": [], "pad_token_id": 1}
    cache = PromptCache(dtype="bfloat16")
    longer = model.generate(ids, past_key_values=cache, **asked)
    cache.save(tmp_path / "cache.safetensors")
    loaded = PromptCache.load(tmp_path / "cache.safetensors", model)
    assert loaded[0][0].dtype.name == "bfloat16"
    one, other = (model.generate(longer, past_key_values=c, **asked).tolist() for c in (cache, loaded))
    assert one == other


def test_what_a_cache_cannot_be_kept_in(backend):
    for wrong in ("int8", "float8"):
        with pytest.raises(RefimplError):
            DynamicCache(dtype=wrong)
    with pytest.raises(InputError, match="cache_dtype"):
        tiny_model(backend=backend).generate(
            tiny_ids(1), past_key_values=DynamicCache(), cache_dtype="float16"
        )
