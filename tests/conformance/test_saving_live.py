"""What we save, read by transformers: the same model, bit for bit, in every state that a killed save can leave."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import refimpl
from refimpl import cli
from refimpl.checkpoints import SafetensorsFile
from refimpl.checkpoints.safetensors_writer import size_in_bytes
from refimpl.checkpoints.saving import is_weight_file, save_model
from refimpl.quantized_files import stored_tensors
from tests.conformance.comparison import FAMILIES
from tests.conformance.random_models import ROPE_TYPES, SPELLINGS, RandomModel
from tests.conformance.theirs import torch, transformers
from tests.refimpl.checkpoints.failures import (
    CHANGES,
    MODELS,
    TRANSITIONS,
    digests_of,
    every_operation,
    held,
    prepare,
    save,
    save_quickly,
)

HEADS = (
    "Model",
    "ForCausalLM",
    "ForQuestionAnswering",
    "ForSequenceClassification",
    "ForTokenClassification",
)
DTYPES = ("float32", "float16", "bfloat16")

#: Activations with which transformers cannot compute in float16.
NOT_IN_FLOAT16 = ("xielu", "prelu")


def load_as_is(folder: Path, dtype: Any = "auto") -> Any:
    """The model of a folder in the dtype that its config says; nothing may be missing or left over."""
    name = json.loads((folder / "config.json").read_bytes())["architectures"][0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, report = getattr(transformers, name).from_pretrained(
            folder, attn_implementation="eager", dtype=dtype, output_loading_info=True
        )
    assert not any(report.values()), report
    return model.eval()


def outputs(model: Any) -> list[np.ndarray]:
    ids = np.random.default_rng(0).integers(3, 20, (2, 7))
    with torch.no_grad():
        found = model(input_ids=torch.from_numpy(ids), attention_mask=torch.ones(2, 7, dtype=torch.long))
    arrays = [value for value in found.values() if torch.is_tensor(value)]
    assert arrays
    return [array.to(torch.float64).numpy() for array in arrays]


def check_same_model(one: Path, other: Path) -> None:
    theirs, ours = load_as_is(one), load_as_is(other)
    assert type(theirs) is type(ours)
    assert theirs.dtype == ours.dtype
    first, second = theirs.state_dict(), ours.state_dict()
    assert list(first) == list(second)
    assert all(torch.equal(first[name], second[name]) for name in first)
    if theirs.dtype != torch.float16 or theirs.config.hidden_act not in NOT_IN_FLOAT16:
        assert all(np.array_equal(a, b) for a, b in zip(outputs(theirs), outputs(ours), strict=True))
    settings = [model.config.to_dict() for model in (theirs, ours)]
    for values in settings:
        values.pop("_name_or_path", None)
        rope = values["rope_parameters"]
        rope.pop("type", None)  # an earlier name of rope_type
        assert values.pop("original_max_position_embeddings", None) in (  # an earlier place of it
            None,
            rope.get("original_max_position_embeddings"),
        )
    assert settings[0] == settings[1]
    if theirs.can_generate():
        settings = [model.generation_config.to_diff_dict() for model in (theirs, ours)]
        for values in settings:
            values.pop("_from_model_config", None)  # a file of ours speaks for itself
        assert settings[0] == settings[1]


def in_dtype(folder: Path, dtype: str) -> None:
    """Let transformers write the model of a folder once more, in another dtype."""
    load_as_is(folder, getattr(torch, dtype)).save_pretrained(folder)


@pytest.mark.parametrize("seed", range(0, 48, 4))
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_model_of_transformers_saved_by_us(seed, dtype, tmp_path):
    """Families, rotary types and spellings of the config take turns."""
    for number in range(seed, seed + 4):
        folder = tmp_path / str(number)
        RandomModel(number).save(folder)
        if dtype != "float32":
            in_dtype(folder, dtype)
        ours = refimpl.AutoModelForCausalLM.from_pretrained(folder)
        size = ("5GB", "20KB", 3000)[number % 3]
        save_model(ours, folder / "ours", size)
        single = (folder / "ours" / "model.safetensors").is_file()
        assert single == (ours.num_parameters() * (4 if dtype == "float32" else 2) <= size_in_bytes(size))
        check_same_model(folder, folder / "ours")
        again = refimpl.AutoModelForCausalLM.from_pretrained(folder / "ours")
        assert again.config.to_dict() == {**ours.config.to_dict(), "dtype": dtype}


def test_all_settings_were_among_them():
    models = [RandomModel(number) for number in range(48)]
    assert {model.rope_type for model in models} == set(ROPE_TYPES)
    assert {model.spelling for model in models} == set(SPELLINGS)
    assert {model.family for model in models} == set(FAMILIES)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_heads(head, dtype, tmp_path):
    RandomModel(4, "gpt_neox").save(tmp_path, head, num_labels=3)
    if dtype != "float32":
        in_dtype(tmp_path, dtype)
    ours = getattr(refimpl, f"GPTNeoX{head}").from_pretrained(tmp_path)
    save_model(ours, tmp_path / "ours")
    check_same_model(tmp_path, tmp_path / "ours")


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("size", ["1KB", "8KB", "100KB"])
def test_files_are_the_same_byte_for_byte(seed, size, tmp_path):
    """Shards, headers, and the order of everything in them; the index has one number more there."""
    RandomModel(seed, "gpt_neox_japanese").save(tmp_path)
    theirs = load_as_is(tmp_path)
    theirs._weight_conversions = None  # with them, version 5 takes the weights in the order of the alphabet
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size=size)
    save_model(refimpl.AutoModelForCausalLM.from_pretrained(tmp_path), tmp_path / "ours", size)
    names = [set(filter(is_weight_file, os.listdir(tmp_path / side))) for side in ("theirs", "ours")]
    assert names[0] == names[1]
    for name in names[0]:
        contents = [(tmp_path / side / name).read_bytes() for side in ("theirs", "ours")]
        if name.endswith(".index.json"):
            indexes = list(map(json.loads, contents))
            indexes[0]["metadata"].pop("total_parameters")
            assert indexes[0] == indexes[1]
        else:
            assert contents[0] == contents[1], name


@pytest.mark.parametrize("head", HEADS)
def test_the_order_of_the_weights(head, tmp_path):
    """What is in which shard depends on it."""
    RandomModel(4, "gpt_neox").save(tmp_path, head, num_labels=3)
    ours = getattr(refimpl, f"GPTNeoX{head}").from_pretrained(tmp_path)
    paths = save_model(ours, tmp_path / "ours", 1)
    theirs = [name.replace("lm_head", "embed_out") for name in load_as_is(tmp_path).state_dict()]
    found = [name for path in paths if path.suffix == ".safetensors" for name in SafetensorsFile(path)]
    assert found == theirs


# --- convert -------------------------------------------------------------------------------------


@pytest.fixture
def convert(monkeypatch, capsys):
    """`refimpl convert` in this process."""
    monkeypatch.setitem(cli.COMMANDS, "convert", ("convert", ""))

    def call(*arguments: Any) -> None:
        assert cli.main(["convert", *map(str, arguments)]) == 0, capsys.readouterr().err

    return call


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("form", ["safetensors", "shards", "bin", "bin shards"])
def test_convert(seed, form, convert, tmp_path):
    folder = tmp_path / "model"
    RandomModel(seed).save(folder)
    theirs = load_as_is(folder)
    if form != "safetensors":
        (folder / "model.safetensors").unlink()
    if form == "shards":
        theirs.save_pretrained(folder, max_shard_size="9KB")
    elif form != "safetensors":
        write_bin(folder, theirs, shards=form == "bin shards")
    convert(folder, tmp_path / "new", "--max-shard-size", "12KB")
    if form.startswith("bin"):
        theirs.save_pretrained(folder)
        (folder / "config.json").write_bytes((tmp_path / "new" / "config.json").read_bytes())
    check_same_model(folder, tmp_path / "new")
    for dtype in DTYPES:
        convert(tmp_path / "new", tmp_path / dtype, "--dtype", dtype)
        narrow = load_as_is(folder, getattr(torch, dtype))
        converted = load_as_is(tmp_path / dtype)
        assert converted.dtype == getattr(torch, dtype)
        assert all(np.array_equal(a, b) for a, b in zip(outputs(narrow), outputs(converted), strict=True))


def write_bin(folder: Path, model: Any, shards: bool) -> None:
    """As old versions did: the names of version 4, tied heads, and the buffers of that time."""
    tensors = {name.replace("lm_head", "embed_out"): value for name, value in model.state_dict().items()}
    for layer in range(model.config.num_hidden_layers):
        at = f"{model.base_model_prefix}.layers.{layer}.attention"
        tensors[f"{at}.bias"] = torch.tril(torch.ones(8, 8, dtype=torch.bool))[None, None]
        tensors[f"{at}.masked_bias"] = torch.tensor(-1e9)
        tensors[f"{at}.rotary_emb.inv_freq"] = torch.ones(3)
    if not shards:
        torch.save(tensors, folder / "pytorch_model.bin")
        return
    names = list(tensors)
    half = len(names) // 2
    weight_map = {}
    for number, part in enumerate((names[:half], names[half:]), 1):
        file = f"pytorch_model-0000{number}-of-00002.bin"
        torch.save({name: tensors[name].clone() for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))


# --- quantized -----------------------------------------------------------------------------------

QUANTIZATIONS = {
    "int8": {"load_in_8bit": True},
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "nf4, some layers": {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "llm_int8_skip_modules": ["dense", "gpt_neox.layers.1", "lm_head"],
    },
}


@pytest.mark.parametrize("form", QUANTIZATIONS)
@pytest.mark.parametrize("tied", [False, True])
def test_quantized_models(form, tied, tmp_path):
    """transformers loads the same bytes from our folder as from one that it quantized itself."""
    pytest.importorskip("accelerate")
    pytest.importorskip("bitsandbytes")
    from tests.tiny import tiny_neox

    save_model(
        tiny_neox(hidden_size=64, num_attention_heads=2, intermediate_size=128, tie_word_embeddings=tied),
        tmp_path,
    )
    ours = refimpl.GPTNeoXForCausalLM.from_pretrained(
        tmp_path, quantization_config=refimpl.BitsAndBytesConfig(**QUANTIZATIONS[form])
    )
    save_model(ours, tmp_path / "ours")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = transformers.GPTNeoXForCausalLM.from_pretrained(
            tmp_path,
            quantization_config=transformers.BitsAndBytesConfig(**QUANTIZATIONS[form]),
            device_map="cpu",
            dtype=torch.float32,
        )
        from_ours = transformers.GPTNeoXForCausalLM.from_pretrained(tmp_path / "ours", device_map="cpu")
    wanted, found = theirs.state_dict(), from_ours.state_dict()
    assert set(wanted) == set(found)
    for name in wanted:
        assert torch.equal(torch.as_tensor(wanted[name]), torch.as_tensor(found[name])), name
    assert all(np.array_equal(a, b) for a, b in zip(outputs(theirs), outputs(from_ours), strict=True))
    read = refimpl.GPTNeoXForCausalLM.from_pretrained(tmp_path / "ours")
    for key in ours.state_dict():
        weights = [model.backend.to_numpy(model.state_dict()[key]) for model in (ours, read)]
        if isinstance(weights[0], np.ndarray):
            assert np.array_equal(*weights)
        else:
            parts = [stored_tensors(key, weight) for weight in weights]
            assert all(np.array_equal(parts[0][name], parts[1][name]) for name in parts[0])


# --- killed saves --------------------------------------------------------------------------------


@pytest.mark.parametrize(("before", "after"), TRANSITIONS.values(), ids=TRANSITIONS)
def test_transformers_finds_one_of_the_two_models(before, after, tmp_path):
    """A copy of the folder is taken before each change on the disk, as a process that is killed then leaves it."""
    models = {name: make() for name, make in MODELS.items()}
    folder = tmp_path / "model"
    prepare(folder)
    if before:
        save_quickly(models, before, folder)
    taken: list[Path] = []

    def act(name: str, _: int) -> None:
        if name in CHANGES:
            taken.append(tmp_path / str(len(taken)))
            shutil.copytree(folder, taken[-1], symlinks=True)

    with every_operation(act):
        save(models, after, folder)
    wanted = {}
    for digest, what in zip(digests_of(models, (before, after), tmp_path), (before, after), strict=True):
        if what:
            wanted[digest] = outputs_of_ours(models[what[0]])
    seen = set()
    for copy in [*taken, folder]:
        digest = held(copy)
        seen.add(digest)
        if digest is None:
            assert before is None
            with pytest.raises((OSError, ValueError), match=r"config\.json"):
                transformers.AutoConfig.from_pretrained(copy)
        else:
            found = outputs(load_as_is(copy))[0]
            assert np.abs(found - wanted[digest]).max() < 1e-5, copy
    assert len(seen) == 2  # both were there
    assert len(taken) > 8


def outputs_of_ours(model: Any) -> np.ndarray:
    found = model(np.random.default_rng(0).integers(3, 20, (2, 7)))
    return found.logits if hasattr(found, "logits") else found.last_hidden_state
