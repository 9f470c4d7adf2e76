"""The kernels of attention against the definition in float64.

They run on the processor (tests/cuda_on_cpu), and again on a GPU where there is one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pytest

from refimpl.backends import get_backend, to_dtype
from refimpl.backends.mask import AttentionMask
from tests.backends.on_device import PLACES, kernels

DTYPES = ("float32", "float16", "bfloat16")

#: The unit of rounding of a 16-bit type: what the weights of prefill, and a context in 16 bits, are off at most.
UNIT = {"float16": 2.0**-11, "bfloat16": 2.0**-8}

#: float32, by the largest value and at least 1. Measured: 4e-7 in decode, 8e-7 in prefill.
EXACT = 2e-6

#: 16-bit weights, in units of rounding, by the largest value and at least 1. Measured: 0.34 at most.
ROUNDED = 0.5


@dataclass
class Card:
    """A card and the modules that run on it; `pretended` is None for a real one."""

    cp: Any
    attention: Any
    modules: Any
    pretended: Any

    def attend(self, query, key, value, mask: AttentionMask, scale: float, dtype: str) -> np.ndarray:
        """`attend` of arrays of the card, in float64 on the host."""
        context = self.attention.attend(query, key, value, mask, scale, to_dtype(dtype))
        assert context.dtype == to_dtype(dtype)
        assert context.shape == query.shape
        assert context.transpose(0, 2, 1, 3).flags.c_contiguous  # merging heads copies nothing
        return self.cp.asnumpy(context).astype(np.float64)


@pytest.fixture(params=PLACES)
def card(request: pytest.FixtureRequest) -> Iterator[Card]:
    with kernels(request.param) as found:
        yield Card(found.cupy, found.attention, found.modules, found.gpu)


def normal(*shape: int, dtype: str = "float32", seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32).astype(to_dtype(dtype))


def triple(batch, heads, queries, keys, head_dim, dtype, query_dtype=None, seed=0):
    """query, key and value; the query has numbers of the keys' type, whatever it is kept in."""
    query = normal(batch, heads, queries, head_dim, dtype=dtype, seed=seed)
    key, value = (normal(batch, heads, keys, head_dim, dtype=dtype, seed=seed + i) for i in (1, 2))
    return query.astype(to_dtype(query_dtype or dtype)), key, value


def definition(query, key, value, mask: AttentionMask, scale: float) -> np.ndarray:
    wide = [np.asarray(array).astype(np.float64) for array in (query, key, value)]
    return get_backend("numpy", dtype="float64").attention(*wide, mask, scale)[0]


def tolerance(query, key, dtype: str, few: int = 8) -> float:
    """float32 arithmetic; 16-bit weights in prefill of 16-bit queries; rounding of the context."""
    result = EXACT
    if query.shape[2] > few and query.dtype == key.dtype and key.dtype.name in UNIT:
        result += ROUNDED * UNIT[key.dtype.name]
    return result + UNIT.get(dtype, 0)


def off(found: np.ndarray, right: np.ndarray) -> float:
    return float(np.abs(found - right).max() / max(1.0, np.abs(right).max()))


def check(card: Card, arrays, mask: AttentionMask, dtype: str, scale: float | None = None) -> np.ndarray:
    query, key, value = arrays
    scale = query.shape[3] ** -0.5 if scale is None else scale
    right = definition(query, key, value, mask, scale)
    visible = mask.key_visible
    on_card = AttentionMask(mask.offset, None if visible is None else card.cp.asarray(visible))
    found = card.attend(*map(card.cp.asarray, arrays), on_card, scale, dtype)
    assert off(found, right) <= tolerance(query, key, dtype), (query.shape, key.shape, query.dtype, key.dtype)
    return found


def padded(batch: int, keys: int) -> np.ndarray:
    """Row b begins with 3 b hidden keys."""
    return np.arange(keys)[None] >= 3 * np.arange(batch)[:, None]


# --- right by the definition ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [8, 64, 80, 256])
@pytest.mark.parametrize("queries", [1, 3, 8])
def test_decode(card, dtype, head_dim, queries):
    for keys in (queries, 127, 128, 129, 300):
        arrays = triple(2, 3, queries, keys, head_dim, dtype, "float32", seed=keys)
        check(card, arrays, AttentionMask(keys - queries), "float32")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [8, 64, 80, 128, 250])
def test_prefill(card, dtype, head_dim):
    for queries, keys in ((9, 9), (64, 64), (65, 65), (20, 150), (130, 130)):
        arrays = triple(1, 2, queries, keys, head_dim, dtype, seed=keys)
        check(card, arrays, AttentionMask(keys - queries), "float32")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("queries", [3, 17])
