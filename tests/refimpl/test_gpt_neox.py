"""GPT-NeoX: what its layers do, told with the layers' own parts."""

from __future__ import annotations

import numpy as np
import pytest

from refimpl import AutoModelForCausalLM, GPTNeoXForCausalLM, GPTNeoXModel, to_numpy
from tests.tiny import save_tiny, tiny_ids, tiny_neox


def close(a, b, bound=1e-12):
    assert np.abs(to_numpy(a) - to_numpy(b)).max() <= bound


def test_the_documented_defaults():
    from refimpl import GPTNeoXConfig

    config = GPTNeoXConfig()
    expected = {
        "vocab_size": 50432, "hidden_size": 6144, "num_hidden_layers": 44, "num_attention_heads": 64,
        "intermediate_size": 24576, "hidden_act": "gelu", "rotary_pct": 0.25, "rotary_emb_base": 10000,
        "attention_dropout": 0.0, "hidden_dropout": 0.0, "classifier_dropout": 0.1,
        "max_position_embeddings": 2048, "initializer_range": 0.02, "layer_norm_eps": 1e-5, "use_cache": True,
        "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": None, "tie_word_embeddings": False,
        "use_parallel_residual": True, "attention_bias": True, "rope_scaling": None, "is_decoder": False,
        "num_labels": 2, "id2label": {0: "LABEL_0", 1: "LABEL_1"}, "label2id": {"LABEL_0": 0, "LABEL_1": 1},
        "problem_type": None, "use_return_dict": True,
    }  # fmt: skip
    assert {name: getattr(config, name) for name in expected} == expected
    assert (config.head_dim, config.rotary_ndims) == (96, 24)


@pytest.mark.parametrize("parallel", [True, False])
def test_a_layer_is_what_its_docstring_says(backend, parallel):
    model = tiny_neox(backend=backend, dtype="float64", use_parallel_residual=parallel, num_hidden_layers=1)
    layer, base = model.gpt_neox.layers[0], model.gpt_neox
    h = base.embed_in(model.backend.asarray(tiny_ids()))
    from refimpl.backends.mask import AttentionMask

    cos, sin = base.rotary_emb(model.backend.asarray(np.arange(9)[None]))
    attending = {"cos": cos, "sin": sin, "mask": AttentionMask(), "cache": None, "head_mask": None}
    attended, _ = layer.attention(layer.input_layernorm(h), need_weights=False, **attending)
    if parallel:
        expected = h + attended + layer.mlp(layer.post_attention_layernorm(h))
    else:
        expected = h + attended
        expected = expected + layer.mlp(layer.post_attention_layernorm(expected))
    close(layer(h, need_weights=False, **attending)[0], expected)
    close(model(tiny_ids()).logits, model.embed_out(base.final_layer_norm(expected)))


def test_the_two_residuals_give_different_texts(backend):
    models = [tiny_neox(backend=backend, use_parallel_residual=parallel) for parallel in (True, False)]
    assert models[0].state_dict().keys() == models[1].state_dict().keys()
    for name, weight in models[0].state_dict().items():
        close(weight, models[1].state_dict()[name], 0)
    assert np.abs(models[0](tiny_ids()).logits - models[1](tiny_ids()).logits).max() > 0.1


def test_attention_bias_is_about_the_attention_alone():
    with_bias, without = (set(tiny_neox(attention_bias=bias).state_dict()) for bias in (True, False))
    assert without < with_bias
    assert {name.split("attention.")[-1] for name in with_bias - without} == {
        "query_key_value.bias",
        "dense.bias",
    }
    assert "gpt_neox.layers.0.mlp.dense_h_to_4h.bias" in without


def test_the_number_of_parameters():
    v, h, f, layers = 40, 24, 37, 3
    per_layer = 4 * h * h + 4 * h + 2 * h * f + f + h + 4 * h
    assert tiny_neox().num_parameters() == 2 * v * h + layers * per_layer + 2 * h
    assert tiny_neox(tie_word_embeddings=True).num_parameters() == v * h + layers * per_layer + 2 * h


