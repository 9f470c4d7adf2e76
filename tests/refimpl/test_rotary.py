"""The types of rotary positions: what each does to the frequencies, and that no call remembers another."""

from __future__ import annotations

import math

import numpy as np
import pytest

from refimpl import GPTNeoXConfig, GPTNeoXJapaneseConfig, to_numpy
from refimpl.backends import get_backend
from refimpl.rotary import RotaryEmbedding
from tests.tiny import tiny_ids, tiny_neox

WIDTH, LONGEST = 16, 64


def rotary(rope_parameters, backend="numpy", dtype="float64", **changes):
    config = GPTNeoXConfig(
        hidden_size=64, num_attention_heads=2, rotary_pct=0.5, max_position_embeddings=LONGEST,
        rope_parameters=rope_parameters, **changes,
    )  # fmt: skip
    embedding = RotaryEmbedding(get_backend(backend, dtype=dtype), config)
    return lambda positions: embedding(embedding.backend.asarray(positions))


def angles_per_position(embedding, length=2):
    """The frequencies that a text of that length gets, and the factor of cos and sin."""
    cos, sin = (to_numpy(table) for table in embedding(np.array([[1, length - 1]])))
    factor = np.hypot(cos, sin)[0, 0]
    np.testing.assert_allclose(factor, factor[0], rtol=1e-12)
    return np.arctan2(sin[0, 0], cos[0, 0]), factor[0]


PLAIN = 10000.0 ** (-np.arange(0, WIDTH, 2) / WIDTH)


def test_default(backend):
    frequency, factor = angles_per_position(rotary(None, backend))
    np.testing.assert_allclose(frequency, PLAIN, rtol=1e-12)
    assert factor == pytest.approx(1, abs=1e-12)


def test_linear_divides_every_frequency(backend):
    frequency, _ = angles_per_position(rotary({"type": "linear", "factor": 4.0}, backend), length=1000)
    np.testing.assert_allclose(frequency, PLAIN / 4, rtol=1e-12)


def test_dynamic_grows_with_the_text_and_shrinks_again(backend):
    embedding = rotary({"rope_type": "dynamic", "factor": 3.0}, backend)
    seen = {length: angles_per_position(embedding, length)[0] for length in (2, LONGEST, 100, 200, 30)}
    for length in (2, LONGEST, 30):
        np.testing.assert_allclose(seen[length], PLAIN, rtol=1e-12)
    for length in (100, 200):
        base = 10000 * (3.0 * length / LONGEST - 2.0) ** (WIDTH / (WIDTH - 2))
        np.testing.assert_allclose(seen[length], base ** (-np.arange(0, WIDTH, 2) / WIDTH), rtol=1e-12)
    again = angles_per_position(embedding, 100)[0]
    np.testing.assert_array_equal(again, seen[100])


def test_yarn_keeps_fast_pairs_and_divides_slow_ones(backend):
    embedding = rotary({"type": "yarn", "factor": 8.0, "original_max_position_embeddings": 2048}, backend)
    frequency, factor = angles_per_position(embedding)
    share = frequency / PLAIN
    assert share[0] == pytest.approx(1)
    assert share[-1] == pytest.approx(1 / 8)
    assert (np.diff(share) <= 1e-12).all()
    assert ((share < 0.99) & (share > 0.13)).any()
    assert factor == pytest.approx(0.1 * math.log(8) + 1)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"attention_factor": 0.5}, 0.5),
        ({"mscale": 2.0, "mscale_all_dim": 0.5}, (0.2 * math.log(8) + 1) / (0.05 * math.log(8) + 1)),
        ({"mscale": 2.0}, 0.1 * math.log(8) + 1),
        ({"mscale": 2.0, "mscale_all_dim": 0}, 0.1 * math.log(8) + 1),
    ],
)
def test_the_attention_factor_of_yarn(more, expected):
    parameters = {"type": "yarn", "factor": 8.0, "original_max_position_embeddings": 2048, **more}
    assert angles_per_position(rotary(parameters))[1] == pytest.approx(expected)