def test_every_place_of_the_diagonal_in_a_tile(card, dtype, queries):
    for past in range(44, 68):
        check(card, triple(1, 1, queries, past + queries, 32, dtype), AttentionMask(past), "float32")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("queries", [3, 150])
def test_an_offset_beyond_the_keys_shows_all_of_them(card, dtype, queries):
    arrays = triple(1, 1, queries, 70, 32, dtype)
    for past in (68, 70, 1000, 2**31 - 1):
        check(card, arrays, AttentionMask(past), "float32")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_prefill_in_large_tiles(card, dtype, head_dim, monkeypatch):
    """They are used where there are enough of them for all multiprocessors."""
    monkeypatch.setattr(card.modules, "multiprocessors", lambda: 1)
    for queries, keys in ((128, 128), (150, 200)):
        arrays = triple(1, 1, queries, keys, head_dim, dtype, seed=keys)
        check(card, arrays, AttentionMask(keys - queries), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_odd_sizes_and_padding(card, dtype):
    """Shapes drawn at random, of few values for what is compiled anew; some rows begin with padding."""
    rng = np.random.default_rng(5)
    for seed in range(24):
        batch, heads = rng.integers(1, 4, 2)
        queries, past = int(rng.choice([1, 2, 5, 9, 17, 40, 67])), int(rng.choice([0, 1, 30, 70, 140]))
        head_dim, out = int(rng.choice([10, 15, 32, 72])), str(rng.choice(["float32", dtype]))
        keys = past + queries
        visible = padded(batch, keys) if rng.random() < 0.5 else None
        arrays = triple(
            batch, heads, queries, keys, head_dim, dtype, str(rng.choice(["float32", dtype])), seed
        )
        check(card, arrays, AttentionMask(past, visible), out)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("queries", [2, 12])
def test_a_float32_query_of_16_bit_keys_stays_exact(card, dtype, queries):
    """A cache in 16 bits is the caller's rounding; the computation adds none."""
    query, key, value = triple(1, 2, queries, 40, 64, dtype, "float32")
    query += normal(*query.shape, seed=9)  # not a number of 16 bits any more
    found = check(card, (query, key, value), AttentionMask(40 - queries), "float32")
    assert off(found, definition(query, key, value, AttentionMask(40 - queries), 0.125)) <= EXACT


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("queries", [2, 20])
def test_values_of_another_dtype(card, dtype, queries):
    """Without a cache keys come rotated, and values as they were computed."""
    query, key, value = triple(1, 2, queries, queries, 64, dtype)
    check(card, (query, key, value.astype(np.float32)), AttentionMask(), dtype)


def test_nothing_asked(card):
    empty = card.cp.asarray(np.zeros((0, 2, 3, 8), np.float32))
    assert card.attention.attend(empty, empty, empty, AttentionMask(), 1.0, np.dtype("float32")).shape == (
        (0, 2, 3, 8)
    )


@pytest.mark.parametrize("capability", [70, 75])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_cards_without_tensor_cores_for_these_types(card, dtype, capability, monkeypatch):
    monkeypatch.setattr(card.modules, "capability", lambda: capability)
    if card.pretended is not None:
        card.pretended.compute_capability = str(capability)
    for head_dim in (80, 128):
        arrays = triple(1, 2, 20, 90, head_dim, dtype)
        found = check(card, arrays, AttentionMask(70), "float32")
        assert off(found, definition(*arrays, AttentionMask(70), head_dim**-0.5)) <= EXACT


# --- keys that are not seen ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("queries", [1, 6, 70])
def test_queries_that_see_nothing_give_zeros(card, dtype, queries):
    keys = queries + 130
    arrays = triple(3, 2, queries, keys, 32, dtype)
    visible = np.ones((3, keys), bool)
    visible[1] = False
    visible[2, : keys - 3] = False  # of several queries only the last ones see something
    found = check(card, arrays, AttentionMask(130, visible), "float32")
    assert (found[1] == 0).all()
    assert (found[2, :, : queries - 3] == 0).all()
    assert (found[0] != 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("queries", [1, 5, 30])
def test_hidden_keys_are_not_read(card, dtype, queries):
    """NaN there does no harm."""
    keys = queries + 140
    query, key, value = triple(2, 2, queries, keys, 64, dtype)
    visible = padded(2, keys)
    visible[:, 100] = False
    right = definition(query, key, value, AttentionMask(140, visible), 0.125)
    for array in (key, value):
        array.swapaxes(1, 2)[~visible] = np.nan
    mask = AttentionMask(140, card.cp.asarray(visible))
    found = card.attend(*map(card.cp.asarray, (query, key, value)), mask, 0.125, "float32")
    assert off(found, right) <= tolerance(query, key, "float32")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("queries", [1, 4, 24])
def test_an_offset_on_the_card(card, dtype, queries):
    """Storage is longer than what is filled, unwritten there, and only the card knows how much that is."""
    cp, capacity = card.cp, 600
    query, key, value = triple(2, 2, queries, capacity, 64, dtype)
    visible = padded(2, capacity)
    offset = cp.asarray(np.zeros(1, np.int64))
    for past in (0, 100, 127, 128, 300, capacity - queries):
        filled = past + queries
        storage = []
        for array in (key, value):
            longer = array.copy()
            longer[:, :, filled:] = np.nan
            storage.append(cp.asarray(longer))
        offset[:] = past
        for seen in (None, visible):
            mask = AttentionMask(offset, None if seen is None else cp.asarray(seen))
            found = card.attend(cp.asarray(query), *storage, mask, 0.125, "float32")
            short = AttentionMask(past, None if seen is None else seen[:, :filled])
            right = definition(query, key[:, :, :filled], value[:, :, :filled], short, 0.125)
            assert off(found, right) <= tolerance(query, key, "float32")
            # A view of what is filled, with the offset known to the host, gives the same bits.
            views = [array[:, :, :filled] for array in storage]
            on_card = AttentionMask(past, None if seen is None else cp.asarray(seen)[:, :filled])
            assert (card.attend(cp.asarray(query), *views, on_card, 0.125, "float32") == found).all()


# --- memory ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [32, 36])
@pytest.mark.parametrize("queries", [1, 3, 40])
def test_views_of_a_fused_projection(card, dtype, head_dim, queries):
    """[batch, seq, heads, 3, head_dim], as the fused product gives it; rows of 36 numbers are not aligned."""
    fused = normal(2, queries, 3, 3, head_dim, dtype=dtype)
    on_card = card.cp.asarray(fused).transpose(3, 0, 2, 1, 4)
    query, key, value = fused.transpose(3, 0, 2, 1, 4)
    found = card.attend(on_card[0], on_card[1], on_card[2], AttentionMask(), 0.2, "float32")
    right = definition(query, key, value, AttentionMask(), 0.2)
    assert off(found, right) <= tolerance(query, key, "float32")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("queries", [1, 12])
def test_any_strides_and_alignment(card, dtype, queries):
    """Rows that begin at odd places, in the other order, or whose numbers lie apart."""
    arrays = triple(2, 2, queries, 50, 33, dtype)
    mask = AttentionMask(50 - queries)

    def same(cut, turned):
        found = card.attend(*(turned(card.cp.asarray(array)) for array in arrays), mask, 0.2, "float32")
        right = definition(*(cut(array) for array in arrays), mask, 0.2)
        assert off(found, right) <= tolerance(*arrays[:2], "float32")

    same(lambda a: a[..., 1:], lambda a: a[..., 1:])
    same(lambda a: a[..., ::2], lambda a: a[..., ::2])
    same(lambda a: a[..., :32], lambda a: a[..., :32])
    same(lambda a: a[:, ::-1, :, :8], lambda a: a[:, ::-1, :, :8])


# --- numbers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("queries", [1, 4, 20])
@pytest.mark.parametrize("sign", [1, -1])
def test_large_scores(card, dtype, queries, sign):
    """Scores of +-1e4 that float32 holds exactly: nothing overflows, and differences keep their size."""
    keys = 150
    query = np.zeros((1, 1, queries, 32), to_dtype(dtype))
    key, value = np.zeros((1, 1, keys, 32), to_dtype(dtype)), normal(1, 1, keys, 32, dtype=dtype)
    query[..., 0], query[..., 1] = 96, 1
    key[..., 0] = 104 * sign  # 96 * 104 = 9984
    key[..., 1] = np.random.default_rng(0).integers(0, 9, keys)
    mask = AttentionMask(keys - queries)
    assert np.isfinite(check(card, (query, key, value), mask, "float32", scale=1.0)).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("queries", [1, 20])
def test_scores_of_all_sizes(card, dtype, queries):
    """From -1e4 to 1e4 in one row: most keys weigh nothing, also where the largest score comes first or last."""
    keys = 150
    for order in (slice(None), slice(None, None, -1)):
        query, key = np.zeros((1, 1, queries, 32)), np.zeros((1, 1, keys, 32))
        query[..., 0] = 100
        key[0, 0, :, 0] = np.linspace(-100, 100, keys)[order]
        arrays = [array.astype(to_dtype(dtype)) for array in (query, key)] + [
            normal(1, 1, keys, 32, dtype=dtype)
        ]
        check(card, arrays, AttentionMask(keys - queries), "float32", scale=1.0)


# --- the same numbers again ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("queries", [1, 5])
def test_decode_gives_a_text_the_same_bits_in_any_company(card, dtype, queries):
    """Alone and in a batch; and, since the cut of keys into units is fixed, whatever the multiprocessors are."""
    arrays = [card.cp.asarray(array) for array in triple(5, 2, queries, 300, 64, dtype, "float32")]
    mask = AttentionMask(300 - queries)
    together = card.attend(*arrays, mask, 0.125, "float32")
    for row in range(5):
        alone = card.attend(*(array[row : row + 1] for array in arrays), mask, 0.125, "float32")
        assert (alone[0] == together[row]).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_prefill_gives_a_text_the_same_in_any_company(card, dtype):
    arrays = [card.cp.asarray(array) for array in triple(3, 2, 40, 90, 64, dtype)]
    together = card.attend(*arrays, AttentionMask(50), 0.125, "float32")
    for row in range(3):
        alone = card.attend(*(array[row : row + 1] for array in arrays), AttentionMask(50), 0.125, "float32")
        assert (alone[0] == together[row]).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("queries", [1, 4, 70])
def test_the_order_of_blocks_changes_nothing(card, dtype, queries):
    arrays = [card.cp.asarray(array) for array in triple(2, 2, queries, 1100, 32, dtype)]
    mask = AttentionMask(1100 - queries)
    first = card.attend(*arrays, mask, 0.2, "float32")
    for seed in (1, 2):
        if card.pretended is not None:
            card.pretended.order = seed
        assert (card.attend(*arrays, mask, 0.2, "float32") == first).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [32, 15])
def test_many_keys_of_a_short_prefill_are_shared_between_blocks(card, dtype, head_dim, monkeypatch):
    arrays = triple(1, 2, 20, 1500, head_dim, dtype)
    visible = padded(1, 1500)
    visible[:, 512:1024] = False  # a part in which nothing is seen
    mask = AttentionMask(1480, visible)
    launched = []
    kernel = card.modules.kernel
    monkeypatch.setattr(card.modules, "kernel", lambda *name: launched.append(name) or kernel(*name))
    shared = check(card, arrays, mask, "float32")
    assert launched[-1] == ("attention_decode", "merge<256>")
    monkeypatch.setattr(card.modules, "multiprocessors", lambda: 1)
    whole = check(card, arrays, mask, "float32")
    assert launched[-1][0] != "attention_decode"
    unit = UNIT.get(dtype, 0)
    assert off(shared, whole) <= EXACT + unit


# --- what is compiled, and how it is launched ------------------------------------------------------------------


@pytest.mark.parametrize("capability", [70, 75, 80, 86, 90])
def test_every_launch_is_listed_and_fits(card, capability, monkeypatch):
    """Of all head sizes, types and lengths; by the limits of CUDA for cards of that compute capability."""
    room = {70: 96, 75: 64, 80: 163, 86: 99, 90: 227}[capability] * 1024
    listed = set(card.attention.instances(capability))
    asked = []

    class Recorder:
        def launch(self, grid, block, *arguments, shared=0):
            assert shared <= room
            assert 0 < grid[0] < 2**31
            assert all(0 < size < 2**16 for size in grid[1:])

    monkeypatch.setattr(card.modules, "capability", lambda: capability)
    monkeypatch.setattr(card.modules, "kernel", lambda *name: asked.append(name) or Recorder())
    for head_dim, dtype, queries in product(range(1, 257), DTYPES, (1, 5, 9, 5000)):
        if head_dim % 8 and head_dim > 40 and head_dim % 7:
            continue  # these are as their neighbours
        query, key = (card.cp.empty((1, 1, n, head_dim), dtype=to_dtype(dtype)) for n in (queries, 5000))
        for other in (query, query.astype(np.float32)):
            card.attention.attend(other, key, key, AttentionMask(5000 - queries), 1.0, np.dtype("float32"))
    assert set(asked) <= listed
    assert len(set(asked)) >= len(listed) - (12 if capability >= 80 else 0)  # large tiles need more texts
