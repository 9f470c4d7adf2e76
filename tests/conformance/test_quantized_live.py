"""bitsandbytes itself, side by side: the same bytes, the same files, the same dense matrices.

Compared with are its functions in the form for any device.  The forms for CPUs are approximate for the absmaxes
of double quantization, and one of them takes the wrong absmax where rows are no multiple of the block:
what is known of that is tested here too, so that a new version shows.
"""

from __future__ import annotations

import os
import warnings
from typing import Any

# What its dequantization is compiled to may round in another order.
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")

import ml_dtypes
import numpy as np
import pytest

from refimpl import GPTNeoXForCausalLM, GPTNeoXJapaneseForCausalLM
from refimpl.backends.quantized import (
    NF4_CODE,
    NestedAbsmax,
    NF4Matrix,
    QuantizedMatrix,
    dynamic_code,
    nest_absmax,
    quantize_int8,
    quantize_nf4,
)
from refimpl.quantization import BitsAndBytesConfig
from refimpl.quantized_files import QuantizedTensors, stored_tensors
from tests.tiny import tiny_neox

torch = pytest.importorskip("torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    bitsandbytes = pytest.importorskip("bitsandbytes")
functional = bitsandbytes.functional

pytestmark = pytest.mark.filterwarnings("ignore")

SHAPES = [(1, 1), (1, 2), (3, 5), (7, 9), (5, 64), (4, 96), (65, 65), (128, 192), (300, 257), (513, 320)]
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
KINDS = ("plain", "quarters", "zero rows", "spread", "zeros", "tiny")

every_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape[0]}x{shape[1]}")
every_dtype = pytest.mark.parametrize("dtype", DTYPES)
every_kind = pytest.mark.parametrize("kind", KINDS)


def matrix(shape: tuple[int, int], dtype: str, kind: str) -> np.ndarray:
    rng = np.random.default_rng([*shape, KINDS.index(kind)])
    array = rng.standard_normal(shape) * 10.0 ** rng.integers(-4, 3)
    if kind == "quarters":
        array = np.round(array / np.abs(array).max() * 16) / 4  # many ties
    elif kind == "zero rows":
        array[rng.integers(0, shape[0])] = array[-1] = 0
    elif kind == "spread":
        array *= 10.0 ** rng.uniform(-6, 1, shape)
    elif kind == "zeros":
        array[:] = 0
    elif kind == "tiny":
        array *= 1e-38
    return array.astype(DTYPES[dtype])


def tensor_of(array: np.ndarray) -> Any:
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.uint16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


def array_of(tensor: Any) -> np.ndarray:
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def same_bits(found: np.ndarray, wanted: np.ndarray) -> bool:
    return found.dtype == wanted.dtype and found.shape == wanted.shape and found.tobytes() == wanted.tobytes()


def portable(name: str, *arguments: Any) -> Any:
    """An operation of bitsandbytes in its form for any device."""
    operation = getattr(torch.ops.bitsandbytes, name).default
    return operation._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, *arguments)


# --- tables and codes ----------------------------------------------------------------------------


def test_tables():
    assert same_bits(NF4_CODE, functional.get_4bit_type("nf4", device="cpu").numpy())
    assert same_bits(dynamic_code(), functional.create_dynamic_map().numpy())


@every_shape
@every_dtype
@every_kind
def test_int8(shape, dtype, kind):
    array = matrix(shape, dtype, kind)
    theirs = bitsandbytes.nn.Int8Params(tensor_of(array), requires_grad=False, has_fp16_weights=False).to(
        "cpu"
    )
    ours = quantize_int8(array)
    assert same_bits(ours.CB, theirs.CB.numpy())
    assert same_bits(ours.SCB, theirs.SCB.numpy())
    assert same_bits(ours.dense(), functional.int8_vectorwise_dequant(theirs.CB, theirs.SCB).numpy())


@every_shape
@every_dtype
@every_kind
@pytest.mark.parametrize("block", [32, 64, 256])
def test_nf4(shape, dtype, kind, block):
    array = matrix(shape, dtype, kind)
    packed, absmax = portable("quantize_4bit", tensor_of(array), block, "nf4", torch.uint8)
    ours = quantize_nf4(array, block=block)
    assert same_bits(ours.packed, packed.numpy().reshape(-1))
    assert same_bits(ours.absmax, absmax.numpy())
    for wanted in DTYPES:
        theirs = portable("dequantize_4bit", packed, absmax, block, "nf4", shape, getattr(torch, wanted))
        assert same_bits(ours.astype(DTYPES[wanted]), array_of(theirs.reshape(shape)))


