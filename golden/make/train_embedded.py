"""Trains the small model that ships inside the package, on the CPU, and exports it.

    python golden/make/train_embedded.py                  # vocabulary, token ids, training
    python golden/make/train_embedded.py --export FOLDER  # from the last checkpoint

Everything in between lies in `golden/make/scratch/`.  A stopped run goes on from its last checkpoint (it writes
one every few minutes, and when it is told to end by SIGTERM), so that the learning rate can be made to fall earlier or
later than first planned: stop it, and start it with other `--steps`.

The model is transformers' GPTNeoXJapaneseForCausalLM, its
tokenizer transformers' own over a vocabulary that is trained here on the same works.  See README.md beside this
file for what it takes and what comes out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import corpus
import numpy as np
import torch
from embedded_model import (
    CHECKPOINT,
    CONTEXT,
    LOG,
    TOKENS_PER_STEP,
    WORK,
    bits_per_character,
    check_against_transformers,
    load_tokenizer,
    model_config,
    token_losses,
)
from export_embedded import export
from transformers import GPTNeoXJapaneseForCausalLM

REPOSITORY = Path(__file__).parents[2]
VOCAB_SIZE = 8000
LENGTH = 256  # of a training sequence; towards the end it is CONTEXT
PARTS = 4  # of a step's batch: what a worker computes at once
WARM_UP = 100
MATRIX_LR, OTHER_LR, WEIGHT_DECAY, MOMENTUM = 0.02, 3e-3, 0.1, 0.95
SEED = 20
SAMPLE_CHARACTERS = 3400  # of each held-back work, in the evaluations during training

# ---- text -> ids -------------------------------------------------------------------------------------------------


def prepare() -> None:
    """Trains the vocabulary and writes the ids of both parts of the corpus, each work as <bos> text <eos>."""
    training, held_back = corpus.split(corpus.find_works())
    if not (WORK / "vocab.txt").is_file():
        text = WORK / "training.txt"
        text.write_text("\n".join(work.text() for work in training), encoding="utf-8")
        options = ["--vocab-size", str(VOCAB_SIZE), "--output", str(WORK)]
        command = [sys.executable, "-m", "refimpl", "train-vocab", str(text), *options]
        subprocess.run(command, check=True, cwd=REPOSITORY)
    for name, works in (("training", training), ("held_back", held_back)):
        if (WORK / f"{name}.npy").is_file():
            continue
        texts = [work.text() for work in works]
        with multiprocessing.Pool(2) as pool:
            ids = pool.map(encode, texts, chunksize=8)
        sizes = {"tokens": [len(i) for i in ids], "characters": [len(text) for text in texts]}
        (WORK / f"{name}.json").write_text(json.dumps(sizes))
        np.save(WORK / f"{name}.new.npy", np.concatenate(ids))
        os.replace(WORK / f"{name}.new.npy", WORK / f"{name}.npy")


def encode(text: str) -> np.ndarray:
    tokenizer = load_tokenizer()
    ids = tokenizer.convert_tokens_to_ids(tokenizer.tokenize(text))
    return np.array([tokenizer.bos_token_id, *ids, tokenizer.eos_token_id], dtype=np.uint16)


def batches(ids: np.ndarray, length: int, first_step: int) -> Iterator[np.ndarray]:
    """[batch, length + 1] token ids, from `first_step` on; each epoch shifts and shuffles anew."""
    batch = TOKENS_PER_STEP // length
    blocks = (len(ids) - 1) // length - 1
    step = first_step
    while True:
        rows = []
        for sample in range(step * batch, (step + 1) * batch):
            epoch, index = divmod(sample, blocks)
            shift, order = _epoch_order(epoch, length, blocks)
            start = shift + int(order[index]) * length
            rows.append(ids[start : start + length + 1])
        yield np.stack(rows).astype(np.int64)
        step += 1


_orders: dict[tuple[int, int], tuple[int, np.ndarray]] = {}


def _epoch_order(epoch: int, length: int, blocks: int) -> tuple[int, np.ndarray]:
    if (epoch, length) not in _orders:
        rng = np.random.default_rng([SEED, length, epoch])
        _orders[epoch, length] = int(rng.integers(length)), rng.permutation(blocks)
    return _orders[epoch, length]


# ---- training ----------------------------------------------------------------------------------------------------


def learning_rate(step: int, steps: int, decay_steps: int) -> float:
    """Warm-up, constant, linear decay: a factor.  The decay can begin at any step of a run."""
    return min(1.0, (step + 1) / WARM_UP, (steps - step) / decay_steps)


@dataclass
class Shared:
    """What the trainer and its workers hold in common memory, for one phase of the training."""

    model: GPTNeoXJapaneseForCausalLM
    gradients: list[torch.Tensor]  # one flat buffer per worker
    momenta: torch.Tensor  # flat, as the gradients; used for the matrices
    losses: torch.Tensor  # [parts]
    batch: torch.Tensor  # [parts, batch of a part, length + 1]
    next_part: Any  # the part of the batch to take next, and its lock
    factor: Any  # of the learning rates, for this step
    barrier: Any


def work(rank: int, shared: Shared) -> None:
    """Computes gradients for ever: each worker takes the next part of the batch as soon as it is free.

    One thread per worker, and no fixed share: so a core that other programs need slows down one part, not all.
    Then each worker updates its share of the matrices, while the trainer updates the rest.
    """
    torch.set_num_threads(1)
    losses = torch.compile(token_losses(shared.model, shared.batch.shape[2] - 1), dynamic=False)
    for parameter, gradient in zip(
        shared.model.parameters(), views(shared.model, shared.gradients[rank]), strict=True
    ):
        parameter.grad = gradient
    buffers = [views(shared.model, flat) for flat in [shared.momenta, *shared.gradients]]
    matrices = [
        entry for entry in zip(shared.model.named_parameters(), *buffers, strict=True) if is_matrix(*entry[0])
    ]
    while True:
        shared.barrier.wait()
        shared.gradients[rank].zero_()
        while True:
            with shared.next_part.get_lock():
                part = shared.next_part.value
                shared.next_part.value += 1
            if part >= len(shared.batch):
                break
            loss = losses(
                shared.batch[part, :, :-1].contiguous(), shared.batch[part, :, 1:].contiguous()
            ).sum()
            (loss / TOKENS_PER_STEP).backward()
            shared.losses[part] = loss.detach()
        shared.barrier.wait()
        for (_, matrix), momentum, *gradients in matrices[rank :: len(shared.gradients)]:
            muon_step(matrix, torch.stack(gradients).sum(0), momentum, shared.factor.value * MATRIX_LR)
        shared.barrier.wait()


def views(model: GPTNeoXJapaneseForCausalLM, flat: torch.Tensor) -> list[torch.Tensor]:
    """`flat` cut into the shapes of the parameters."""
    sizes = [parameter.numel() for parameter in model.parameters()]
    return [part.view_as(p) for part, p in zip(flat.split(sizes), model.parameters(), strict=True)]


def is_matrix(name: str, parameter: torch.Tensor) -> bool:
    return parameter.ndim == 2 and "embed" not in name


@torch.no_grad()
def muon_step(matrix: torch.Tensor, gradient: torch.Tensor, momentum: torch.Tensor, rate: float) -> None:
    """Muon (https://kellerjordan.github.io/posts/muon/): momentum, made orthogonal by five Newton-Schulz steps."""
    momentum.lerp_(gradient, 1 - MOMENTUM)
    x = gradient.lerp(momentum, MOMENTUM).bfloat16()
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    matrix.mul_(1 - rate * WEIGHT_DECAY)
    matrix.add_(
        (x.T if tall else x).float(), alpha=-rate * max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5
    )


@contextlib.contextmanager
def workers(
    model: GPTNeoXJapaneseForCausalLM, momenta: torch.Tensor, length: int, count: int
) -> Iterator[Shared]:
    context = torch.multiprocessing.get_context("spawn")
    shared = Shared(
        model=model,
        gradients=[torch.zeros_like(momenta).share_memory_() for _ in range(count)],
        momenta=momenta,
        losses=torch.zeros(PARTS).share_memory_(),
        batch=torch.zeros(
            PARTS, TOKENS_PER_STEP // PARTS // length, length + 1, dtype=torch.long
        ).share_memory_(),
        next_part=context.Value("i", 0),
        factor=context.Value("d", 0.0),
        barrier=context.Barrier(count + 1, timeout=900),
    )
    processes = [context.Process(target=work, args=(rank, shared), daemon=True) for rank in range(count)]
    for process in processes:
        process.start()
    try:
        yield shared
    finally:
        for process in processes:
            process.terminate()


def training_step(shared: Shared, others: torch.optim.Optimizer, block: np.ndarray, factor: float) -> float:
    """One update of all parameters; returns the mean loss of the batch before it."""
    shared.batch.copy_(torch.from_numpy(block).view_as(shared.batch))
    shared.next_part.value, shared.factor.value = 0, factor
    shared.barrier.wait()  # the workers compute gradients
    shared.barrier.wait()  # the workers update the matrices
    parts = [views(shared.model, flat) for flat in shared.gradients]
    for (name, parameter), *gradients in zip(shared.model.named_parameters(), *parts, strict=True):
        parameter.grad = None if is_matrix(name, parameter) else torch.stack(gradients).sum(0)
    others.param_groups[0]["lr"] = OTHER_LR * factor
    others.step()
    shared.barrier.wait()
    return shared.losses.sum().item() / TOKENS_PER_STEP


def train(options: argparse.Namespace) -> None:
    steps, long_from = options.steps, max(0, options.steps - options.long_steps)
    torch.manual_seed(SEED)
    model = GPTNeoXJapaneseForCausalLM(model_config(load_tokenizer())).share_memory()
    momenta = torch.zeros(sum(parameter.numel() for parameter in model.parameters())).share_memory_()
    rest = [parameter for name, parameter in model.named_parameters() if not is_matrix(name, parameter)]
    others = torch.optim.AdamW(rest, lr=OTHER_LR, betas=(0.9, 0.95), weight_decay=0.01)
    step, seconds = 0, 0.0
    if CHECKPOINT.is_file():
        state = torch.load(CHECKPOINT, weights_only=True)
        model.load_state_dict(state["model"])
        momenta.copy_(state["momenta"])
        others.load_state_dict(state["others"])
        step, seconds = state["step"], state["seconds"]
    log(event="start", step=step, parameters=model.num_parameters(), **vars(options))
    ids = np.load(WORK / "training.npy")
    stop: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stop.append(number))
    saved_at = time.monotonic()
    for length, first, last in [(LENGTH, step, long_from), (CONTEXT, max(step, long_from), steps)]:
        if first >= last:
            continue
        check_against_transformers(model, ids[: 2 * (length + 1)].reshape(2, length + 1))
        with workers(model, momenta, length, options.threads) as shared:
            running, count, since = 0.0, 0, time.monotonic()
            for done, block in zip(range(first + 1, last + 1), batches(ids, length, first), strict=False):
                factor = learning_rate(done - 1, steps, options.decay_steps)
                running, count = running + training_step(shared, others, block, factor), count + 1
                if done % 20 == 0 or done == last:
                    took = time.monotonic() - since
                    seconds += took
                    rate = round(count * TOKENS_PER_STEP / took)
                    log(step=done, loss=running / count, tokens_per_s=rate, lr=factor, seconds=round(seconds))
                    running, count, since = 0.0, 0, time.monotonic()
                if done % options.evaluate_every == 0:
                    log(step=done, held_back_bits_per_character=bits_per_character(model, SAMPLE_CHARACTERS))
                    since = time.monotonic()
                if stop or time.monotonic() - saved_at > options.checkpoint_seconds or done == last:
                    save_checkpoint(model, momenta, others, done, seconds)
                    saved_at = time.monotonic()
                if stop:
                    return log(event="stopped", step=done)
    log(event="end", step=steps, bits_per_character_all=bits_per_character(model, None))