def test_only_the_rotated_part_of_a_head_turns(backend):
    model = tiny_neox(backend=backend, dtype="float64")
    ids, base = tiny_ids(1, 5), model.gpt_neox
    embedded = base.embed_in(model.backend.asarray(ids))
    qkv = base.layers[0].attention.query_key_value(base.layers[0].input_layernorm(embedded))
    key = qkv.reshape(1, 5, 3, 3, 8)[:, :, :, 1].transpose(0, 2, 1, 3)
    cached = base(ids).past_key_values[0][0]
    close(cached[..., 4:], key[..., 4:], 0)
    close(cached[:, :, 0], key[:, :, 0], 0)  # position 0 does not turn
    assert np.abs(cached[:, :, 1:, :4] - key[:, :, 1:, :4]).max() > 0.01


def test_fed_in_pieces_it_says_the_same(backend):
    model, ids = tiny_neox(backend=backend, dtype="float64"), tiny_ids(2, 9)
    whole = model(ids).logits
    past, pieces = None, []
    for start, stop in ((0, 4), (4, 5), (5, 9)):
        out = model(ids[:, start:stop], past_key_values=past)
        past = out.past_key_values
        pieces.append(to_numpy(out.logits))
    close(np.concatenate(pieces, axis=1), whole)


def test_it_generates(backend, tmp_path):
    save_tiny(tmp_path, tiny_neox(backend=backend))
    model = AutoModelForCausalLM.from_pretrained(tmp_path, backend=backend)
    assert type(model) is GPTNeoXForCausalLM
    ids = model.generate(tiny_ids(2, 4), max_new_tokens=5, do_sample=False, eos_token_id=None)
    assert ids.shape == (2, 9)
    for length in range(4, 9):
        assert (to_numpy(model(ids[:, :length]).logits)[:, -1].argmax(-1) == ids[:, length]).all()


def test_the_model_without_a_head(backend, tmp_path):
    save_tiny(tmp_path, tiny_neox(backend=backend))
    base = GPTNeoXModel.from_pretrained(tmp_path, backend=backend)
    model = GPTNeoXForCausalLM.from_pretrained(tmp_path, backend=backend)
    out = base(tiny_ids(), output_hidden_states=True, output_attentions=True)
    close(out.last_hidden_state, out.hidden_states[-1], 0)
    close(model.embed_out(out.last_hidden_state), model(tiny_ids()).logits, 0)
    assert base.base_model is base
    assert model.base_model is model.gpt_neox


def test_huge_biases_of_keys_and_queries(backend):
    """Pythia has some of a norm around 300: scores beyond what float16 holds, and an attention like a switch."""
    single, double = (tiny_neox(backend=backend, dtype=dtype).half() for dtype in ("float32", "float64"))
    double.to(dtype="float64")
    for model in (single, double):
        rng = np.random.default_rng(3)
        for layer in model.gpt_neox.layers:
            bias = np.zeros((3, 3, 8))
            bias[:, :2] = rng.normal(size=(3, 2, 8))
            bias *= 300 / np.linalg.norm(bias, axis=-1, keepdims=True).clip(1e-9)
            layer.attention.query_key_value.bias = model.backend.asarray(bias.reshape(-1).astype(model.dtype))
    # Without a cache: one that is kept in 16 bits rounds these keys, and the switches with them.
    out, exact = (
        model(tiny_ids(1, 6), output_attentions=True, use_cache=False) for model in (single, double)
    )
    scores = 300 * 300 / np.sqrt(8)
    assert scores < 65504 < 300 * 300  # beyond float16 before the scale, and only then
    assert np.isfinite(to_numpy(out.logits)).all()
    for a, b in zip(out.attentions, exact.attentions, strict=True):
        assert np.abs(to_numpy(a) - to_numpy(b)).max() < 0.02