@every_shape
@every_kind
@pytest.mark.parametrize("block", [32, 64])
def test_double_quantization(shape, kind, block):
    absmax = quantize_nf4(matrix(shape, "float32", kind), block=block).absmax
    offset = torch.from_numpy(absmax.copy()).mean()
    ours = nest_absmax(absmax, float(offset))
    theirs = torch.from_numpy(absmax.copy()) - offset
    table = functional.create_dynamic_map()
    codes, nested = portable("quantize_blockwise", theirs, table, 256)
    assert same_bits(ours.absmax, codes.numpy())
    assert same_bits(ours.nested_absmax, nested.numpy())
    again = portable("dequantize_blockwise", codes, nested, table, 256, torch.float32) + offset
    assert same_bits(ours.values(), again.numpy())
    own = nest_absmax(absmax).nested_offset
    assert abs(own - float(offset)) <= 4 * np.spacing(np.float32(max(own, 1e-30)))


@every_shape
@pytest.mark.parametrize("double_quant", [False, True])
def test_what_bitsandbytes_made_on_this_machine_means_the_same(shape, double_quant):
    array = matrix(shape, "float32", "plain")
    packed, state = functional.quantize_4bit(
        tensor_of(array), compress_statistics=double_quant, quant_type="nf4"
    )
    absmax: Any = state.absmax.numpy()
    scales = state.absmax
    if double_quant:
        nested = state.state2
        absmax = NestedAbsmax(absmax, nested.absmax.numpy(), nested.code.numpy(), float(state.offset))
        scales = functional.dequantize_blockwise(state.absmax, nested) + state.offset
    ours = NF4Matrix(packed.numpy().reshape(-1), absmax, shape)
    assert same_bits(ours.scales, scales.numpy())
    theirs = portable("dequantize_4bit", packed, scales, 64, "nf4", shape, torch.float32)
    assert same_bits(ours.dense(), theirs.reshape(shape).numpy())
    if shape[1] % 64 == 0:
        assert same_bits(ours.dense(), functional.dequantize_4bit(packed, state).numpy().reshape(shape))


def test_the_form_for_cpus_rounds_absmaxes_less_well():
    """Its 65,536 places are coarser than the table near 0: other codes, and never a nearer value."""
    absmax = quantize_nf4(matrix((512, 1024), "float32", "plain")).absmax
    ours = nest_absmax(absmax)
    theirs = torch.from_numpy(absmax) - ours.nested_offset
    codes, _ = functional.quantize_blockwise(theirs, blocksize=256)
    other = codes.numpy() != ours.absmax
    assert 0 < other.mean() < 0.02
    unit = ours.nested_absmax.repeat(256)[: absmax.size]
    wanted = theirs.numpy() / unit
    distances = [np.abs(dynamic_code()[c] - wanted)[other] for c in (ours.absmax, codes.numpy())]
    assert (distances[0] <= distances[1] + 1e-7).all()
    assert distances[1].max() < 0.01


# --- files ---------------------------------------------------------------------------------------


def saved(module: Any, name: str) -> dict[str, np.ndarray]:
    """What a layer of bitsandbytes puts into a file."""
    return {f"{name}.{key}": value.numpy() for key, value in module.state_dict().items()}


