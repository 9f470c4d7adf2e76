"""The operations of every backend against independent float64 computations, written out plainly."""

from __future__ import annotations

import inspect
import math
import warnings

import numpy as np
import pytest

from refimpl.backends import get_backend
from refimpl.backends.activations import ACTIVATION_PARAMETERS, ACTIVATIONS
from refimpl.backends.base import OPERATIONS, Backend
from refimpl.backends.mask import AttentionMask
from refimpl.errors import BackendError

DTYPES = ["float32", "float64"]
#: Measured against float64 on these inputs, times about four.
TOLERANCE = {"float32": 2e-6, "float64": 4e-15}

#: Every key of ACT2FN in transformers 5.23.0.
ACT2FN = [
    "gelu", "gelu_10", "gelu_accurate", "gelu_fast", "gelu_new", "gelu_python", "gelu_python_tanh",
    "gelu_pytorch_tanh", "hardswish", "laplace", "leaky_relu", "linear", "mish", "prelu", "quick_gelu", "relu",
    "relu2", "relu6", "sigmoid", "silu", "sqrtsoftplus", "swish", "tanh", "xielu",
]  # fmt: skip


def normal(*shape, dtype="float64", seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def close(result, expected, dtype):
    assert result.dtype == dtype
    assert result.shape == expected.shape
    scale = max(1.0, np.abs(expected).max())
    assert np.abs(result - expected).max() <= TOLERANCE[dtype] * scale


def test_every_backend_has_every_operation_with_the_same_arguments(backend):
    implementation = type(get_backend(backend))
    for name in OPERATIONS:
        assert inspect.signature(getattr(implementation, name)) == inspect.signature(
            getattr(Backend, name)
        ), name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weight_dtype", ["float64", "float32", "float16", "bfloat16"])
def test_linear_and_embedding_widen_the_weight(backend, dtype, weight_dtype):
    ops = get_backend(backend, dtype=dtype)
    if weight_dtype == "bfloat16":
        import ml_dtypes

        weight = normal(7, 5, seed=1).astype(ml_dtypes.bfloat16)
    else:
        weight = normal(7, 5, dtype=weight_dtype, seed=1)
    x, bias = normal(2, 3, 5, dtype=dtype), normal(7, dtype=dtype, seed=2)
    exact = x.astype("float64") @ weight.astype(dtype).astype("float64").T
    kept = ops.weight(weight)
    close(ops.to_numpy(ops.linear(ops.asarray(x), kept)), exact, dtype)
    close(ops.to_numpy(ops.linear(ops.asarray(x), kept, ops.asarray(bias))), exact + bias, dtype)
    ids = np.array([[0, 6], [3, 3]])
    rows = ops.to_numpy(ops.embedding(ops.asarray(ids), kept))
    assert rows.dtype == dtype
    assert (rows == weight.astype(dtype)[ids]).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_layer_norm_with_a_large_offset(backend, dtype):
    ops = get_backend(backend, dtype=dtype)
    x = (normal(2, 3, 16) + 100).astype(dtype)
    weight, bias = normal(16, dtype=dtype, seed=1), normal(16, dtype=dtype, seed=2)
    x64 = x.astype("float64")
    expected = (x64 - x64.mean(-1, keepdims=True)) / np.sqrt(
        x64.var(-1, keepdims=True) + 1e-5
    ) * weight + bias
    result = ops.to_numpy(ops.layer_norm(ops.asarray(x), ops.asarray(weight), ops.asarray(bias), 1e-5))
    assert np.abs(result - expected).max() <= {"float32": 5e-5, "float64": 1e-13}[dtype]
    assert result.dtype == dtype


def test_layer_norm_by_hand(backend):
    """The biased variance, eps inside the root."""
    ops = get_backend(backend, dtype="float64")
    one, zero = ops.asarray(np.ones(2)), ops.asarray(np.zeros(2))
    result = ops.to_numpy(ops.layer_norm(ops.asarray(np.array([[0.0, 2.0]])), one, zero, 3.0))
    assert result.tolist() == [[-0.5, 0.5]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_rotary_by_complex_numbers(backend, dtype):
    """A pair (i, i + half) is a complex number that is turned by its angle; the rest passes."""
    ops = get_backend(backend, dtype=dtype)
    x, angle = normal(2, 3, 4, 10, dtype=dtype), normal(1, 4, 3, dtype=dtype, seed=1)
    turned = (x[..., :3] + 1j * x[..., 3:6].astype("float64")) * np.exp(1j * angle.astype("float64"))[:, None]
    expected = np.concatenate([turned.real, turned.imag, x[..., 6:]], axis=-1)
    result = ops.rotary(ops.asarray(x), ops.asarray(np.cos(angle)), ops.asarray(np.sin(angle)))
    close(ops.to_numpy(result), expected, dtype)
    assert (ops.to_numpy(result)[..., 6:] == x[..., 6:]).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_softmax(backend, dtype):
    ops = get_backend(backend, dtype=dtype)
    x = normal(4, 9, dtype=dtype) * 10
    x[0, 0] = 1e4 if dtype == "float32" else 1e30
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = ops.to_numpy(ops.softmax(ops.asarray(x)))
    x64 = x.astype("float64")
    expected = np.exp(x64 - x64.max(-1, keepdims=True))
    expected /= expected.sum(-1, keepdims=True)
    close(result, expected, dtype)


def test_softmax_gives_nothing_to_what_is_not_visible(backend):
    ops = get_backend(backend)
    scores = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], "float32")
    visible = np.array([[True, False, True], [False, False, False]])
    result = ops.to_numpy(ops.softmax(ops.asarray(scores), ops.asarray(visible)))
    assert result[0, 1] == 0
    assert result[0].sum() == pytest.approx(1)
    assert result[1].tolist() == [0, 0, 0]  # a row that sees nothing is zero, not NaN


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("past", [0, 3])
def test_attention_key_by_key(backend, dtype, padded, past):
    ops = get_backend(backend, dtype=dtype)
    batch, heads, q_seq, head_dim = 2, 3, 4, 5
    kv_seq = past + q_seq
    query = normal(batch, heads, q_seq, head_dim, dtype=dtype)
    key, value = (normal(batch, heads, kv_seq, head_dim, dtype=dtype, seed=s) for s in (1, 2))
    visible = np.ones((batch, kv_seq), bool)
    if padded:
        visible[1, : past + 1] = False
    mask = AttentionMask(offset=past, key_visible=ops.asarray(visible) if padded else None)
    context, weights = ops.attention(
        ops.asarray(query), ops.asarray(key), ops.asarray(value), mask, 0.3, need_weights=True
    )
    expected = np.zeros(query.shape)
    expected_weights = np.zeros((batch, heads, q_seq, kv_seq))
    for b, h, i in np.ndindex(batch, heads, q_seq):
        seen = [j for j in range(past + i + 1) if visible[b, j]]
        if seen:
            score = [math.exp(0.3 * float(query[b, h, i].astype("float64") @ key[b, h, j])) for j in seen]
            expected_weights[b, h, i, seen] = np.array(score) / sum(score)
        expected[b, h, i] = expected_weights[b, h, i] @ value[b, h]
    close(ops.to_numpy(context), expected, dtype)
    close(ops.to_numpy(weights), expected_weights, dtype)
    assert ops.attention(ops.asarray(query), ops.asarray(key), ops.asarray(value), mask, 0.3)[1] is None


