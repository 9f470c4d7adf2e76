"""What `refimpl quantize` writes, read by transformers and bitsandbytes: the weights that they quantize themselves."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refimpl import cli
from refimpl.checkpoints.locate import find_weights, open_weights
from refimpl.checkpoints.saving import save_model
from refimpl.quantized_files import QuantizedTensors
from tests.conformance.theirs import torch, transformers
from tests.tiny import tiny_neox

FORMS = {
    "int8": (["--weight-dtype", "int8"], {"load_in_8bit": True}),
    "nf4": (["--weight-dtype", "nf4"], {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}),
}
DTYPES = ("float32", "float16", "bfloat16")
IDS = np.random.default_rng(0).integers(3, 20, (2, 7))


def loaded(folder: Path, dtype: str, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return transformers.GPTNeoXForCausalLM.from_pretrained(
            folder, device_map="cpu", dtype=getattr(torch, dtype), **options
        )


def logits(model: Any) -> np.ndarray:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of casts from the dtype of the model
        return model(input_ids=torch.from_numpy(IDS)).logits.float().numpy()


def quantized(folder: Path, dtype: str, form: list[str], **changes: Any) -> Path:
    model = tiny_neox(hidden_size=64, num_attention_heads=2, intermediate_size=128, **changes)
    save_model(model, folder / "float32")
    source, target = str(folder / dtype), str(folder / "quantized")
    if dtype != "float32":
        assert cli.main(["convert", str(folder / "float32"), source, "--dtype", dtype, "-q"]) == 0
    assert cli.main(["quantize", source, target, *form, "-q"]) == 0
    return folder / "quantized"


@pytest.fixture(autouse=True)
def packages() -> None:
    pytest.importorskip("accelerate")
    pytest.importorskip("bitsandbytes")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tied", [False, True])
def test_transformers_has_the_same_weights(form, dtype, tied, tmp_path):
    arguments, settings = FORMS[form]
    folder = quantized(tmp_path, dtype, arguments, tie_word_embeddings=tied)
    ours = loaded(folder, dtype)
    theirs = loaded(tmp_path / dtype, dtype, quantization_config=transformers.BitsAndBytesConfig(**settings))
    found, wanted = ours.state_dict(), theirs.state_dict()
    assert set(found) == set(wanted)
    assert sum(name.endswith((".SCB", ".absmax")) for name in found) == 12
    for name in wanted:
        assert torch.equal(torch.as_tensor(wanted[name]), torch.as_tensor(found[name])), name
    assert np.array_equal(logits(ours), logits(theirs))


def test_double_quantization(tmp_path):
    """bitsandbytes rounds absmaxes on a CPU in a way of its own (docs/spec/quantization.md), but reads ours."""
    from bitsandbytes import functional

    folder = quantized(tmp_path, "float32", ["--weight-dtype", "nf4", "--double-quant"])
    found = loaded(folder, "float32").state_dict()
    stored = open_weights(find_weights(folder))
    nested = [name for name in stored if name.endswith(".nested_absmax")]
    assert len(nested) == 12
    for name in stored:
        key = name.replace("embed_out", "lm_head")
        assert np.array_equal(np.asarray(found[key].detach()), stored[name]), name
    for name, matrix in QuantizedTensors(stored).items():
        if f"{name}.nested_absmax" in nested:
            parts = {
                part: value for part, value in found.items() if part.startswith(f"{name}.") or part == name
            }
            weight = parts.pop(name)
            state = functional.QuantState.from_dict(parts, device=torch.device("cpu"))
            theirs = functional.dequantize_4bit(weight, state).numpy()
            assert np.allclose(theirs, matrix.dense(), rtol=1e-6, atol=0), name