def as_stored(tensors: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    return stored_tensors(f"{name}.weight", QuantizedTensors(tensors)[f"{name}.weight"])


@pytest.mark.parametrize("shape", [(64, 96), (7, 9), (300, 128)])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("form", ["int8", "nf4", "nf4 double"])
def test_files_survive_in_both_directions(shape, dtype, form):
    array = matrix(shape, dtype, "plain")
    out, width = shape
    if form == "int8":
        layer = bitsandbytes.nn.Linear8bitLt(width, out, bias=False, has_fp16_weights=False)
        layer.weight = bitsandbytes.nn.Int8Params(
            tensor_of(array), requires_grad=False, has_fp16_weights=False
        )
    else:
        layer = bitsandbytes.nn.Linear4bit(width, out, bias=False, quant_type="nf4")
        layer.weight = bitsandbytes.nn.Params4bit(
            tensor_of(array),
            requires_grad=False,
            compress_statistics=form != "nf4",
            quant_type="nf4",
            module=layer,
        )
    theirs = saved(layer.to("cpu"), "a.dense")
    read = QuantizedTensors(theirs)
    assert list(read) == ["a.dense.weight"]
    ours = as_stored(theirs, "a.dense")
    assert set(ours) == set(theirs)
    for name, wanted in theirs.items():
        assert same_bits(np.asarray(ours[name]), wanted), name
    # A file of ours, in bitsandbytes.
    mine = quantize_int8(array) if form == "int8" else quantize_nf4(array, double_quant=form != "nf4")
    tensors = stored_tensors("a.dense.weight", mine)
    if form == "int8":
        again = functional.int8_vectorwise_dequant(
            *(torch.from_numpy(tensors[f"a.dense.{n}"].copy()) for n in ("weight", "SCB"))
        )
    else:
        parts = {k.removeprefix("a.dense.weight."): v for k, v in tensors.items() if k != "a.dense.weight"}
        state = functional.QuantState.from_dict(
            {k: torch.from_numpy(v.copy()) for k, v in parts.items()}, device=torch.device("cpu")
        )
        assert str(state.dtype) == f"torch.{dtype}"
        for name, value in state.as_dict(packed=True).items():
            assert same_bits(value.numpy(), np.asarray(parts[name])), name
        absmax = state.absmax
        if state.nested:
            absmax = functional.dequantize_blockwise(absmax, state.state2) + state.offset
        packed = torch.from_numpy(tensors["a.dense.weight"].copy())
        again = portable("dequantize_4bit", packed, absmax, 64, "nf4", shape, torch.float32).reshape(shape)
    assert same_bits(mine.dense(), again.numpy())


# --- whole models, through transformers ----------------------------------------------------------

SETTINGS = {
    "int8": {"load_in_8bit": True},
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "nf4 double": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
}


@pytest.fixture
def transformers() -> Any:
    pytest.importorskip("accelerate", reason="transformers needs it to load with bitsandbytes")
    found = pytest.importorskip("transformers")
    found.utils.logging.disable_progress_bar()
    found.utils.logging.set_verbosity_error()
    return found


def same_parts(ours: Any, theirs: dict[str, np.ndarray], inexact_absmax: bool) -> None:
    """Every tensor of a model that transformers saved, against what we would write."""
    found: dict[str, np.ndarray] = {}
    for key, weight in ours.state_dict().items():
        if isinstance(weight, QuantizedMatrix):
            found |= stored_tensors(key, weight)
    quantized = {k for k in theirs if k.endswith((".SCB", "__nf4"))}
    assert {k for k in found if k.endswith((".SCB", "__nf4"))} == quantized
    for name in found:
        # The bytes of nested absmaxes are made by the form for CPUs there; their mean is added up otherwise.
        if not (inexact_absmax and name.endswith((".absmax", "nested_absmax", "__nf4"))):
            assert same_bits(np.asarray(found[name]), theirs[name]), name


@pytest.mark.parametrize("form", SETTINGS)
def test_a_model_that_transformers_saved(transformers, form, embedded_model, tmp_path):
    from safetensors.numpy import load_file

    theirs = transformers.GPTNeoXJapaneseForCausalLM.from_pretrained(
        embedded_model,
        quantization_config=transformers.BitsAndBytesConfig(**SETTINGS[form]),
        device_map="cpu",
        dtype=torch.float16,
    )
    theirs.save_pretrained(tmp_path)
    read = GPTNeoXJapaneseForCausalLM.from_pretrained(tmp_path, backend="numpy")
    own = GPTNeoXJapaneseForCausalLM.from_pretrained(
        embedded_model, backend="numpy", quantization_config=BitsAndBytesConfig(**SETTINGS[form])
    )
    tensors = load_file(tmp_path / "model.safetensors")
    same_parts(read, tensors, inexact_absmax=False)
    same_parts(own, tensors, inexact_absmax=form == "nf4 double")
    ids = np.array([[5, 77, 1203, 9, 31]])
    assert np.abs(read(ids).logits - own(ids).logits).max() < (0.05 if form == "nf4 double" else 1e-9)


@pytest.mark.parametrize("skip", [None, [], ["lm_head"], ["dense", "gpt_neox.layers.1"]])
def test_the_same_layers_are_quantized(transformers, skip, tmp_path):
    ours = tiny_neox(hidden_size=64, num_attention_heads=2, intermediate_size=128, tie_word_embeddings=False)
    from safetensors.numpy import save_file

    save_file(ours.state_dict(), tmp_path / "model.safetensors", metadata={"format": "pt"})
    ours.config.save_pretrained(tmp_path)
    settings = {**SETTINGS["nf4"], "llm_int8_skip_modules": skip}
    theirs = transformers.GPTNeoXForCausalLM.from_pretrained(
        tmp_path, quantization_config=transformers.BitsAndBytesConfig(**settings), device_map="cpu"
    )
    kinds = {
        f"{name}.weight".replace("lm_head", "embed_out")  # transformers 5 has renamed the head
        for name, part in theirs.named_modules()
        if "4bit" in type(part).__name__
    }
    mine = GPTNeoXForCausalLM.from_pretrained(
        tmp_path, backend="numpy", quantization_config=BitsAndBytesConfig(**settings)
    )
    assert {k for k, w in mine.state_dict().items() if isinstance(w, QuantizedMatrix)} == kinds


def test_configs_are_understood_in_both_directions(transformers):
    for settings in SETTINGS.values():
        theirs = transformers.BitsAndBytesConfig(**settings, bnb_4bit_compute_dtype="float16")
        ours = BitsAndBytesConfig(**settings, bnb_4bit_compute_dtype="float16")
        assert BitsAndBytesConfig.from_dict(theirs.to_dict()) == ours
        assert transformers.BitsAndBytesConfig.from_dict(ours.to_dict()).to_dict() == theirs.to_dict()