def save_checkpoint(
    model: GPTNeoXJapaneseForCausalLM,
    momenta: torch.Tensor,
    others: torch.optim.Optimizer,
    step: int,
    seconds: float,
) -> None:
    state = {"model": model.state_dict(), "momenta": momenta, "others": others.state_dict()}
    torch.save(state | {"step": step, "seconds": seconds}, CHECKPOINT.with_suffix(".new"))
    os.replace(CHECKPOINT.with_suffix(".new"), CHECKPOINT)


def log(**entry: object) -> None:
    line = json.dumps({"time": time.strftime("%H:%M:%S"), **entry})
    print(line, flush=True)
    with open(LOG, "a") as file:
        file.write(line + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=5300, help="optimizer steps in all")
    parser.add_argument(
        "--decay-steps", type=int, default=3800, help="the last ones, in which the rate falls to 0"
    )
    parser.add_argument(
        "--long-steps", type=int, default=1400, help=f"the last ones, on {CONTEXT} tokens in a row"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--evaluate-every", type=int, default=500, metavar="STEPS")
    parser.add_argument("--checkpoint-seconds", type=float, default=300)
    parser.add_argument("--export", type=Path, metavar="FOLDER", help="write the last checkpoint, then stop")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.export:
        return export(options.export)
    WORK.mkdir(exist_ok=True)
    prepare()
    train(options)


if __name__ == "__main__":
    main()
