"""transformers itself, side by side: the settings of both configs, their defaults, and files that the other one reads.

What earlier versions of its documentation show and version 5 has dropped stands here in a table.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import refimpl
from tests.conformance.comparison import FAMILIES
from tests.conformance.random_models import ROPE_TYPES, SPELLINGS, RandomModel, spell
from tests.conformance.theirs import transformers

CONFIG_CLASSES = ["GPTNeoXConfig", "GPTNeoXJapaneseConfig"]

#: The settings and defaults in the signatures of the pages (GPT-NeoX 4.34.0, GPT-NeoX-Japanese 4.37.2 and 5.5.3).
DOCUMENTED_SETTINGS: dict[str, dict[str, Any]] = {
    "GPTNeoXConfig": {
        "vocab_size": 50432,
        "hidden_size": 6144,
        "num_hidden_layers": 44,
        "num_attention_heads": 64,
        "intermediate_size": 24576,
        "hidden_act": "gelu",
        "rotary_pct": 0.25,
        "rotary_emb_base": 10000,
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        "classifier_dropout": 0.1,
        "max_position_embeddings": 2048,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-5,
        "use_cache": True,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
        "use_parallel_residual": True,
        "rope_scaling": None,
        "attention_bias": True,
    },
    "GPTNeoXJapaneseConfig": {
        "vocab_size": 32000,
        "hidden_size": 2560,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "intermediate_multiple_size": 4,
        "hidden_act": "gelu",
        "rotary_pct": 1.0,
        "rotary_emb_base": 10000,
        "max_position_embeddings": 2048,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-5,
        "use_cache": True,
        "bos_token_id": 31996,
        "eos_token_id": 31999,
        "rope_scaling": None,
        "attention_dropout": 0.1,
        "hidden_dropout": 0.0,
        "is_decoder": False,
        "pad_token_id": None,
        "tie_word_embeddings": True,
    },
}

#: Settings that every config of transformers inherits and that mean something to these models.
INHERITED_SETTINGS = (
    "output_attentions",
    "output_hidden_states",
    "return_dict",
    "use_return_dict",
    "num_labels",
    "id2label",
    "label2id",
    "problem_type",
    "architectures",
    "pad_token_id",
    "model_type",
)


@pytest.mark.parametrize("name", CONFIG_CLASSES)
def test_every_documented_setting_is_there_with_its_default(name: str) -> None:
    ours = getattr(refimpl, name)
    for setting, default in DOCUMENTED_SETTINGS[name].items():
        assert getattr(ours(), setting) == default, setting
        changed = ours(**{setting: default})
        assert changed == ours(), setting
        setattr(changed, setting, default)
        assert changed == ours(), setting


@pytest.mark.parametrize("name", CONFIG_CLASSES)
def test_every_setting_of_theirs_is_there_with_its_default(name: str) -> None:
    ours, theirs = getattr(refimpl, name)(), getattr(transformers, name)()
    own = [name for name in vars(type(theirs)).get("__annotations__", {}) if not name.startswith("_")]
    assert len(own) > 15
    for setting in (*own, *INHERITED_SETTINGS):
        assert getattr(ours, setting) == getattr(theirs, setting), setting


#: Other values than the defaults, for every setting that a model has.
OTHER_VALUES: dict[str, Any] = {
    "vocab_size": 123,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "hidden_act": "gelu_fast",
    "max_position_embeddings": 77,
    "initializer_range": 0.5,
    "layer_norm_eps": 1e-3,
    "use_cache": False,
    "bos_token_id": 7,
    "eos_token_id": [8, 9],
    "pad_token_id": 6,
    "attention_dropout": 0.25,
    "hidden_dropout": 0.5,
    "is_decoder": True,
    "output_attentions": True,
    "output_hidden_states": True,
    "id2label": {0: "no", 1: "yes", 2: "perhaps"},
    "label2id": {"no": 0, "yes": 1, "perhaps": 2},
    "problem_type": "multi_label_classification",
    "architectures": ["GPTNeoXModel"],
}
OWN_VALUES: dict[str, dict[str, Any]] = {
    "GPTNeoXConfig": {
        "intermediate_size": 50,
        "classifier_dropout": 0.75,
        "use_parallel_residual": False,
        "attention_bias": False,
        "tie_word_embeddings": True,
    },
    "GPTNeoXJapaneseConfig": {"intermediate_multiple_size": 3, "tie_word_embeddings": False},
}


def same_settings(ours: Any, theirs: Any, names: list[str]) -> None:
    for name in (*names, "num_labels", "label2id"):
        assert getattr(ours, name) == getattr(theirs, name), name
    theirs.standardize_rope_params()  # the library hears of a length beside the object only when it makes tables
    said = {key: value for key, value in theirs.rope_parameters.items() if value is not None}
    said.pop("type", None)
    # transformers writes the length of training down where it is taken from max_position_embeddings.
    if said.get("original_max_position_embeddings") == theirs.max_position_embeddings:
        said.pop("original_max_position_embeddings")
    found = dict(ours.rope_parameters)
    if found.get("original_max_position_embeddings") == ours.max_position_embeddings:
        found.pop("original_max_position_embeddings")
    assert found == said


@pytest.mark.parametrize("changed", [False, True], ids=["defaults", "other values"])
@pytest.mark.parametrize("name", CONFIG_CLASSES)
def test_configs_are_read_by_each_other(name: str, changed: bool, tmp_path: Path) -> None:
    ours_class, theirs_class = getattr(refimpl, name), getattr(transformers, name)
    values = {**OTHER_VALUES, **OWN_VALUES[name]} if changed else {}
    fields = [
        field for field in ours_class.fields() if field not in ("rope_parameters", "return_dict", "dtype")
    ]
    assert not changed or {*values} - {"label2id"} == {*fields}, "a setting without a value in the tables"
    ours, theirs = ours_class(**values), theirs_class(**values)
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    same_settings(ours, theirs_class.from_pretrained(tmp_path / "ours"), fields)
    same_settings(ours_class.from_pretrained(tmp_path / "theirs"), theirs, fields)
    same_settings(refimpl.AutoConfig.from_pretrained(tmp_path / "theirs"), theirs, fields)
    assert ours_class.from_pretrained(tmp_path / "ours") == ours


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rope_type", ROPE_TYPES)
def test_rotary_settings_go_there_and_back(rope_type: str, family: str, tmp_path: Path) -> None:
    """Every spelling is read by both; what we write, transformers reads as it reads the file we read."""
    ours_class = getattr(refimpl, f"{FAMILIES[family]}Config")
    theirs_class = getattr(transformers, f"{FAMILIES[family]}Config")
    seeds = [seed for seed in range(400) if RandomModel(seed, family).rope_type == rope_type][:20]
    for seed in seeds:
        settings = RandomModel(seed, family).settings
        spelt = spell(settings, SPELLINGS[seed % len(SPELLINGS)])
        first = tmp_path / f"{seed}-first"
        first.mkdir()
        (first / "config.json").write_text(json.dumps(spelt), encoding="utf-8")
        ours, theirs = ours_class.from_pretrained(first), theirs_class.from_pretrained(first)
        same_settings(ours, theirs, [])
        ours.save_pretrained(tmp_path / f"{seed}-ours")
        theirs.save_pretrained(tmp_path / f"{seed}-theirs")
        same_settings(ours_class.from_pretrained(tmp_path / f"{seed}-theirs"), theirs, [])
        assert ours_class.from_pretrained(tmp_path / f"{seed}-ours") == ours
        if settings["rope_parameters"].get("factor", 1) is not None:  # version 5 wants null to be said
            same_settings(ours, theirs_class.from_pretrained(tmp_path / f"{seed}-ours"), [])
