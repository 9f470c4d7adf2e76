"""The wrong variants: classic mistakes of ports, each as a change of a copy of our own model.

The names are those of `golden/README.md`, where a mistake is recorded there too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from refimpl.conformance import steps
from refimpl.conformance import variants_layers as inside
from refimpl.conformance import variants_positions as places
from refimpl.conformance.planting import Copy
from refimpl.conformance.trace import Call, Receiver, Trace, replay


@dataclass(frozen=True)
class Variant:
    """A mistake by its name.

    Attributes:
        what: the mistake in words.
        plant: changes a `Copy`; false: there is no place for this mistake in the model or its calls.
        rounds: it rounds to 16 bits, so that two right programs with this mistake differ in single values.
    """

    name: str
    what: str
    plant: Callable[[Copy], bool]
    rounds: bool = False


_FAR = 1 << 20  # beyond any text

_ALL = (
    # Activation
    Variant(
        "tanh-gelu",
        "gelu in its tanh form instead of hidden_act",
        partial(inside.activation, name="gelu_new"),
    ),
    Variant(
        "erf-gelu", "gelu in its erf form instead of hidden_act", partial(inside.activation, name="gelu")
    ),
    Variant(
        "quick-gelu",
        "x * sigmoid(1.702 x) instead of hidden_act",
        partial(inside.activation, name="quick_gelu"),
    ),
    Variant("silu", "silu instead of hidden_act", partial(inside.activation, name="silu")),
    Variant("relu", "relu instead of hidden_act", partial(inside.activation, name="relu")),
    # Norms
    Variant("default-eps", "layer_norm_eps 1e-5", partial(inside.eps, value=1e-5)),
    Variant("llama-eps", "layer_norm_eps 1e-6", partial(inside.eps, value=1e-6)),
    Variant("tiny-eps", "layer_norm_eps 1e-12", partial(inside.eps, value=1e-12)),
    Variant(
        "eps-outside-root", "eps added to the deviation instead of the variance", inside.eps_outside_root
    ),
    Variant("unbiased-variance", "layer norm with the variance over n - 1", inside.unbiased_variance),
    Variant("rms-norm", "layer norm without subtracting the mean", inside.rms_norm),
    Variant("no-norm-bias", "layer norm without its bias", inside.no_norm_bias),
    Variant("one-plus-weight", "layer norm with 1 + weight", inside.one_plus_weight),
    Variant("swapped-norms", "input_layernorm and post_attention_layernorm swapped", inside.swapped_norms),
    Variant("one-norm", "the MLP behind input_layernorm, as in GPT-J", inside.one_norm),
    Variant("no-final-norm", "final_layer_norm left out", inside.no_final_norm),
    # Query, key, value and heads
    Variant(
        "qkv-before-heads",
        "rows of query_key_value read as (qkv, head) instead of (head, qkv)",
        inside.qkv_before_heads,
    ),
    Variant(
        "query-key-swapped",
        "query and key take each other's place",
        partial(inside.read_fused, order=(1, 0, 2)),
    ),
    Variant(
        "key-value-swapped",
        "key and value take each other's place",
        partial(inside.read_fused, order=(0, 2, 1)),
    ),
    Variant(
        "heads-interleaved",
        "heads merged as (head_dim, head) instead of (head, head_dim)",
        inside.heads_interleaved,
    ),
    Variant("transposed-dense", "attention.dense multiplied by its transpose", inside.transposed_dense),
    # Scores
    Variant("unscaled-attention", "scores not divided by the root of head_dim", inside.unscaled),
    Variant(
        "doubly-scaled-attention", "scores divided by head_dim instead of its root", inside.doubly_scaled
    ),
    Variant("scaled-by-hidden", "scores divided by the root of hidden_size", inside.scale_of_hidden),
    Variant("float16-softmax", "softmax in float16", inside.half_softmax, rounds=True),
    # Rotary
    Variant("interleaved-rotary", "neighbouring dimensions rotated instead of halves", places.interleaved),
    Variant("backwards-rotary", "rotated by the negative angle", places.backwards),
    Variant(
        "rotary-at-the-end",
        "the last dimensions of each head rotated instead of the first",
        places.at_the_end,
    ),
    Variant("no-rotary", "nothing rotated", places.none),
    Variant("keys-not-rotated", "queries rotated, keys not", places.keys_not_rotated),
    Variant(
        "whole-rotary", "rotary_pct ignored: the whole head rotated", partial(places.rotate_part, part=1.0)
    ),
    Variant(
        "quarter-rotary",
        "rotary_pct ignored: a quarter of the head rotated",
        partial(places.rotate_part, part=0.25),
    ),
    Variant(
        "exponent-over-head",
        "rotary exponent over head_dim instead of the rotated width",
        places.exponent_over_head,
    ),
    Variant("default-base", "rotary base 10000", places.default_base),
    Variant("no-rope-scaling", "rotary scaling ignored: the type default", places.no_scaling),
    Variant(
        "no-attention-factor",
        "cos and sin not multiplied by the attention factor",
        places.no_attention_factor,
    ),
    Variant(
        "always-short-factors",
        "longrope with short_factor for a long text",
        partial(places.one_list, length=1),
    ),
    Variant(
        "always-long-factors",
        "longrope with long_factor for a short text",
        partial(places.one_list, length=_FAR),
    ),
    Variant(
        "tables-for-each-row",
        "the rotary tables of a row chosen by its own largest position",
        places.tables_for_each_row,
    ),
    Variant("bfloat16-rotary-tables", "cos and sin in bfloat16", places.rounded_tables, rounds=True),
    # Positions and masks
    Variant("positions-from-one", "positions counted from 1", places.from_one),
    Variant(
        "positions-from-mask",
        "position ids counted along the mask in a forward call",
        places.from_mask,
    ),
    Variant(
        "positions-not-shifted", "positions by place although they were to skip padding", places.not_shifted
    ),
    Variant(
        "positions-restart", "position ids counted from 0 again in each call with a cache", places.restart
    ),
    Variant("padding-visible", "the attention mask ignored: padding is seen", places.padding_visible),
    Variant("mask-sees-next", "every token sees the next one too", partial(places.shifted_mask, by=1)),
    Variant("mask-misses-itself", "no token sees itself", partial(places.shifted_mask, by=-1)),
    Variant("no-causal-mask", "every token sees all others", partial(places.shifted_mask, by=_FAR)),
    # Cache
    Variant(
        "mask-without-past",
        "the causal rule counted from 0 again in each call with a cache",
        places.without_past,
    ),
    Variant("stale-cache", "the keys of a call can be seen from the next call on only", places.stale_cache),
    Variant(
        "overwritten-token",
        "the cache goes on one place too early: a token is lost",
        places.overwritten_token,
    ),
    Variant(
        "keys-rotated-anew",
        "keys cached unrotated, and all rotated with the frequencies of the newest call",
        places.keys_rotated_anew,
    ),
    Variant(
        "prefix-recomputed",
        "no cache: each piece computed together with all of the text before it",
        places.prefix_recomputed,
    ),
    # Biases
    Variant(
        "no-attention-bias",
        "biases of the attention left out",
        lambda copy: inside.without_bias(copy, "attention.query_key_value", "attention.dense"),
    ),
    Variant(
        "no-query-key-value-bias",
        "bias of query_key_value left out",
        lambda copy: inside.without_bias(copy, "attention.query_key_value"),
    ),
    Variant(
        "no-attention-dense-bias",
        "bias of attention.dense left out",
        lambda copy: inside.without_bias(copy, "attention.dense"),
    ),
    Variant(
        "no-mlp-bias",
        "biases of the MLP left out",
        lambda copy: inside.without_bias(copy, "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
    ),
    Variant("no-dense-bias", "dense_bias of the last layer left out", inside.no_dense_bias),
    Variant(
        "dense-bias-everywhere",
        "dense_bias of the last layer added in every layer",
        inside.dense_bias_everywhere,
    ),
    Variant(
        "dense-bias-in-first",
        "dense_bias added in the first layer instead of the last",
        inside.dense_bias_in_first,
    ),
    Variant(
        "dense-bias-after-mlp",
        "dense_bias added after the MLP of the last layer",
        inside.dense_bias_after_mlp,
    ),
    # Residuals
    Variant("parallel-residual", "attention and MLP side by side, as in GPT-NeoX", inside.parallel),
    Variant("sequential-residual", "the MLP after the attention, as in GPT-NeoX-Japanese", inside.sequential),
    Variant(
        "residual-from-normed",
        "attention added to the norm's output instead of its input",
        inside.residual_from_normed,
    ),
    Variant(
        "no-attention-residual",
        "what attention gives not added to the layer's input",
        inside.no_attention_residual,
    ),
    # Embedding and head
    Variant("scaled-embedding", "embeddings multiplied by the root of hidden_size", inside.embedding_scaled),
    Variant("tied-head", "the input embedding used as output head", inside.tied_head),
    Variant(
        "stored-head",
        "the output head of the file used although the config ties it to the embedding",
        inside.stored_head,
    ),
)

#: name -> variant
VARIANTS = {variant.name: variant for variant in _ALL}


def planted(model: Any, calls: list[Call], *names: str) -> Copy | None:
    """A copy of `model`, which is on the NumPy backend, with these mistakes; None where one has no place in it."""
    made = Copy.of(model, calls)
    return made if all(VARIANTS[name].plant(made) for name in names) else None


def run_copy(made: Copy, names: Any = None, receive: Receiver | None = None) -> Trace:
    """The trace of a copy's calls."""
    with _quiet():
        if not made.only_new_rows:
            return replay(made.model, made.calls, names, receive)
        trace = replay(made.model, made.calls, names)
    for name, array in trace.arrays.items():
        axes, keep = steps.axes_of(name, array.ndim), made.only_new_rows[steps.split_call(name)[1]]
        if "seq" in axes:
            place = [slice(None)] * array.ndim
            place[axes.index("seq")] = slice(array.shape[axes.index("seq")] - keep, None)
            trace.arrays[name] = array[tuple(place)]
        if receive is not None:
            receive(name, trace.arrays[name])
    return trace


@contextmanager
def _quiet() -> Iterator[None]:
    """A mistake may divide by nothing, or make a text too long; that is its own affair."""
    import warnings

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield
