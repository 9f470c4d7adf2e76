"""Small models drawn from a seed, saved by transformers, and calls for them."""

from __future__ import annotations

import copy
import json
import math
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tests.conformance.comparison import FAMILIES, Call
from tests.conformance.theirs import torch, transformers

Draw = np.random.Generator

ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")

#: How `config.json` says it: as version 5 writes it, or as earlier ones do, where the type has two names and
#: the length that the model was first trained for may stand beside the rest.
SPELLINGS = (
    "rope_parameters",
    "rope_scaling with rope_type",
    "rope_scaling with type",
    "rope_scaling with type, length beside it",
)

#: How many random models are compared; of heads and rotary settings it is a part of it.
MODELS = int(os.environ.get("REFIMPL_MODELS", "48"))

ACTIVATIONS = sorted(transformers.activations.ACT2FN)

VOCABULARY_FLOOR = 3  # the ids below are special


def random_rope(draw: Draw, rope_type: str, width: int, longest: int) -> dict[str, Any]:
    """The settings of a rotary type for `width` rotated dimensions, without base and share."""

    def number(low: float, high: float) -> float:
        return round(float(draw.uniform(low, high)), 3)

    def maybe(**settings: Any) -> dict[str, Any]:
        return {name: value for name, value in settings.items() if draw.random() < 0.4}

    rope: dict[str, Any] = {"rope_type": rope_type}
    trained = int(draw.integers(max(2, longest // 4), longest + 1))
    if rope_type in ("linear", "dynamic"):
        rope["factor"] = number(1, 8)
    elif rope_type == "yarn":
        # Without a factor version 5 wants the key to be there, and empty.
        rope |= {"factor": number(1, 8) if draw.random() < 0.8 else None}
        rope |= maybe(original_max_position_embeddings=trained, truncate=bool(draw.integers(2)))
        rope |= maybe(beta_fast=number(4, 40), beta_slow=number(0.05, 3), attention_factor=number(0.5, 1.4))
        if draw.random() < 0.4:
            rope |= {"mscale": number(0.3, 2)} | maybe(mscale_all_dim=number(0.3, 2))
    elif rope_type == "longrope":
        rope |= {f"{name}_factor": [number(1, 6) for _ in range(width // 2)] for name in ("short", "long")}
        rope |= maybe(original_max_position_embeddings=trained, attention_factor=number(0.5, 1.4))
        rope |= maybe(factor=number(1, 8))
    elif rope_type == "llama3":
        low = number(0.05, 2)
        rope |= {"factor": number(1, 16), "low_freq_factor": low, "high_freq_factor": low + number(0.1, 8)}
        rope |= maybe(original_max_position_embeddings=trained)
    return rope


def spell(settings: dict[str, Any], spelling: str) -> dict[str, Any]:
    """The content of a `config.json` that has `rope_parameters`, in one of `SPELLINGS`."""
    settings = dict(settings)
    if spelling == "rope_parameters":
        return settings
    rope = dict(settings.pop("rope_parameters"))
    settings |= {
        "rotary_emb_base": rope.pop("rope_theta"),
        "rotary_pct": rope.pop("partial_rotary_factor"),
    }
    if "with type" in spelling:
        rope = {"type": rope.pop("rope_type"), **rope}
    if spelling.endswith("length beside it") and "original_max_position_embeddings" in rope:
        settings["original_max_position_embeddings"] = rope.pop("original_max_position_embeddings")
    settings["rope_scaling"] = rope if len(rope) > 1 else None
    return settings


@dataclass(frozen=True)
class RandomModel:
    """A configuration, weights and calls, all drawn from a seed.

    Families, rotary types, spellings and activations take turns, so that a few dozen seeds have them all.
    """

    seed: int
    family_of_seed: str | None = None

    @property
    def family(self) -> str:
        return self.family_of_seed or tuple(FAMILIES)[self.seed % 2]

    @property
    def rope_type(self) -> str:
        return ROPE_TYPES[self.seed // 2 % len(ROPE_TYPES)]

    @property
    def spelling(self) -> str:
        return SPELLINGS[self.seed // 12 % len(SPELLINGS)]

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The content of `config.json` in the spelling of version 5."""
        draw = np.random.default_rng(1000 + self.seed)
        head_dim = int(draw.integers(4, 17))
        # A norm over a few numbers can make any rounding large, where they happen to be nearly equal.
        heads = int(draw.integers(-(-16 // head_dim), 6))
        width = 2 * int(draw.integers(2 if self.rope_type == "dynamic" else 1, head_dim // 2 + 1))
        # What is left of the share is cut off.
        share = (width if width == head_dim else width + float(draw.choice([0.25, 0.75]))) / head_dim
        assert int(head_dim * share) == width
        longest = int(draw.integers(8, 65))
        settings = {
            "model_type": self.family,
            "vocab_size": int(draw.integers(20, 100)),
            "hidden_size": heads * head_dim,
            "num_attention_heads": heads,
            "num_hidden_layers": int(draw.integers(1, 5)),
            "hidden_act": ACTIVATIONS[self.seed % len(ACTIVATIONS)],
            "layer_norm_eps": float(draw.choice([1e-12, 1e-5, 1e-3, 0.1])),
            "max_position_embeddings": longest,
            "tie_word_embeddings": bool(draw.integers(2)),
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
            "rope_parameters": {
                "rope_theta": float(draw.choice([50.5, 100, 10000, 500000])),
                "partial_rotary_factor": share,
                **random_rope(draw, self.rope_type, width, longest),
            },
        }
        if self.family == "gpt_neox":
            settings |= {
                "intermediate_size": int(draw.integers(1, 80)),
                "use_parallel_residual": bool(draw.integers(2)),
                "attention_bias": bool(draw.integers(2)),
            }
        else:
            settings |= {"intermediate_multiple_size": int(draw.integers(1, 5))}
        return settings

    def spelt(self) -> dict[str, Any]:
        """The content of `config.json` in the spelling of this seed."""
        return spell(self.settings, self.spelling)

    def save(self, folder: Path, model_class: str = "ForCausalLM", **more: Any) -> None:
        """Write the model as transformers does, and then `config.json` once more in its own spelling.

        model_class: the class without the name of its family; more: other settings for it.
        """
        settings = copy.deepcopy({**self.settings, **more})  # the library writes into them
        config = getattr(transformers, FAMILIES[self.family] + "Config").from_dict(settings)
        model = getattr(transformers, FAMILIES[self.family] + model_class)._from_config(
            config, attn_implementation="eager"
        )
        torch.manual_seed(self.seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                spread = 1.0 / math.sqrt(max(parameter.shape[-1], 4))
                centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
                parameter.normal_(centre, spread)
        model.save_pretrained(folder)
        path = folder / "config.json"
        saved = json.loads(path.read_text(encoding="utf-8"))
        saved.pop("rope_parameters")
        path.write_text(json.dumps(saved | self.spelt()), encoding="utf-8")

    # --- calls ---------------------------------------------------------------------------------

    def calls(self) -> dict[str, Call]:
        """One call of each kind, and two in which several things come together."""
        draw = np.random.default_rng(2000 + self.seed)
        batch, seq = int(draw.integers(2, 5)), int(draw.integers(6, 40))
        ids = draw.integers(VOCABULARY_FLOOR, self.settings["vocab_size"], size=(batch, seq))
        right, left, holes = masks(draw, batch, seq)
        all_real = np.ones((batch, seq), dtype=bool)
        counted = np.maximum(np.cumsum(left, axis=1) - 1, 0)
        own = np.sort(
            draw.integers(0, 3 * self.settings["max_position_embeddings"], size=(batch, seq)), axis=1
        )
        embeds = draw.normal(size=(batch, seq, self.settings["hidden_size"])).astype(np.float32)
        padded_left = {"input_ids": ids * left, "attention_mask": left}
        found = {
            "plain": Call({"input_ids": ids}, all_real),
            "padding on the left": Call(padded_left, left == 1),
            "padding on the left, positions counted": Call(
                {**padded_left, "position_ids": counted}, left == 1
            ),
            "padding on the right": Call({"input_ids": ids * right, "attention_mask": right}, right == 1),
            "holes in the mask": Call({"input_ids": ids, "attention_mask": holes}, holes == 1),
            # Without a mask version 5 takes positions that start again for several texts in a row.
            "own positions": Call(
                {"input_ids": ids, "position_ids": own, "attention_mask": np.ones_like(ids)}, all_real
            ),
            "a mask of four dimensions": Call(
                {"input_ids": ids, "attention_mask": self.mask_of_numbers(draw, batch, seq)}, all_real
            ),
            "embeddings": Call({"inputs_embeds": embeds}, all_real),
            "the last logits": Call(
                {"input_ids": ids, "logits_to_keep": int(draw.integers(1, seq + 3))}, all_real
            ),
            "chosen logits": Call(
                {"input_ids": ids, "logits_to_keep": draw.integers(0, seq, size=int(draw.integers(1, 5)))},
                all_real,
            ),
            "labels": Call({"input_ids": ids, "labels": labels_for(draw, ids, all_real)}, all_real),
            "pieces": Call({"input_ids": ids}, all_real, random_lengths(draw, seq)),
            "pieces, padding on the left, positions counted": Call(
                {**padded_left, "position_ids": counted}, left == 1, random_lengths(draw, seq)
            ),
            "embeddings, padding on the left, own positions, labels": Call(
                {
                    "inputs_embeds": embeds,
                    "attention_mask": left,
                    "position_ids": own,
                    "labels": labels_for(draw, ids, left == 1),
                },
                left == 1,
            ),
        }
        return found

    def mask_of_numbers(self, draw: Draw, batch: int, seq: int) -> np.ndarray:
        """Each query sees itself and some others, before or after it, with numbers that favour some of them."""
        shape = (
            int(draw.choice([1, batch])),
            int(draw.choice([1, self.settings["num_attention_heads"]])),
            seq,
            seq,
        )
        visible = (draw.random(shape) < 0.5) | np.eye(seq, dtype=bool)
        return np.where(visible, draw.normal(size=shape), np.finfo(np.float32).min).astype(np.float32)


def masks(draw: Draw, batch: int, seq: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Padding on the right, on the left, and anywhere; the first row of the first two has none.  3 x [batch, seq]"""
    amounts = draw.integers(0, seq - 1, size=batch)
    amounts[0] = 0
    right = (np.arange(seq) < seq - amounts[:, None]).astype(np.int64)
    holes = (draw.random((batch, seq)) < 0.7).astype(np.int64)
    holes[:, -1] = 1
    return right, np.ascontiguousarray(right[:, ::-1]), holes


def labels_for(draw: Draw, ids: np.ndarray, real: np.ndarray) -> np.ndarray:
    """The ids themselves, except some; and none whose logits belong to padding."""
    predicted = np.concatenate([real[:, :1], real[:, :-1]], axis=1) & real
    return np.where(predicted & (draw.random(ids.shape) < 0.8), ids, -100)


def random_lengths(draw: Draw, seq: int) -> tuple[int, ...]:
    """Two to four lengths that add up to `seq`."""
    cuts = np.sort(draw.choice(np.arange(1, seq), size=int(draw.integers(1, 4)), replace=False))
    return tuple(int(length) for length in np.diff([0, *cuts, seq]))
