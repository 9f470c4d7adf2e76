"""How far the numbers of a GPU are from float64: of the embedded model, which knows real text."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any

import numpy as np

from refimpl.auto import AutoModelForCausalLM, AutoTokenizer
from refimpl.cache import DynamicCache
from refimpl.cli.bench.texts import samples
from refimpl.embedded_model import embedded_model_path
from refimpl.generation.next_logits import NextLogits

#: Pieces of text, tokens of each, and how many of the first piece are also written one by one.
SCALE = {"pieces": 16, "length": 256, "written": 128}

FORMS = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Difference:
    """Two sets of logits of the same tokens.

    relative: the largest difference of two logits, as a part of the largest logit.
    kl, kl_max: the Kullback-Leibler divergence of what is found from what is right, in nats: mean and largest.
    same_top: at what part of the positions the likeliest token is the same.
    """

    positions: int
    relative: float
    kl: float
    kl_max: float
    same_top: float

    @classmethod
    def of(cls, found: np.ndarray, right: np.ndarray) -> Difference:
        """2 x [positions, vocab]"""
        found = found.astype(np.float64)
        theirs, ours = _log_softmax(right), _log_softmax(found)
        kl = (np.exp(theirs) * (theirs - ours)).sum(axis=-1)
        same = found.argmax(axis=-1) == right.argmax(axis=-1)
        relative = np.abs(found - right).max() / np.abs(right).max()
        return cls(len(right), float(relative), float(kl.mean()), float(kl.max()), float(same.mean()))


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def numbers(device: str) -> dict[str, Any]:
    """dtype -> `read` (the text at once) and `written` (token by token), each a `Difference` as a dict.

    Right is float64 by the definitions, of the weights as they are in the file.
    """
    ids = text_ids(**{name: SCALE[name] for name in ("pieces", "length")})
    right = _model("numpy", "cpu", "float64")(input_ids=ids, use_cache=False).logits
    found: dict[str, Any] = {}
    for form in FORMS:
        model = _model("cupy", device, None if form == "float32" else form)
        read = model.backend.to_numpy(model(input_ids=ids, use_cache=False).logits)
        written = _written(model, ids[:1, : SCALE["written"]])
        found[form] = {
            "read": asdict(Difference.of(*(one.reshape(-1, one.shape[-1]) for one in (read, right)))),
            "written": asdict(Difference.of(written, right[0, 3 : SCALE["written"]])),
        }
    del model
    import_module("cupy").get_default_memory_pool().free_all_blocks()  # for whoever is measured next
    return found


def _model(backend: str, device: str, dtype: str | None) -> Any:
    return AutoModelForCausalLM.from_pretrained(
        embedded_model_path(), backend=backend, device=device, dtype=dtype
    )


def text_ids(pieces: int, length: int) -> np.ndarray:
    """Tokens of Japanese prose.  -> [pieces, length]"""
    (text,) = samples(["japanese"])
    tokenizer = AutoTokenizer.from_pretrained(embedded_model_path())
    # A token is a character at least, more or less; what is too short is read again.
    ids = tokenizer(text.content[: 8 * pieces * length])["input_ids"]
    return np.resize(np.array(ids), (pieces, length))


def _written(model: Any, ids: np.ndarray) -> np.ndarray:
    """The logits after 4, 5, ... tokens, each computed when those before it are in the cache."""
    next_logits = NextLogits(model, np.ones((1, 4), np.int64), DynamicCache())
    return np.concatenate([next_logits(ids[:, :end]).copy() for end in range(4, ids.shape[1] + 1)])
