"""Live comparison with transformers: random small models, and the model that ships inside the package."""

from __future__ import annotations

import copy
import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import refimpl

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

FLOAT32_FLOOR = 5e-6
FLOAT64_LIMIT = 1e-11

TEXTS = [
    "吾輩は猫である。名前はまだ無い。",
    "むかしむかし、あるところに",
    "雨が降って来た。私は",
    "「どうしたんです」と彼は",
    "その夜、",
    "東京の町を歩きながら、僕は考えた。",
]


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    """Small products are quickest, and reproducible, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        yield
    torch.set_num_threads(threads)


# --- transformers in two precisions --------------------------------------------------------------


def in_float64(model: Any) -> Any:
    """A copy of a transformers model that computes in float64, with rotary tables in float64 too."""
    twin = copy.deepcopy(model).double()
    config = twin.config
    width = int(
        config.hidden_size // config.num_attention_heads * config.rope_parameters["partial_rotary_factor"]
    )
    frequencies = torch.tensor(
        [config.rope_parameters["rope_theta"] ** (-2 * i / width) for i in range(width // 2)],
        dtype=torch.float64,
    )

    def tables(x: Any, position_ids: Any) -> tuple[Any, Any]:
        angles = (position_ids[..., None].double() * frequencies).repeat(1, 1, 2)
        return angles.cos(), angles.sin()

    twin.gpt_neox_japanese.rotary_emb.forward = tables
    return twin


def load_theirs(folder: Path) -> Any:
    transformers.utils.logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the library warns of is not what this test is about
        return transformers.GPTNeoXJapaneseForCausalLM.from_pretrained(
            folder, attn_implementation="eager", dtype=torch.float32
        ).eval()


def compare(folder: Path, backend: str, call: dict[str, Any], theirs: Any, what: str) -> None:
    """Our logits against transformers in float64, by the float32 rule and in float64, at real tokens."""
    real = call.get("attention_mask", np.ones(call["input_ids"].shape)) == 1
    given = {name: torch.from_numpy(array) for name, array in call.items()}
    exact = in_float64(theirs)(**given).logits.numpy()[real]
    single = theirs(**given).logits.numpy()[real]
    largest = np.abs(exact).max()
    limits = {
        "float32": max(FLOAT32_FLOOR, 4 * float(np.abs(single - exact).max() / largest)),
        "float64": FLOAT64_LIMIT,
    }
    for dtype, limit in limits.items():
        model = refimpl.GPTNeoXJapaneseForCausalLM.from_pretrained(folder, backend=backend, dtype=dtype)
        logits = refimpl.to_numpy(model(**call).logits)
        assert logits.dtype == dtype
        difference = float(np.abs(logits[real] - exact).max() / largest)
        assert difference <= limit, (
            f"{what}, {dtype} on {backend}: differs by {difference:.3g}, allowed {limit:.3g}"
        )


# --- random models -------------------------------------------------------------------------------


@dataclass(frozen=True)
class RandomModel:
    """A configuration drawn from a seed."""

    seed: int

    def config(self) -> Any:
        draw = np.random.default_rng(1000 + self.seed)
        heads, head_dim = int(draw.integers(1, 5)), 2 * int(draw.integers(2, 9))
        shares = [share for share in (0.25, 0.5, 0.8, 1.0) if _is_even(int(head_dim * share))]
        activations = ["gelu", "gelu_new", "gelu_fast", "quick_gelu", "relu", "silu", "mish", "prelu"]
        return transformers.GPTNeoXJapaneseConfig(
            vocab_size=int(draw.integers(20, 100)),
            hidden_size=heads * head_dim,
            num_attention_heads=heads,
            num_hidden_layers=int(draw.integers(1, 5)),
            intermediate_multiple_size=int(draw.integers(1, 5)),
            hidden_act=activations[self.seed % len(activations)],
            layer_norm_eps=float(draw.choice([1e-12, 1e-5, 1e-3])),
            rotary_pct=float(draw.choice(shares)),
            rotary_emb_base=int(draw.choice([100, 10000, 500000])),
            max_position_embeddings=128,
            tie_word_embeddings=bool(draw.integers(0, 4)),
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )

    def save(self, folder: Path) -> None:
        config = self.config()
        model = transformers.GPTNeoXJapaneseForCausalLM._from_config(config, attn_implementation="eager")
        torch.manual_seed(self.seed)
        for name, parameter in model.named_parameters():
            spread = 1.0 / math.sqrt(max(parameter.shape[-1], 4))
            centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.normal_(centre, spread)
        transformers.utils.logging.disable_progress_bar()
        model.save_pretrained(folder)

    def calls(self) -> dict[str, dict[str, Any]]:
        draw, vocab = np.random.default_rng(2000 + self.seed), self.config().vocab_size
        batch, seq = int(draw.integers(2, 5)), int(draw.integers(6, 40))
        ids = draw.integers(3, vocab, size=(batch, seq))
        amounts = draw.integers(0, seq - 1, size=batch)
        amounts[0] = 0
        right = (np.arange(seq) < seq - amounts[:, None]).astype(np.int64)
        left = np.ascontiguousarray(right[:, ::-1])
        positions = np.maximum(np.cumsum(left, axis=1) - 1, 0)
        shuffled = np.sort(draw.integers(0, 120, size=(batch, seq)), axis=1)
        ones = np.ones_like(ids)
        return {
            "plain": {"input_ids": ids},
            "left padding": {"input_ids": ids * left, "attention_mask": left, "position_ids": positions},
            "right padding": {"input_ids": ids * right, "attention_mask": right},
            "own positions": {"input_ids": ids, "attention_mask": ones, "position_ids": shuffled},
        }


def _is_even(width: int) -> bool:
    return width >= 2 and width % 2 == 0


@pytest.mark.parametrize("seed", range(12))
def test_a_random_model_gives_the_logits_of_transformers(seed: int, backend: str, tmp_path: Path) -> None:
    RandomModel(seed).save(tmp_path)
    theirs = load_theirs(tmp_path)
    for name, call in RandomModel(seed).calls().items():
        compare(tmp_path, backend, call, theirs, f"random model {seed}, {name}")


def test_the_random_models_are_varied() -> None:
    configs = [RandomModel(seed).config() for seed in range(12)]
    assert len({config.hidden_act for config in configs}) >= 6
    assert {config.tie_word_embeddings for config in configs} == {True, False}
    assert len({config.rope_parameters["partial_rotary_factor"] for config in configs}) >= 2
    assert len({config.num_hidden_layers for config in configs}) >= 3


def test_a_damaged_model_is_noticed(backend: str, tmp_path: Path) -> None:
    """The comparison can fail: a weight that changes by a thousandth is seen."""
    RandomModel(0).save(tmp_path)
    theirs = load_theirs(tmp_path)
    theirs.gpt_neox_japanese.layers[0].attention.dense.weight.mul_(1.001)
    with pytest.raises(AssertionError, match="differs by"):
        compare(tmp_path, backend, RandomModel(0).calls()["plain"], theirs, "damaged")


# --- the embedded model --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def embedded() -> tuple[Path, Any]:
    folder = refimpl.embedded_model_path()
    if not (folder / "model.safetensors").is_file():
        pytest.skip("the embedded model is not in this checkout")
    return folder, load_theirs(folder)


@pytest.mark.parametrize("text", TEXTS)
def test_the_embedded_model_gives_the_logits_of_transformers(
    text: str, embedded: tuple[Path, Any], backend: str
) -> None:
    folder, theirs = embedded
    ids = np.array(refimpl.AutoTokenizer.from_pretrained(folder)([text])["input_ids"])
    their_tokenizer = transformers.GPTNeoXJapaneseTokenizer(folder / "vocab.txt", folder / "emoji.json")
    assert ids.tolist() == [their_tokenizer(text)["input_ids"]]
    compare(folder, backend, {"input_ids": ids}, theirs, text)


@pytest.mark.parametrize("text", TEXTS)
def test_the_embedded_model_continues_like_transformers(
    text: str, embedded: tuple[Path, Any], backend: str
) -> None:
    """Greedy ids, up to the first step at which two tokens lie closer than rounding can tell."""
    folder, theirs = embedded
    model = refimpl.GPTNeoXJapaneseForCausalLM.from_pretrained(folder, backend=backend, dtype="float32")
    ids = np.array(refimpl.AutoTokenizer.from_pretrained(folder)([text])["input_ids"])
    asked: dict[str, Any] = {"max_new_tokens": 24, "do_sample": False}
    out = theirs.generate(
        torch.from_numpy(ids),
        attention_mask=torch.ones(ids.shape, dtype=torch.int64),
        return_dict_in_generate=True,
        output_logits=True,
        **asked,
    )
    best = torch.stack(out.logits).topk(2, dim=-1).values[:, 0]  # [new, 2]
    close = np.flatnonzero((best[:, 0] - best[:, 1] < 1e-4 * best.abs().max()).numpy())
    compared = ids.shape[1] + (int(close[0]) if close.size else len(best))
    found = refimpl.to_numpy(model.generate(ids, **asked))
    assert found[:, :compared].tolist() == out.sequences.numpy()[:, :compared].tolist()