def test_attention_with_a_mask_of_ones_own(backend):
    """A 4-D mask is added to the scores and replaces the causal rule: here the first token sees the last."""
    ops = get_backend(backend, dtype="float64")
    query, key, value = (ops.asarray(normal(1, 1, 3, 2, seed=s)) for s in (0, 1, 2))
    bias = np.full((1, 1, 3, 3), -np.inf)
    bias[..., 2] = 0.5
    context, _ = ops.attention(query, key, value, AttentionMask(bias=ops.asarray(bias)), 1.0)
    assert np.allclose(ops.to_numpy(context), ops.to_numpy(value)[:, :, 2:3], atol=1e-15)


# --- activations -------------------------------------------------------------------------------


def test_the_activations_are_those_of_transformers():
    assert sorted(ACTIVATIONS) == sorted(ACT2FN)


def phi(x):
    return 0.5 * math.erfc(-x / math.sqrt(2))


def softplus(x):
    return math.log1p(math.exp(-abs(x))) + max(x, 0)


def sigmoid(x):
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


def tanh_gelu(x):
    return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


SCALAR = {
    **dict.fromkeys(["gelu", "gelu_python"], lambda x: x * phi(x)),
    **dict.fromkeys(["gelu_new", "gelu_pytorch_tanh", "gelu_python_tanh", "gelu_accurate"], tanh_gelu),
    "gelu_fast": lambda x: 0.5 * x * (1 + math.tanh(x * 0.7978845608 * (1 + 0.044715 * x * x))),
    "gelu_10": lambda x: min(10, max(-10, x * phi(x))),
    "quick_gelu": lambda x: x * sigmoid(1.702 * x),
    **dict.fromkeys(["silu", "swish"], lambda x: x * sigmoid(x)),
    "sigmoid": sigmoid,
    "relu": lambda x: max(x, 0),
    "relu2": lambda x: max(x, 0) ** 2,
    "relu6": lambda x: min(max(x, 0), 6),
    "leaky_relu": lambda x: x if x >= 0 else 0.01 * x,
    "prelu": lambda x: x if x >= 0 else 0.25 * x,
    "hardswish": lambda x: x * min(max(x + 3, 0), 6) / 6,
    "laplace": lambda x: 0.5 * math.erfc(-(x - 0.707107) / (0.282095 * math.sqrt(2))),
    "linear": lambda x: x,
    "tanh": math.tanh,
    "mish": lambda x: x * math.tanh(softplus(x)),
    "sqrtsoftplus": lambda x: math.sqrt(softplus(x)),
    "xielu": lambda x: 0.8 * x * x + 0.5 * x if x > 0 else (math.expm1(min(x, -1e-6)) - x) * 0.8 + 0.5 * x,
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ACT2FN)
def test_activation(backend, name, dtype):
    ops = get_backend(backend, dtype=dtype)
    x = np.concatenate([np.linspace(-30, 30, 6001), [0.0, -0.0, 1e-8, -1e-8]]).astype(dtype)
    parameters = tuple(
        ops.asarray(np.full(shape, initial), dtype=dtype)
        for shape, initial in ACTIVATION_PARAMETERS.get(name, {}).values()
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = ops.to_numpy(ops.activation(ops.asarray(x), name, parameters))
    close(result, np.array([SCALAR[name](v) for v in x.astype("float64").tolist()]), dtype)


def test_gelu_forms_differ_enough_to_be_told_apart(backend):
    ops = get_backend(backend, dtype="float64")
    x = ops.asarray(np.linspace(-4, 4, 801))
    difference = ops.to_numpy(ops.activation(x, "gelu")) - ops.to_numpy(ops.activation(x, "gelu_new"))
    assert 4e-4 < np.abs(difference).max() < 5e-4


# --- the door ----------------------------------------------------------------------------------


def test_get_backend_names_what_there_is(backend):
    assert get_backend(backend).dtype == "float32"
    assert get_backend(backend, dtype=np.float64).dtype == "float64"
    assert (
        get_backend(backend, dtype="float16").dtype == "float32"
    )  # 16-bit weights, computed with in float32
    ops = get_backend(backend)
    assert get_backend(ops) is ops
    assert get_backend(ops, dtype="float32") is get_backend(ops, dtype="float16") is ops
    for contradiction in ({"dtype": "float64"}, {"device": "cuda:7"}, {"threads": 3}):
        with pytest.raises(BackendError, match="has another"):
            get_backend(ops, **contradiction)


@pytest.mark.parametrize(
    "arguments",
    [
        {"name": "torch"},
        {"name": []},
        {"dtype": "int8"},
        {"dtype": object()},
        {"device": "cuda:0"},
        {"threads": 4},
    ],
)
def test_get_backend_refuses(arguments):
    with pytest.raises(BackendError):
        get_backend(**{"name": "numpy", **arguments})
