"""Live comparison with transformers: which rotary settings of a `config.json` it refuses, and which ones we do."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import numpy as np
import pytest

from refimpl.errors import ConfigError
from tests.conformance.comparison import FAMILIES, Tables
from tests.conformance.ours import our_tables
from tests.conformance.theirs import their_tables, transformers

LISTS = {"short_factor": [1.0, 2.0, 3.0, 4.0], "long_factor": [2.0, 3.0, 4.0, 5.0]}
BANDS = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def scaling(name: str, **rope: Any) -> dict[str, Any]:
    return {"rope_scaling": {"type": name, **rope}}


def yarn(**rope: Any) -> dict[str, Any]:
    return scaling("yarn", **{"factor": 2.0, **rope})


def longrope(**rope: Any) -> dict[str, Any]:
    return scaling("longrope", **{**LISTS, "factor": 2.0, "original_max_position_embeddings": 32, **rope})


def llama3(**rope: Any) -> dict[str, Any]:
    return scaling("llama3", **{**BANDS, "original_max_position_embeddings": 32, **rope})


#: Settings of a model with heads of 8 dimensions and 64 positions; what transformers does; what we do.  It "accepts"
#: them, "warns", or "refuses" them (by an error of its own, or by one that happens when the tables are made); we name
#: the key that is refused.  Where both give tables they are the same, unless "differs" is said.
SETTINGS: dict[str, tuple[dict[str, Any], str, str]] = {
    # the type
    "nothing": ({}, "accepts", "accepts"),
    "no object": ({"rope_scaling": None}, "accepts", "accepts"),
    "an empty object": ({"rope_scaling": {}}, "accepts", "accepts"),
    "a list": ({"rope_scaling": [1]}, "refuses", "refuses rope_scaling"),
    "a text": ({"rope_scaling": "linear"}, "refuses", "refuses rope_scaling"),
    "no type": ({"rope_scaling": {"factor": 2.0}}, "warns", "refuses rope_type"),
    "two types": (scaling("linear", rope_type="dynamic", factor=2.0), "accepts", "accepts"),
    "an unknown type": (scaling("ntk", factor=2.0), "refuses", "refuses rope_type"),
    "the type of Phi-3": (scaling("su", **LISTS), "refuses", "refuses rope_type"),
    "a type of other models": (scaling("proportional"), "accepts", "refuses rope_type"),
    "default with a factor": (scaling("default", factor=2.0), "warns", "accepts"),
    "objects in the object": ({"rope_parameters": {"full_attention": {}}}, "warns", "refuses rope_type"),
    # factor
    "linear without a factor": (scaling("linear"), "refuses", "refuses factor"),
    "linear by 1": (scaling("linear", factor=1), "accepts", "accepts"),
    "linear by less than 1": (scaling("linear", factor=0.5), "warns", "refuses factor"),
    "linear by a text": (scaling("linear", factor="2"), "refuses", "refuses factor"),
    "linear by null": (scaling("linear", factor=None), "refuses", "refuses factor"),
    "linear by true": (scaling("linear", factor=True), "accepts", "refuses factor"),
    "dynamic without a factor": (scaling("dynamic"), "refuses", "refuses factor"),
    "dynamic by less than 1": (scaling("dynamic", factor=0.5), "warns", "refuses factor"),
    "yarn by less than 1": (yarn(factor=0.5), "warns", "refuses factor"),
    "yarn without a factor": (scaling("yarn"), "refuses", "accepts"),
    "yarn by null": (yarn(factor=None), "warns", "accepts"),
    "longrope by less than 1": (longrope(factor=0.5), "warns", "refuses factor"),
    "longrope without a factor": (scaling("longrope", **LISTS), "warns", "accepts"),
    "llama3 by less than 1": (llama3(factor=0.5), "warns", "refuses factor"),
    # keys of another type, or of none
    "a key of another type": (scaling("linear", factor=2.0, beta_fast=3), "warns", "accepts"),
    "an unknown key": (scaling("linear", factor=2.0, colour=3), "warns", "warns"),
    "dynamic by alpha": (scaling("dynamic", factor=2.0, alpha=3.0), "warns", "warns"),
    "dynamic with a length": (
        scaling("dynamic", factor=2.0, original_max_position_embeddings=32), "warns", "accepts",
    ),
    # the length of training
    "yarn, another ratio": (yarn(original_max_position_embeddings=16), "warns", "accepts"),
    "yarn, a longer training": (yarn(original_max_position_embeddings=128), "warns", "accepts"),
    "yarn, a length of 0": (
        yarn(original_max_position_embeddings=0), "refuses", "refuses original_max_position_embeddings",
    ),
    "yarn, a length as text": (
        yarn(original_max_position_embeddings="32"), "refuses", "refuses original_max_position_embeddings",
    ),
    "yarn, a length with a point": (
        yarn(original_max_position_embeddings=32.0), "accepts", "refuses original_max_position_embeddings",
    ),
    "longrope, a length of 1": (
        longrope(original_max_position_embeddings=1), "refuses", "refuses original_max_position_embeddings",
    ),
    "a length beside the object": (longrope() | {"original_max_position_embeddings": 16}, "accepts", "accepts"),
    "llama3, no length": (scaling("llama3", **BANDS), "warns", "accepts"),
    # attention_factor, mscale
    "a whole attention_factor": (yarn(attention_factor=2), "warns", "accepts"),
    "an attention_factor of 0": (yarn(attention_factor=0.0), "accepts", "accepts"),
    "a negative attention_factor": (yarn(attention_factor=-1.0), "warns", "refuses attention_factor"),
    "longrope, negative": (longrope(attention_factor=-1.0), "warns", "refuses attention_factor"),
    "mscale alone": (yarn(mscale=0.7), "accepts", "accepts"),
    "mscale of 0": (yarn(mscale=0.0, mscale_all_dim=1.0), "accepts", "accepts"),
    # the ramp of yarn
    "fast slower than slow": (yarn(beta_fast=1, beta_slow=2), "warns", "refuses beta_fast"),
    "a beta as text": (yarn(beta_fast="a"), "refuses", "refuses beta_fast"),
    "a beta of 0": (yarn(beta_slow=0), "accepts", "refuses beta_slow"),
    "truncate null": (yarn(truncate=None), "accepts", "accepts, differs"),  # null is as good as absent here
    "truncate 0": (yarn(truncate=0), "accepts", "refuses truncate"),
    "yarn with base 1": (yarn() | {"rotary_emb_base": 1}, "refuses", "refuses rotary_emb_base"),
    # the lists of longrope
    "longrope with one list": (longrope(long_factor=None), "refuses", "refuses long_factor"),
    "lists too short": (longrope(short_factor=[1.0, 2.0, 3.0]), "refuses", "refuses short_factor"),
    "lists of one": (longrope(short_factor=[1.0], long_factor=[2.0]), "warns", "refuses short_factor"),
    "a list as text": (longrope(short_factor="1234"), "refuses", "refuses short_factor"),
    "a list of texts": (longrope(short_factor=["1"] * 4), "refuses", "refuses short_factor"),
    "a list with 0": (longrope(short_factor=[0.0, 1.0, 1.0, 1.0]), "accepts", "refuses short_factor"),
    # the bands of llama3
    "llama3 with one band": (llama3(low_freq_factor=None), "refuses", "refuses low_freq_factor"),
    "bands the wrong way round": (llama3(low_freq_factor=5.0), "warns", "refuses high_freq_factor"),
    "bands that touch": (llama3(low_freq_factor=4.0), "warns", "refuses high_freq_factor"),
    # base and share
    "a share of 0": ({"rotary_pct": 0}, "accepts", "refuses rotary_pct"),
    "too small a share": ({"rotary_pct": 0.1}, "accepts", "refuses rotary_pct"),
    "a share of more than 1": ({"rotary_pct": 1.5}, "accepts", "refuses rotary_pct"),
    "a negative share": ({"rotary_pct": -1.0}, "refuses", "refuses rotary_pct"),
    "a share as text": ({"rotary_pct": "half"}, "refuses", "refuses rotary_pct"),
    "an odd number of dimensions": ({"rotary_pct": 0.4}, "accepts", "refuses rotary_pct"),
    "dynamic with two dimensions": (
        scaling("dynamic", factor=2.0) | {"rotary_pct": 0.25}, "refuses", "refuses rotary_pct",
    ),
    "a base of 0": ({"rotary_emb_base": 0}, "accepts", "refuses rotary_emb_base"),
    "a base as text": ({"rotary_emb_base": "1"}, "refuses", "refuses rotary_emb_base"),
    "no base": ({"rotary_emb_base": None}, "refuses", "accepts"),
    # two spellings at once: of ours the earlier one wins, and a base or share beside the object is heard
    "two objects": (
        scaling("linear", factor=2.0) | {"rope_parameters": {"rope_type": "linear", "factor": 4.0}},
        "accepts", "accepts",
    ),
    "an empty object and another": (
        {"rope_scaling": {}, "rope_parameters": {"rope_type": "linear", "factor": 4.0}}, "accepts", "accepts",
    ),
    "two shares": ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "accepts", "accepts, differs"),
    "two bases": (
        {"rotary_emb_base": 10, "rope_parameters": {"rope_theta": 100.0}}, "accepts", "accepts, differs",
    ),
    "another name of the base": ({"rope_theta": 100.0}, "accepts", "accepts, differs"),
}  # fmt: skip

POSITIONS = np.array([[0, 1, 2, 31, 32], [0, 1, 2, 63, 100]])


def settings_of(name: str, family: str) -> dict[str, Any]:
    base = {"model_type": family, "hidden_size": 32, "num_attention_heads": 4, "max_position_embeddings": 64}
    return {**base, "rotary_pct": 1.0, **SETTINGS[name][0]}


def what_they_do(settings: dict[str, Any]) -> tuple[str, Tables | None]:
    heard: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(record.getMessage())

    logger, ear = logging.getLogger("transformers"), Ear()
    level = logger.level
    transformers.utils.logging.warning_once.cache_clear()
    logger.addHandler(ear)
    logger.setLevel(logging.WARNING)
    try:
        tables = their_tables(settings, POSITIONS, "float64")
    except Exception:
        return "refuses", None
    finally:
        logger.removeHandler(ear)
        logger.setLevel(level)
    return "warns" if heard else "accepts", tables


def what_we_do(settings: dict[str, Any], backend: str) -> tuple[str, Tables | None]:
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            tables = our_tables(settings, POSITIONS, "float64", backend)
        except ConfigError as error:
            return f"refuses {error.key}", None
    return "warns" if heard else "accepts", tables


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", SETTINGS)
def test_settings_are_refused_as_the_table_says(name: str, family: str, backend: str) -> None:
    settings, (_, they, we) = settings_of(name, family), SETTINGS[name]
    their_answer, their_numbers = what_they_do(settings)
    our_answer, our_numbers = what_we_do(settings, backend)
    assert their_answer == they
    assert our_answer == we.removesuffix(", differs")
    if our_numbers is not None and their_numbers is not None:
        same = our_numbers[0].shape == their_numbers[0].shape and all(
            np.allclose(ours, theirs, rtol=0, atol=1e-12)
            for ours, theirs in zip(our_numbers, their_numbers, strict=True)
        )
        assert same != we.endswith("differs")


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": None, "factor": 2.0},
        {"rope_type": None, "type": "linear", "factor": 2.0},
        {"type": None},
        {"rope_theta": None},
        {"partial_rotary_factor": None},
    ],
)
def test_null_is_as_good_as_absent_or_refused(rope: dict[str, Any], backend: str) -> None:
    settings = settings_of("nothing", "gpt_neox")
    del settings["rotary_pct"]
    assert what_we_do({**settings, "rope_parameters": rope}, backend)[0].partition(" ")[0] in (
        "accepts",
        "refuses",
    )