def test_yarn_takes_its_factor_from_the_lengths():
    given = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
    left_open = {"rope_type": "yarn", "original_max_position_embeddings": 16}
    for a, b in zip(angles_per_position(rotary(given)), angles_per_position(rotary(left_open)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_borders_of_yarn():
    """With borders that are not rounded the ramp moves; with equal ones it becomes a step."""
    parameters = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 2048}
    rounded, exact = (
        angles_per_position(rotary({**parameters, "truncate": truncate}))[0] for truncate in (True, False)
    )
    assert np.abs(rounded / exact - 1).max() > 0.01
    step = angles_per_position(rotary({**parameters, "beta_fast": 4, "beta_slow": 4, "truncate": False}))[0]
    assert set(np.round(step / PLAIN, 6)) == {1.0, 0.125}


def test_longrope_has_a_list_for_short_texts_and_one_for_long_ones(backend):
    short, long = list(range(1, 9)), list(range(11, 19))
    embedding = rotary(
        {"type": "longrope", "short_factor": short, "long_factor": long, "original_max_position_embeddings": 16},
        backend,
    )  # fmt: skip
    for length, divisors in ((2, short), (16, short), (17, long), (500, long), (16, short)):
        frequency, factor = angles_per_position(embedding, length)
        np.testing.assert_allclose(frequency, PLAIN / divisors, rtol=1e-12)
        assert factor == pytest.approx(math.sqrt(1 + math.log(4) / math.log(16)))


def test_llama3_has_three_bands(backend):
    parameters = {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 1024,
    }  # fmt: skip
    frequency, factor = angles_per_position(rotary(parameters, backend))
    wavelength, share = 2 * math.pi / PLAIN, frequency / PLAIN
    np.testing.assert_allclose(share[wavelength < 1024 / 4], 1, rtol=1e-12)
    np.testing.assert_allclose(share[wavelength > 1024 / 1], 1 / 8, rtol=1e-12)
    middle = (wavelength >= 1024 / 4) & (wavelength <= 1024)
    smooth = (1024 / wavelength[middle] - 1) / 3
    np.testing.assert_allclose(share[middle], (1 - smooth) / 8 + smooth, rtol=1e-12)
    assert middle.any()
    assert factor == pytest.approx(1)


def test_the_largest_position_of_all_rows_counts(backend):
    embedding = rotary({"type": "dynamic", "factor": 2.0}, backend)
    alone, beside = embedding(np.array([[0, 1]])), embedding(np.array([[0, 1], [0, 99]]))
    assert np.abs(to_numpy(alone[1])[0] - to_numpy(beside[1])[0]).max() > 1e-3


def test_tables_are_float32_at_least(backend):
    """The frequencies of a float32 model are those of the float64 one, rounded once."""
    position = np.array([[2047]])
    single, double = (rotary(None, backend, dtype=dtype)(position)[0] for dtype in ("float32", "float64"))
    assert to_numpy(single).dtype == np.float32
    angle = (np.float32(2047) * PLAIN.astype(np.float32)).astype(np.float64)
    np.testing.assert_allclose(to_numpy(single)[0, 0], np.cos(angle), atol=2e-7)
    np.testing.assert_allclose(to_numpy(double)[0, 0], np.cos(2047 * PLAIN), atol=1e-12)


@pytest.mark.parametrize("rope_type", ["dynamic", "longrope"])
def test_no_call_remembers_another(backend, rope_type):
    """A long text changes nothing for the short one after it: the model has no memory but the cache."""
    lists = {"short_factor": [1.0, 2.0], "long_factor": [3.0, 9.0], "original_max_position_embeddings": 16}
    rope = {"rope_type": rope_type, "factor": 2.0, **(lists if rope_type == "longrope" else {})}
    model = tiny_neox(backend=backend, rope_parameters=rope, max_position_embeddings=16)
    before = to_numpy(model(tiny_ids(1, 8)).logits)
    with pytest.warns(UserWarning, match="max_position_embeddings"):
        model(tiny_ids(1, 40))
    np.testing.assert_array_equal(to_numpy(model(tiny_ids(1, 8)).logits), before)


def test_every_type_works_for_both_families(backend):
    for config_class in (GPTNeoXConfig, GPTNeoXJapaneseConfig):
        config = config_class(
            hidden_size=32, num_attention_heads=2, rotary_pct=1.0, rope_scaling={"type": "linear", "factor": 2.0}
        )  # fmt: skip
        assert config.rope_parameters["rope_type"] == "linear"
        ops = get_backend(backend)
        cos, _ = RotaryEmbedding(ops, config)(ops.asarray(np.arange(5)[None]))
        assert cos.shape == (1, 5, 8)
