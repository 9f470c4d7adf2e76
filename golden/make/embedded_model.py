"""The small model that ships inside the package, as its trainer and its exporter know it.

Its shape, its tokenizer, the function that the trainer minimises, and the measure that the model card states.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import GPTNeoXJapaneseConfig, GPTNeoXJapaneseForCausalLM, GPTNeoXJapaneseTokenizer

WORK = Path(__file__).parent / "scratch"
CHECKPOINT = WORK / "checkpoint.pt"
LOG = WORK / "log.jsonl"
CONTEXT = 512  # positions the model promises
TOKENS_PER_STEP = 4096  # of training

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def model_config(tokenizer: GPTNeoXJapaneseTokenizer) -> GPTNeoXJapaneseConfig:
    return GPTNeoXJapaneseConfig(
        vocab_size=len(tokenizer.ids_to_tokens),
        hidden_size=320,
        num_hidden_layers=5,
        num_attention_heads=5,
        intermediate_multiple_size=4,
        max_position_embeddings=CONTEXT,
        attention_dropout=0.0,
        hidden_dropout=0.0,
        bos_token_id=tokenizer.vocab["<|startoftext|>"],
        eos_token_id=tokenizer.vocab["<|endoftext|>"],
        pad_token_id=tokenizer.vocab["<|endoftext|>"],
    )


_tokenizers: dict[Path, GPTNeoXJapaneseTokenizer] = {}


def load_tokenizer(folder: Path = WORK) -> GPTNeoXJapaneseTokenizer:
    if folder not in _tokenizers:
        _tokenizers[folder] = GPTNeoXJapaneseTokenizer(str(folder / "vocab.txt"), str(folder / "emoji.json"))
    return _tokenizers[folder]


def token_losses(model: GPTNeoXJapaneseForCausalLM, length: int) -> Loss:
    """(inputs, targets) [batch, length] -> the loss of every token, in nats.

    The same function as the model itself, over the model's own parameters, with the matrix products in bfloat16:
    written flat, because torch.compile then makes it twice as fast on a CPU.  `check_against_transformers` proves it.
    """
    config, body = model.config, model.gpt_neox_japanese
    heads, size = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    frequencies = config.rope_parameters["rope_theta"] ** (-torch.arange(0, size, 2) / size)
    angles = (torch.arange(length)[:, None] * frequencies).repeat(1, 2)[None, :, None]
    cos, sin = angles.cos().bfloat16(), angles.sin().bfloat16()

    def rotate(x: torch.Tensor) -> torch.Tensor:
        first, second = x.chunk(2, -1)
        return (x * cos + torch.cat([-second, first], -1) * sin).transpose(1, 2)

    def linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.linear(x, weight.bfloat16())

    def norm(x: torch.Tensor, layer: torch.nn.LayerNorm) -> torch.Tensor:
        return F.layer_norm(x, (config.hidden_size,), layer.weight, layer.bias, layer.eps).bfloat16()

    def losses(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        x = F.embedding(inputs, body.embed_in.weight)
        for layer in body.layers:
            qkv = linear(norm(x, layer.input_layernorm), layer.attention.query_key_value.weight)
            query, key, value = qkv.view(*inputs.shape, heads, 3 * size).split(size, -1)
            mixed = F.scaled_dot_product_attention(
                rotate(query), rotate(key), value.transpose(1, 2), is_causal=True
            )
            x = x + linear(mixed.transpose(1, 2).flatten(2), layer.attention.dense.weight)
            if layer.attention.dense_bias is not None:
                x = x + layer.attention.dense_bias
            wide = linear(norm(x, layer.post_attention_layernorm), layer.mlp.dense_h_to_4h.weight)
            x = x + linear(F.gelu(wide), layer.mlp.dense_4h_to_h.weight)
        logits = linear(norm(x, body.final_layer_norm), body.embed_in.weight).float()
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)

    return losses


def check_against_transformers(model: GPTNeoXJapaneseForCausalLM, block: np.ndarray) -> None:
    rows = torch.from_numpy(block.astype(np.int64))
    inputs, targets = rows[:, :-1], rows[:, 1:]
    with torch.no_grad():
        expected = F.cross_entropy(model(input_ids=inputs).logits.flatten(0, 1), targets.flatten())
        found = token_losses(model, inputs.shape[1])(inputs, targets).mean()
    if abs(found - expected) > 0.01:
        raise SystemExit(f"the fast loss {found:.4f} is not the model's {expected:.4f}")


@torch.no_grad()
def bits_per_character(model: GPTNeoXJapaneseForCausalLM, characters: int | None) -> float:
    """Bits that the held-back works take, divided by their characters.

    Each work is <|startoftext|> and its tokens; windows of CONTEXT tokens advance by half a window, and a token
    is counted in the first window that holds it: every token but those at a work's start is predicted from
    at least CONTEXT/2 tokens.  With `characters`, only about so many characters of each work are used.
    """
    sizes = json.loads((WORK / "held_back.json").read_text())
    ids = np.load(WORK / "held_back.npy").astype(np.int64)
    losses = token_losses(model, CONTEXT)
    rows, keep, end, total = [], [], 0, 0.0
    for tokens, length in zip(sizes["tokens"], sizes["characters"], strict=True):
        work = ids[end : end + tokens - 1]  # without <|endoftext|>
        end += tokens
        if characters is not None and length > characters:
            work = work[: 1 + int((tokens - 2) * characters / length)]
            length = characters
        total += length
        for start in range(0, max(1, len(work) - 1 - CONTEXT // 2), CONTEXT // 2):
            row = np.zeros(CONTEXT + 1, dtype=np.int64)
            part = work[start : start + CONTEXT + 1]
            row[: len(part)] = part
            rows.append(row)
            keep.append((0 if start == 0 else CONTEXT // 2, len(part) - 1))
    bits = 0.0
    for first in range(0, len(rows), 16):
        block = torch.from_numpy(np.stack(rows[first : first + 16]))
        found = losses(block[:, :-1], block[:, 1:])
        bits += sum(
            float(row[a:b].sum()) for row, (a, b) in zip(found, keep[first : first + 16], strict=False)
        )
    return bits / math.log(2) / total
