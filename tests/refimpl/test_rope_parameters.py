"""Rotary settings: every spelling is read, kept and written, and impossible ones are refused."""

from __future__ import annotations

import pytest

from refimpl import GPTNeoXConfig, GPTNeoXJapaneseConfig
from refimpl.errors import ConfigError

LINEAR = {"rope_type": "linear", "factor": 2.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
LONGROPE = {"rope_type": "longrope", "short_factor": [1.0] * 12, "long_factor": [2.0] * 12}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize("family", [GPTNeoXConfig, GPTNeoXJapaneseConfig])
@pytest.mark.parametrize(
    "settings",
    [
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        {"rope_scaling": {"rope_type": "linear", "type": "dynamic", "factor": 2.0}},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0}},
        {"rope_parameters": {"type": "linear", "factor": 2.0, "rope_theta": 500, "partial_rotary_factor": 0.5}},
        {"rope_scaling": LINEAR, "rope_parameters": {"rope_type": "dynamic", "factor": 9.0}},
    ],
)  # fmt: skip
def test_every_spelling_of_the_type(family, settings):
    config = family.from_dict(settings)
    assert config.rope_parameters["rope_type"] == "linear"
    assert config.rope_parameters["factor"] == 2.0
    assert config.rope_scaling == LINEAR
    given = settings.get("rope_parameters", {})
    assert config.rotary_emb_base == given.get("rope_theta", 10000)
    assert config.rotary_pct == given.get("partial_rotary_factor", family.default_rotary_pct)
    assert family.from_dict(config.to_dict()) == config
    written = config.to_dict()
    assert "rope_parameters" not in written
    assert {"rotary_pct", "rotary_emb_base", "rope_scaling"} <= set(written)


def test_the_part_that_is_rotated_has_a_default_for_each_family():
    """0.25 and 1.0; a file that says it wins over both, in whichever spelling."""
    assert (GPTNeoXConfig().rotary_pct, GPTNeoXJapaneseConfig().rotary_pct) == (0.25, 1.0)
    for settings in (
        {"rotary_pct": 0.5},
        {"partial_rotary_factor": 0.5},
        {"rope_parameters": {"partial_rotary_factor": 0.5}},
        {"rotary_pct": 0.5, "rope_parameters": {"partial_rotary_factor": 0.25}},
        {"rotary_pct": 0.5, "partial_rotary_factor": 0.25},
    ):
        for family in (GPTNeoXConfig, GPTNeoXJapaneseConfig):
            assert family.from_dict(settings).rotary_pct == 0.5


def test_the_settings_can_be_changed_in_both_spellings():
    config = GPTNeoXConfig()
    config.rotary_pct = 0.5
    config.rotary_emb_base = 777
    config.rope_scaling = {"type": "dynamic", "factor": 3.0}
    expected = {"rope_type": "dynamic", "factor": 3.0, "rope_theta": 777, "partial_rotary_factor": 0.5}
    assert config.rope_parameters == expected
    config.rope_parameters["factor"] = 5.0
    assert config.rope_scaling == {"rope_type": "dynamic", "factor": 5.0}
    config.rope_scaling = None
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 777, "partial_rotary_factor": 0.5}
    with pytest.raises(ConfigError):
        config.rotary_pct = 2.0
    assert config.rotary_pct == 0.5
    assert GPTNeoXConfig().rope_parameters["rope_theta"] == 10000  # no config shares another's


def test_an_override_keeps_what_it_does_not_name():
    config = GPTNeoXConfig(rope_parameters={**YARN, "rope_theta": 500})
    changed = config.updated(rotary_pct=1.0)
    assert changed.rope_parameters == {**YARN, "rope_theta": 500, "partial_rotary_factor": 1.0}
    assert config.updated(rope_parameters=LINEAR).rope_parameters == {
        **LINEAR, "rope_theta": 500, "partial_rotary_factor": 0.25
    }  # fmt: skip


def test_the_original_length_beside_the_object_counts():
    config = GPTNeoXConfig.from_dict({"rope_scaling": YARN, "original_max_position_embeddings": 1024})
    assert config.rope_parameters["original_max_position_embeddings"] == 1024


