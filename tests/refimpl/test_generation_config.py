"""Where the settings of `generate()` come from, which of them wins, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest

from refimpl import DynamicCache, GenerationConfig, GPTNeoXJapaneseForCausalLM
from refimpl.errors import ConfigError, InputError
from refimpl.generation.config import CHECKS, DEFAULTS, NOT_OFFERED
from tests.tiny import save_tiny, tiny_ids, tiny_model


@pytest.fixture
def model(backend):
    return tiny_model(backend)


def test_every_option_has_one_check():
    names = [field.name for field in dataclasses.fields(GenerationConfig)]
    assert names == [*CHECKS, "unused_keys"]
    assert not CHECKS.keys() & NOT_OFFERED.keys()
    assert CHECKS.keys() >= DEFAULTS.keys()


def test_lists_are_kept_as_json_holds_them():
    config = GenerationConfig(
        sequence_bias={(3, np.int64(4)): 1}, bad_words_ids=((5,),), exponential_decay_length_penalty=(2, 1.5)
    )
    again = GenerationConfig.from_dict(json.loads(json.dumps(dataclasses.asdict(config))))
    assert again.sequence_bias == [[[3, 4], 1.0]]
    assert (again.bad_words_ids, again.exponential_decay_length_penalty) == ([[5]], [2, 1.5])


def test_the_call_wins_then_its_config_then_the_model_s():
    of_model = GenerationConfig(top_k=7, top_p=0.5, min_p=0.1, eos_token_id=5)
    config = GenerationConfig(top_p=0.6, min_p=0.2).updated(min_p=0.3, top_p=None).completed(of_model)
    assert (config.top_k, config.top_p, config.min_p, config.eos_token_id) == (7, 0.6, 0.3, 5)
    assert (config.temperature, config.typical_p) == (1.0, None)


def test_whoever_says_one_length_has_said_both():
    of_model = GenerationConfig(max_new_tokens=7, min_new_tokens=5)
    config = GenerationConfig(max_length=30, min_length=0).completed(of_model)
    assert (config.length_limit(10), config.length_minimum(10)) == (30, 0)
    config = GenerationConfig().completed(of_model)
    assert (config.length_limit(10), config.length_minimum(10)) == (17, 15)
    config = of_model.updated(min_length=3)
    assert (config.length_limit(10), config.length_minimum(10)) == (17, 3)
    assert GenerationConfig(min_length=3, min_new_tokens=2).length_minimum(10) == 12


def test_options_that_old_files_hold_in_the_config(tmp_path, backend):
    save_tiny(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "repetition_penalty": 3.0, "max_length": 12, "wild": 1}))
    model = GPTNeoXJapaneseForCausalLM.from_pretrained(tmp_path, backend=backend)
    assert model.generation_config == GenerationConfig(
        repetition_penalty=3.0,
        max_length=12,
        eos_token_id=2,
        pad_token_id=config.get("pad_token_id"),
        bos_token_id=1,
    )
    assert model.generate([[5, 6, 7]], eos_token_id=[]).shape == (1, 12)
    (tmp_path / "generation_config.json").write_text('{"max_new_tokens": 2}')
    model = GPTNeoXJapaneseForCausalLM.from_pretrained(tmp_path, backend=backend)
    assert model.generation_config == GenerationConfig(max_new_tokens=2)
    path.write_text(json.dumps({**config, "repetition_penalty": -1}))
    (tmp_path / "generation_config.json").unlink()
    model = GPTNeoXJapaneseForCausalLM.from_pretrained(tmp_path, backend=backend)
    with pytest.raises(ConfigError, match=r"config\.json.*repetition_penalty"):
        model.generate([[5]])


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, value in NOT_OFFERED.items()])
def test_an_option_that_is_not_offered_may_change_nothing(name, value):
    assert (
        GenerationConfig(**{name: value}) == GenerationConfig().updated(**{name: None}) == GenerationConfig()
    )
    with pytest.raises(InputError, match=f"not offered.*{name}="):
        GenerationConfig(**{name: 17})


def test_options_of_the_file_that_are_not_offered_are_announced(tmp_path, backend):
    save_tiny(tmp_path)
    (tmp_path / "generation_config.json").write_text(
        '{"num_beam_groups": 4, "penalty_alpha": 0.0, "top_k": null}'
    )
    with pytest.warns(UserWarning, match="num_beam_groups=4") as caught:
        GPTNeoXJapaneseForCausalLM.from_pretrained(tmp_path, backend=backend)
    assert "penalty_alpha" not in str(caught[0].message)


def test_a_damaged_generation_config_is_named(tmp_path, backend):
    save_tiny(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"temperature": "hot"}')
    with pytest.raises(ConfigError, match=r"generation_config\.json.*temperature"):
        GPTNeoXJapaneseForCausalLM.from_pretrained(tmp_path, backend=backend)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_ids": []}, "input_ids"),
        ({"input_ids": [[]]}, "input_ids"),
        ({"input_ids": [[99]]}, "input_ids"),
        ({"attention_mask": [[1]]}, "attention_mask"),
        ({"attention_mask": np.full((2, 9), 2)}, "attention_mask"),
        ({"attention_mask": np.zeros((2, 9))}, "without tokens"),
        ({"attention_mask": np.array([[1] * 9, [1] * 8 + [0]])}, "padding_side"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"top_k": -1}, "top_k"),
        ({"top_k": 2.5}, "top_k"),
        ({"max_new_tokens": -1}, "max_new_tokens"),
        ({"max_length": 0}, "max_length"),
        ({"eos_token_id": "2"}, "special token"),
        ({"eos_token_id": 40}, "eos_token_id: outside the vocabulary"),
        ({"eos_token_id": [2, -1]}, "eos_token_id: outside the vocabulary"),
        ({"pad_token_id": 99}, "pad_token_id"),
        ({"do_sample": 1}, "do_sample"),
        ({"max_length": 10**400}, "max_length"),
        ({"temprature": 1.0}, "Did you mean temperature"),
        ({"num_beams": 0}, "num_beams"),
        ({"num_beams": 2, "num_return_sequences": 3}, "at most num_beams = 2"),
        ({"num_return_sequences": 2}, "one likeliest text"),
        ({"num_beams": 2, "streamer": object()}, "streamer"),
        ({"early_stopping": "always"}, "early_stopping"),
        ({"length_penalty": math.inf}, "length_penalty"),
        ({"cache_implementation": "offloaded"}, "dynamic, static"),
        ({"context_overflow": "crash"}, "context_overflow"),
        ({"context_overflow": "error", "max_new_tokens": 4000}, "more than the model's context"),
        ({"past_key_values": ((1, 2),)}, "past_key_values"),
        ({"past_key_values": DynamicCache(), "num_beams": 2}, "past_key_values"),
        ({"past_key_values": DynamicCache(), "use_cache": False}, "past_key_values"),
        ({"inputs_embeds": np.zeros((2, 9, 3))}, "inputs_embeds"),
        ({"prefix_allowed_tokens_fn": lambda prompt, ids: []}, "prefix_allowed_tokens_fn"),
        ({"prefix_allowed_tokens_fn": lambda prompt, ids: [99]}, "prefix_allowed_tokens_fn"),
        ({"num_beam_groups": 2}, "not offered"),
        ({"penalty_alpha": 0.6}, "not offered"),
        ({"prompt_lookup_num_tokens": 0}, "prompt_lookup_num_tokens"),
        ({"prompt_lookup_num_tokens": 3}, "for one prompt"),
        ({"prompt_lookup_num_tokens": 3, "num_beams": 2}, "num_beams=2"),
        ({"prompt_lookup_num_tokens": 3, "use_cache": False}, "use_cache=False"),
        ({"force_words_ids": [[3]]}, "not offered"),
        ({"generation_config": GenerationConfig(eos_token_id=99)}, "eos_token_id"),
        ({"min_p": 1.5}, "min_p"),
        ({"min_p": math.nan}, "min_p"),
        ({"top_h": 0}, "top_h"),
        ({"typical_p": 0.0}, "typical_p"),
        ({"epsilon_cutoff": 1.0}, "epsilon_cutoff"),
        ({"eta_cutoff": -0.1}, "eta_cutoff"),
        ({"repetition_penalty": True}, "repetition_penalty"),
        ({"encoder_repetition_penalty": math.inf}, "encoder_repetition_penalty"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size"),
        ({"encoder_no_repeat_ngram_size": 1.5}, "encoder_no_repeat_ngram_size"),
        ({"bad_words_ids": [3]}, "bad_words_ids"),
        ({"bad_words_ids": [[]]}, "bad_words_ids"),
        ({"bad_words_ids": [[-3]]}, "bad_words_ids"),
        ({"bad_words_ids": [[40]]}, "outside the vocabulary"),
        ({"sequence_bias": {3: 1.0}}, "sequence_bias"),
        ({"sequence_bias": {(3,): math.nan}}, "sequence_bias"),
        ({"sequence_bias": {(3,): math.inf}}, "sequence_bias"),
        ({"sequence_bias": [[3, 1.0, 2]]}, "sequence_bias"),
        ({"sequence_bias": "x"}, "sequence_bias"),
        ({"suppress_tokens": 3}, "suppress_tokens"),
        ({"begin_suppress_tokens": ["3"]}, "begin_suppress_tokens"),
        ({"forced_bos_token_id": [3]}, "forced_bos_token_id"),
        ({"forced_eos_token_id": 2.0}, "forced_eos_token_id"),
        ({"exponential_decay_length_penalty": 3}, "exponential_decay_length_penalty"),
        ({"exponential_decay_length_penalty": (3, -1.0)}, "exponential_decay_length_penalty"),
        ({"exponential_decay_length_penalty": (3, 1.1), "eos_token_id": []}, "needs an eos_token_id"),
        ({"guidance_scale": -1}, "guidance_scale"),
        ({"guidance_scale": 2, "negative_prompt_ids": [[3]]}, "negative_prompt_ids"),
        (
            {"guidance_scale": 2, "negative_prompt_ids": [[3]] * 2, "negative_prompt_attention_mask": [[1]]},
            "negative_prompt_attention_mask",
        ),
        ({"remove_invalid_values": 1}, "remove_invalid_values"),
        ({"renormalize_logits": "yes"}, "renormalize_logits"),
        ({"stop_strings": ""}, "stop_strings"),
        ({"stop_strings": ["a", 3]}, "stop_strings"),
        ({"stop_strings": "a"}, "tokenizer"),
        ({"max_time": -1}, "max_time"),
        ({"min_new_tokens": 5, "max_new_tokens": 4}, "min_new_tokens: the shortest"),
        ({"min_length": 30, "max_length": 20}, "min_length: the shortest"),
        ({"suppress_tokens": [2, 3], "forced_eos_token_id": [3]}, "forced_eos_token_id"),
        ({"suppress_tokens": [2, 3], "forced_bos_token_id": 2}, "forced_bos_token_id"),
    ],
)
def test_wrong_arguments(model, arguments, message):
    with pytest.raises(InputError) as caught:
        model.generate(**{"input_ids": tiny_ids(), **arguments})
    assert message in str(caught.value)
