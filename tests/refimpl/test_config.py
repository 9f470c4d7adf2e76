"""The settings of a model: defaults, both spellings, files, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from refimpl import AutoConfig, GPTNeoXConfig, GPTNeoXJapaneseConfig
from refimpl.errors import ConfigError, MissingFileError, ResourceLimitError, SaveError


def test_the_documented_defaults():
    config = GPTNeoXJapaneseConfig()
    expected = {
        "vocab_size": 32000, "hidden_size": 2560, "num_hidden_layers": 32, "num_attention_heads": 32,
        "intermediate_multiple_size": 4, "hidden_act": "gelu", "rotary_pct": 1.0, "rotary_emb_base": 10000,
        "max_position_embeddings": 2048, "initializer_range": 0.02, "layer_norm_eps": 1e-5, "use_cache": True,
        "bos_token_id": 31996, "eos_token_id": 31999, "pad_token_id": None, "attention_dropout": 0.1,
        "hidden_dropout": 0.0, "is_decoder": False, "tie_word_embeddings": True,
    }  # fmt: skip
    assert {name: getattr(config, name) for name in expected} == expected
    assert config.head_dim == 80
    assert config.rotary_ndims == 80
    assert config.intermediate_size == 10240


@pytest.mark.parametrize(
    ("settings", "width", "base"),
    [
        ({"rotary_pct": 0.25, "rotary_emb_base": 500}, 20, 500),
        (
            {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.25, "rope_theta": 500}},
            20,
            500,
        ),
        ({"partial_rotary_factor": 0.25, "rope_theta": 500}, 20, 500),
        # The earlier spelling wins, even when it says what the class default says.
        ({"rotary_pct": 1.0, "rope_parameters": {"partial_rotary_factor": 0.25}}, 80, 10000),
        ({"rope_scaling": None, "rope_parameters": None}, 80, 10000),
        ({"rope_scaling": {"type": "default"}}, 80, 10000),
        ({"rope_scaling": {"rope_type": "default", "rope_theta": 50, "partial_rotary_factor": 0.5}}, 40, 50),
    ],
)
def test_both_spellings_of_the_rotary_settings(settings, width, base):
    config = GPTNeoXJapaneseConfig.from_dict(settings)
    assert (config.rotary_ndims, config.rotary_emb_base) == (width, base)
    again = GPTNeoXJapaneseConfig.from_dict(config.to_dict())
    assert again == config
    assert again.rope_parameters["partial_rotary_factor"] == config.rotary_pct


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"hidden_size": 2561}, "hidden_size"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"hidden_size": True}, "hidden_size"),
        ({"hidden_size": "2560"}, "hidden_size"),
        ({"hidden_size": 2560.0}, "hidden_size"),
        ({"vocab_size": 1 << 31}, "vocab_size"),
        ({"num_hidden_layers": -1}, "num_hidden_layers"),
        ({"hidden_act": "gelu_newer"}, "hidden_act"),
        ({"hidden_act": None}, "hidden_act"),
        ({"rotary_pct": 1.5}, "rotary_pct"),
        ({"rotary_pct": 0.0}, "rotary_pct"),
        ({"hidden_size": 24, "num_attention_heads": 8}, "rotary_pct"),  # 3 dimensions cannot be paired
        ({"rotary_emb_base": float("inf")}, "rotary_emb_base"),
        ({"layer_norm_eps": -1e-5}, "layer_norm_eps"),
        ({"intermediate_multiple_size": 1e9}, "intermediate_multiple_size"),
        ({"eos_token_id": "2"}, "eos_token_id"),
        ({"rope_scaling": {"type": "linear", "factor": 0.5}}, "factor"),
        ({"rope_parameters": [1]}, "rope_parameters"),
        ({"rope_parameters": {"type": "linaer", "factor": 4.0}}, "rope_type"),
        ({"hidden_act": ["gelu"]}, "hidden_act"),
        ({"rotary_emb_base": 10**400}, "rotary_emb_base"),
        ({"rotary_emb_base": 10**5000}, "rotary_emb_base"),
        ({"layer_norm_eps": 1e-300}, "layer_norm_eps"),
        ({"intermediate_multiple_size": 1e308}, "intermediate_multiple_size"),
        ({"initializer_range": -1}, "initializer_range"),
        ({"initializer_range": "x"}, "initializer_range"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings"),
        ({"use_cache": None}, "use_cache"),
    ],
)
def test_impossible_settings(settings, key):
    with pytest.raises(ConfigError) as caught:
        GPTNeoXJapaneseConfig(**settings)
    assert caught.value.key == key


def test_a_misspelt_setting_names_the_nearest():
    with pytest.raises(ConfigError, match=r"Did you mean num_hidden_layers\?"):
        GPTNeoXJapaneseConfig(num_hiden_layers=2)


def test_an_override_is_a_setting_and_never_lost(tmp_path):
    config = GPTNeoXJapaneseConfig(hidden_act=relu)
    changed = config.updated(hidden_size=64, rope_parameters={"rope_theta": 7})
    assert (changed.hidden_size, changed.rotary_emb_base, changed.hidden_act) == (64, 7, relu)
    assert config.hidden_size == 2560
    (tmp_path / "config.json").write_text('{"hiden_act": "relu"}')
    assert GPTNeoXJapaneseConfig.from_pretrained(tmp_path).unused_keys == {"hiden_act": "relu"}
    with pytest.raises(ConfigError, match="Did you mean hidden_act"):
        GPTNeoXJapaneseConfig.from_pretrained(tmp_path, hiden_act="relu")


def relu(x):
    """Not the built-in of this name."""
    return x


def test_settings_can_be_changed_and_are_checked_when_a_model_is_made():
    from refimpl import GPTNeoXJapaneseModel

    config = GPTNeoXJapaneseConfig()
    config.is_decoder = True
    config.hidden_act = "nonsense"
    with pytest.raises(ConfigError):
        GPTNeoXJapaneseModel.skeleton(config, None)


def test_files(tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps(
            {"model_type": "gpt_neox_japanese", "hidden_size": 64, "torch_dtype": "float16", "wild": 1}
        )
    )
    config = AutoConfig.from_pretrained(tmp_path, num_attention_heads=4)
    assert isinstance(config, GPTNeoXJapaneseConfig)
    assert (config.hidden_size, config.num_attention_heads, config.dtype) == (64, 4, "float16")
    assert config.unused_keys == {"wild": 1}
    config.save_pretrained(tmp_path)
    config.save_pretrained(tmp_path / "a" / "b")
    assert GPTNeoXJapaneseConfig.from_pretrained(tmp_path / "a" / "b") == config
    with pytest.raises(SaveError):
        config.save_pretrained(tmp_path / "config.json")
    assert GPTNeoXJapaneseConfig.from_pretrained(tmp_path) == config


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{", b'{"a": NaN}', b'{"a": 1, "a": 2}', b"\xff\xfe", b"[" * 100_000, b'{"layer_norm_eps": 1e400}',
     b'{"model_type": "gpt2"}', b'{"model_type": 3}', b'{"hidden_size": ' + b"9" * 5000 + b"}"],
)  # fmt: skip
def test_damaged_files(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    for reader in (GPTNeoXJapaneseConfig, AutoConfig):
        with pytest.raises(ConfigError):
            reader.from_pretrained(tmp_path)


def test_many_keys_are_read_at_once(tmp_path):
    """Looking for a duplicate key takes no longer than reading the file."""
    keys = {f"k{i}": i for i in range(50_000)}
    text = json.dumps(keys)
    (tmp_path / "config.json").write_text(text[:-1] + ', "k49999": 1}')
    with pytest.raises(ConfigError, match="twice"):
        AutoConfig.from_pretrained(tmp_path)


def test_a_file_that_is_too_large_or_missing(tmp_path):
    with pytest.raises(MissingFileError, match=r"config\.json"):
        AutoConfig.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_bytes(b" " * (2 << 20))
    with pytest.raises(ResourceLimitError):
        AutoConfig.from_pretrained(tmp_path)


# --- every key of a file -------------------------------------------------------------------------

WHOLE = {
    "vocab_size": 1 << 22, "hidden_size": 1 << 16, "num_hidden_layers": 1 << 10, "num_attention_heads": 1 << 10,
    "intermediate_size": 1 << 20, "max_position_embeddings": 1 << 20,
}  # fmt: skip
OTHER = {
    "layer_norm_eps": 1e6,
    "rotary_emb_base": 1e18,
    "rotary_pct": 1,
    "initializer_range": 1e6,
    "hidden_dropout": 1,
}
SWITCHES = [
    "use_cache",
    "tie_word_embeddings",
    "use_parallel_residual",
    "attention_bias",
    "is_decoder",
    "return_dict",
]
IDS = ["bos_token_id", "eos_token_id", "pad_token_id"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[(key, value) for key, most in WHOLE.items()
          for value in (most + 1, 1 << 31, 10**4000, 0, -1, 1.5, 8.0, True, "8", None, [8], 1e400, float("nan"))],
        *[(key, value) for key, most in OTHER.items()
          for value in (most * 1.01 + 1, -1, True, "1", [1], float("inf"), float("nan"), 10**4000)],
        *[(key, value) for key in ("layer_norm_eps", "initializer_range", "hidden_dropout") for value in (None, {})],
        *[(key, value) for key in SWITCHES for value in (None, 0, 1, "true", [])],
        *[(key, value) for key in IDS for value in (-1, 50432, 10**4000, 1.0, "0", True, {}, [1.5])],
        ("pad_token_id", [0]), ("bos_token_id", [0]), ("eos_token_id", [0, 50432]), ("eos_token_id", [None, -1]),
        ("hidden_act", "gelu_newer"), ("hidden_act", None), ("hidden_act", 3), ("hidden_act", "__class__"),
        ("classifier_dropout", 1.5), ("classifier_dropout", "0.1"), ("attention_dropout", None),
        ("problem_type", "ranking"), ("problem_type", 1),
        ("num_labels", 0), ("num_labels", -1), ("num_labels", 2.0), ("num_labels", "2"), ("num_labels", 10**9),
        ("id2label", {}), ("id2label", {"1": "a"}), ("id2label", {"0": "a", "2": "b"}), ("id2label", {"x": "a"}),
        ("id2label", {"0": 5}), ("id2label", "ab"), ("id2label", 3),
        ("rope_scaling", "linear"), ("rope_scaling", 2.0), ("rope_parameters", [1]),
    ],
)  # fmt: skip
def test_a_value_out_of_range_is_refused(key, value):
    with pytest.raises(ConfigError) as caught:
        GPTNeoXConfig.from_dict({key: value})
    assert caught.value.key == key
    assert len(str(caught.value)) < 700


def test_nothing_is_allocated_for_a_huge_model():
    """The largest settings make a config at once: tables and masks are made for the length that is used."""
    config = GPTNeoXConfig(
        hidden_size=1 << 16, num_hidden_layers=1 << 10, max_position_embeddings=1 << 20, vocab_size=1 << 22
    )
    assert config.rotary_ndims == 256


def test_eos_may_be_several_ids():
    assert GPTNeoXConfig(eos_token_id=[0, 50277]).eos_token_id == [0, 50277]
    # The default of the class need not be in a smaller vocabulary; a number of the file must.
    assert GPTNeoXJapaneseConfig(vocab_size=100).eos_token_id == 31999
    with pytest.raises(ConfigError, match="outside the vocabulary of 100"):
        GPTNeoXJapaneseConfig(vocab_size=100, eos_token_id=100)


def test_a_dropout_that_is_left_open():
    assert GPTNeoXConfig.from_dict({"classifier_dropout": None}).classifier_dropout is None


def test_labels():
    config = GPTNeoXConfig.from_dict(
        {"id2label": {"1": "good", "0": "bad", "2": "so-so"}, "label2id": {"bad": 0}}
    )
    assert config.id2label == {0: "bad", 1: "good", 2: "so-so"}
    assert config.label2id == {"bad": 0, "good": 1, "so-so": 2}
    assert config.num_labels == 3
    written = json.loads(config.to_json_string())
    assert written["id2label"] == {"0": "bad", "1": "good", "2": "so-so"}
    assert GPTNeoXConfig.from_dict(written) == config
    config.num_labels = 3
    assert config.id2label[0] == "bad"  # the names stay where their number stays
    config.num_labels = 1
    assert config.id2label == {0: "LABEL_0"}
    assert GPTNeoXConfig(id2label=["a", "b"]).label2id == {"a": 0, "b": 1}
    assert "id2label" not in GPTNeoXConfig().to_dict()


def test_unknown_keys_are_kept_read_and_written_back():
    wild = {"attention_probs_dropout_prob": 0, "end_token_id": 2, "type_vocab_size": 1, "weight_tying": False,
            "_attn_implementation_autoset": True, "task_specific_params": {"a": [1]}}  # fmt: skip
    config = GPTNeoXConfig.from_dict({**wild, "torch_dtype": "bfloat16"})
    assert config.unused_keys == wild
    assert config.type_vocab_size == 1
    assert config.dtype == "bfloat16"
    assert {key: config.to_dict()[key] for key in wild} == wild
    assert config.updated(hidden_size=1024, num_attention_heads=8).end_token_id == 2
    with pytest.raises(AttributeError, match="no setting 'end_tokn_id'"):
        _ = config.end_tokn_id


def test_no_two_configs_share_anything():
    wild = {"task": {"a": [1]}}
    first = GPTNeoXConfig.from_dict(wild)
    second = first.updated()
    first.unused_keys["task"]["a"].append(2)
    first.id2label[2] = "more"
    first.rope_parameters["rope_theta"] = 5
    first.to_dict()["task"]["a"].append(3)
    assert first.unused_keys == {"task": {"a": [1, 2]}}
    assert second.unused_keys == wild == {"task": {"a": [1]}}
    assert GPTNeoXConfig().num_labels == second.num_labels == 2
    assert second.rotary_emb_base == 10000


def test_update_changes_all_or_nothing():
    config = GPTNeoXConfig()
    config.update({"hidden_size": 128, "num_attention_heads": 4, "rotary_pct": 0.5})
    assert (config.hidden_size, config.rotary_ndims) == (128, 16)
    for wrong in ({"hidden_size": 64, "num_attention_heads": 7}, {"hidden_act": "relu", "hiden_size": 3}):
        before = config.to_dict()
        with pytest.raises(ConfigError):
            config.update(wrong)
        assert config.to_dict() == before


@pytest.mark.parametrize(
    ("key", "value"),
    [("architectures", 5), ("architectures", True), ("architectures", "GPTNeoXModel"), ("architectures", [[1]]),
     ("architectures", {}), ("dtype", 5), ("torch_dtype", ["float16"]), ("eos_token_id", [None])],
)  # fmt: skip
def test_names_are_names(key, value):
    with pytest.raises(ConfigError):
        GPTNeoXConfig.from_dict({key: value})


def test_a_dtype_of_numpy_is_named():
    assert (
        GPTNeoXConfig(dtype=np.float16).dtype
        == GPTNeoXConfig(torch_dtype=np.dtype("float16")).dtype
        == "float16"
    )


def test_lists_in_lists_have_an_end():
    value: list = []
    for _ in range(900):
        value = [value]
    with pytest.raises(ConfigError, match="nested too deeply"):
        GPTNeoXConfig.from_dict({"wild": value})
    assert GPTNeoXConfig.from_dict({"wild": [[[[1]]]]}).wild == [[[[1]]]]


def test_settings_are_put_in_their_form_when_they_are_assigned():
    config = GPTNeoXConfig()
    config.rope_parameters = {"rope_type": "linear", "factor": 2.0}
    assert (config.rotary_pct, config.rotary_emb_base) == (0.25, 10000)
    config.rope_parameters = None
    assert config.rope_scaling is None
    config.id2label = {"0": "A", "1": "B"}
    assert config.label2id == {"A": 0, "B": 1}
    with pytest.raises(ConfigError):
        config.id2label = {"1": "A"}
    with pytest.raises(ConfigError):
        config.rope_parameters = 5
    del config.rope_parameters["rope_theta"]
    with pytest.raises(ConfigError, match="rotary_emb_base"):
        config.validate()


def test_minus_zero_is_a_deviation():
    from refimpl import GPTNeoXModel
    from tests.tiny import tiny_neox_config

    GPTNeoXModel(tiny_neox_config(initializer_range=-0.0))