@pytest.mark.parametrize(
    ("rope", "key"),
    [
        ({"rope_type": "lineer", "factor": 2.0}, "rope_type"),
        ({"rope_type": 3}, "rope_type"),
        ({"rope_type": ["linear"]}, "rope_type"),
        ({"rope_type": "linear"}, "factor"),
        ({"rope_type": "dynamic"}, "factor"),
        *[({"rope_type": "linear", "factor": value}, "factor")
          for value in (0.5, 0, -2.0, "2", True, [2.0], float("nan"), float("inf"), 10**400)],
        ({"rope_type": "dynamic", "factor": 0.99}, "factor"),
        ({"rope_type": "dynamic", "factor": 2.0, "partial_rotary_factor": 2 / 96}, "rotary_pct"),
        ({**YARN, "factor": 0.5}, "factor"),
        ({**YARN, "beta_fast": 1, "beta_slow": 2}, "beta_fast"),
        ({**YARN, "beta_fast": 0.5}, "beta_fast"),
        ({**YARN, "beta_slow": -1}, "beta_slow"),
        ({**YARN, "beta_fast": "32"}, "beta_fast"),
        ({**YARN, "attention_factor": -1.0}, "attention_factor"),
        ({**YARN, "truncate": 1}, "truncate"),
        ({**YARN, "mscale": "1"}, "mscale"),
        ({**YARN, "rope_theta": 1}, "rotary_emb_base"),
        ({**YARN, "rope_theta": 0}, "rotary_emb_base"),
        ({**YARN, "original_max_position_embeddings": 0}, "original_max_position_embeddings"),
        ({**YARN, "original_max_position_embeddings": 512.0}, "original_max_position_embeddings"),
        ({"rope_type": "longrope", "short_factor": [1.0] * 12}, "long_factor"),
        ({**LONGROPE, "short_factor": [1.0] * 11}, "short_factor"),
        ({**LONGROPE, "long_factor": [1.0] * 48}, "long_factor"),
        ({**LONGROPE, "long_factor": [0.0] * 12}, "long_factor"),
        ({**LONGROPE, "long_factor": ["1"] * 12}, "long_factor"),
        ({**LONGROPE, "long_factor": 2.0}, "long_factor"),
        ({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}, "high_freq_factor"),
        ({**LLAMA3, "high_freq_factor": 1.0}, "high_freq_factor"),
        ({**LLAMA3, "low_freq_factor": 0}, "low_freq_factor"),
        ({"partial_rotary_factor": 1.01}, "rotary_pct"),
        ({"partial_rotary_factor": 0.01}, "rotary_pct"),
        ({"partial_rotary_factor": 3 / 96}, "rotary_pct"),
    ],
)  # fmt: skip
def test_impossible_settings_are_named(rope, key):
    with pytest.raises(ConfigError) as caught:
        GPTNeoXConfig(rope_parameters=rope)
    assert caught.value.key == key
    assert "gpt_neox config" in str(caught.value)


def test_the_nearest_type_is_named():
    with pytest.raises(ConfigError, match=r"Did you mean longrope\?"):
        GPTNeoXConfig(rope_scaling={"type": "long_rope"})


def test_what_belongs_to_another_type_is_kept_and_a_stranger_is_announced():
    kept = {**LINEAR, "beta_fast": 32}
    assert GPTNeoXConfig(rope_scaling=kept).rope_scaling == kept
    with pytest.warns(UserWarning, match="finetuned"):
        config = GPTNeoXConfig(rope_scaling={**LINEAR, "finetuned": True})
    assert config.rope_scaling == {**LINEAR, "finetuned": True}


@pytest.mark.parametrize(
    ("settings", "theta", "share"),
    [
        ({"rope_parameters": {"rope_theta": None, "partial_rotary_factor": None}}, 10000, 0.25),
        ({"rope_theta": 500, "partial_rotary_factor": 0.5}, 500, 0.5),
        ({"rope_theta": 500, "rope_parameters": {"rope_theta": 700}}, 700, 0.25),
        ({"partial_rotary_factor": 0.5, "rope_parameters": {"partial_rotary_factor": 1.0}}, 10000, 1.0),
        ({"rotary_emb_base": 900, "rope_theta": 500, "rope_parameters": {"rope_theta": 700}}, 900, 0.25),
        ({"rotary_pct": 0.5, "rope_scaling": {**LINEAR, "partial_rotary_factor": 1.0}}, 10000, 0.5),
    ],
)
def test_which_of_several_names_counts(settings, theta, share):
    config = GPTNeoXConfig.from_dict(settings)
    assert (config.rotary_emb_base, config.rotary_pct) == (theta, share)


@pytest.mark.parametrize(
    "rope", [{"factor": 2.0}, {"rope_type": None, "factor": 2.0}, {"type": None, "beta_fast": 3}]
)
def test_an_object_with_settings_must_name_its_type(rope):
    for name in ("rope_scaling", "rope_parameters"):
        with pytest.raises(ConfigError, match="name no type") as caught:
            GPTNeoXConfig.from_dict({name: rope})
        assert caught.value.key == "rope_type"


def test_nothing_of_the_type_default_is_lost_either():
    config = GPTNeoXConfig.from_dict({"original_max_position_embeddings": 1024})
    assert config.to_dict()["rope_scaling"] == {
        "rope_type": "default",
        "original_max_position_embeddings": 1024,
    }
    assert GPTNeoXConfig.from_dict(config.to_dict()) == config != GPTNeoXConfig()


def test_longrope_is_written_where_version_4_looks_for_it():
    config = GPTNeoXConfig(rope_scaling={**LONGROPE, "original_max_position_embeddings": 512})
    written = config.to_dict()
    assert written["original_max_position_embeddings"] == 512
    assert GPTNeoXConfig.from_dict(written) == config
