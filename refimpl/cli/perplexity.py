"""`refimpl perplexity`: how well a model foresees a text, and how far two runs of it are apart."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from refimpl.cli import INTERRUPTED, common, terminal
from refimpl.cli.perplexity_report import as_json, as_text, divergence_text, summary
from refimpl.errors import InputError, quote

if TYPE_CHECKING:
    import numpy as np

    from refimpl.evaluation.base_file import BaseFile, BaseWriter
    from refimpl.evaluation.divergence import Divergence
    from refimpl.evaluation.scoring import Losses
    from refimpl.evaluation.windows import Window

DEFAULT_CONTEXT = 512


def parser(prog: str) -> common.Parser:
    examples = (
        f"{prog} book.txt",
        f"{prog} book.txt --model EleutherAI/pythia-160m --context 2048 --stride 512",
        f"{prog} book.txt --weight-dtype float32 --kl-base float32.kl",
        f"{prog} --weight-dtype nf4 --kl-divergence float32.kl",
    )
    made = common.Parser(prog, examples, "Measure how well a model foresees a text.")
    made.add_argument("text", nargs="?", metavar="FILE", help='a UTF-8 file; "-": read standard input')
    made.add_argument("-f", "--file", help=argparse.SUPPRESS)
    common.add_model_options(made)
    common.add_computing_options(made)
    common.add_matmul_dtype_option(made)
    windows = made.add_argument_group("which tokens are scored (docs/perplexity.md says it exactly)")
    windows.add_argument(
        "-c",
        "--context",
        type=int,
        metavar="N",
        help=f"read N tokens at once (default: {DEFAULT_CONTEXT}, or what the model was made for)",
    )
    windows.add_argument("--ctx-size", dest="context", type=int, help=argparse.SUPPRESS)
    windows.add_argument(
        "--stride",
        type=int,
        metavar="N",
        help="move on by N tokens and score all of them; "
        "without: score the second half of pieces that do not overlap, as llama.cpp does",
    )
    windows.add_argument("--chunks", type=int, metavar="N", help="only the first N pieces")
    windows.add_argument(
        "-b", "--batch", type=int, default=1, metavar="N", help="so many pieces at once (default: 1)"
    )
    runs = made.add_argument_group("comparing two runs")
    runs.add_argument("--kl-base", metavar="FILE", help="save all probabilities in a safetensors file")
    runs.add_argument("--kl-divergence", metavar="FILE", help="compare with what --kl-base has saved")
    common.add_output_options(made)
    return made


def run(args: argparse.Namespace) -> int:
    _check(args)
    name, hub = common.model_name(args.model), common.hub_options(args)
    base = _base(args)
    source = args.text if args.file is None else args.file
    text = None if base is not None and source is None else common.read_text(None, source, "text")

    from refimpl.auto import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(name, **hub)
    plan = _plan(text, name, config, args, base)
    model = AutoModelForCausalLM.from_pretrained(name, config=config, **common.computing_options(args), **hub)
    reading = _Run(plan, model, args.batch)
    with _writer(plan, model, name, args) as writer:
        try:
            reading.read(writer, shown=not args.quiet and not args.json)
        except KeyboardInterrupt:
            if writer is not None or not len(reading.losses):
                raise
            reading.interrupted = True
    report = as_json(reading, name, args)
    if args.json:
        terminal.write_json(report)
    else:
        terminal.write(as_text(report))
        if "kl_divergence" in report:
            terminal.write("\n" + divergence_text(report["kl_divergence"]))
    if not args.quiet:
        terminal.note(summary(report))
    return INTERRUPTED if reading.interrupted else 0


def _check(args: argparse.Namespace) -> None:
    for name in ("context", "stride", "chunks", "batch"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise InputError("not a possible value", where=f"--{name}", found=str(value), allowed="1 or more")
    if args.text is not None and args.file is not None:
        raise InputError("there are two texts", hint="Name the file once.")
    if args.kl_divergence is None:
        return
    given = [f"--{name}" for name in ("context", "stride", "chunks") if getattr(args, name) is not None]
    if args.kl_base is not None:
        given.append("--kl-base")
    if given:
        raise InputError(
            "both runs must read the same tokens: the file says which",
            where="--kl-divergence",
            found=", ".join(given),
            hint="Leave these options out.",
        )


def _base(args: argparse.Namespace) -> BaseFile | None:
    if args.kl_divergence is None:
        return None
    from refimpl.evaluation.base_file import BaseFile

    return BaseFile(args.kl_divergence)


# --- what is to be read --------------------------------------------------------------------------


@dataclass
class Plan:
    """What is read and scored, and how long the text is.

    ids: [tokens]
    context, stride: stride is None for pieces that do not overlap.
    """

    ids: np.ndarray
    windows: list[Window]
    context: int
    stride: int | None
    characters: int
    bytes: int
    base: BaseFile | None = None


def _plan(text: str | None, name: str, config: Any, args: argparse.Namespace, base: BaseFile | None) -> Plan:
    """Raises: InputError for a text that is too short, or is not that of the base."""
    import numpy as np

    ids = None
    if text is not None:
        tokenizer = common.load_tokenizer(name, args)
        encoded = tokenizer(text, add_special_tokens=False, verbose=False)
        ids = np.array(encoded["input_ids"], dtype=np.int64)
    if base is not None:
        return _plan_of_base(base, ids, config, args.kl_divergence)
    assert ids is not None
    assert text is not None
    from refimpl.evaluation.windows import chunk_windows, sliding_windows

    context = min(DEFAULT_CONTEXT, config.max_position_embeddings) if args.context is None else args.context
    if args.stride is None:
        windows = chunk_windows(len(ids), context)
    else:
        windows = sliding_windows(len(ids), context, args.stride)
    return Plan(ids, windows[: args.chunks], context, args.stride, len(text), len(text.encode("utf-8")))


def _plan_of_base(base: BaseFile, ids: np.ndarray | None, config: Any, path: str) -> Plan:
    """The same tokens and windows as those of the base.  Raises: InputError for another text or vocabulary."""
    if base.vocab_size != config.vocab_size:
        raise InputError(
            "the models have different vocabularies",
            where="--kl-divergence",
            found=f"{config.vocab_size} tokens",
            allowed=f"{base.vocab_size}, as in {quote(path)}",
        )
    if ids is not None and ids.tolist() != base.ids.tolist():
        raise InputError(
            "the text has other tokens than that of the base",
            where="--kl-divergence",
            found=f"{len(ids)} tokens",
            allowed=f"the {len(base.ids)} tokens of {quote(path)}",
            hint="Leave the text out: the file holds its tokens.",
        )
    said = {name: _number(base, name, path) for name in ("context", "stride", "characters", "bytes")}
    context, stride = said["context"], said["stride"]
    return Plan(base.ids, base.windows, context, stride or None, said["characters"], said["bytes"], base)


def _number(base: BaseFile, name: str, path: str) -> int:
    text = base.metadata.get(name, "")
    if text.isascii() and text.isdigit() and len(text) < 16:
        return int(text)
    raise InputError("the metadata is damaged", where=quote(path), found=f"{name} {quote(text)}")


# --- reading -------------------------------------------------------------------------------------


@dataclass
class _Run:
    """One run over a text, which may end before all of it is read."""

    plan: Plan
    model: Any
    batch: int
    interrupted: bool = False
    windows_read: int = 0
    tokens_read: int = 0
    seconds: float = 0.0
    parts: list[Divergence] = field(default_factory=list)

    def __post_init__(self) -> None:
        from refimpl.evaluation.scoring import Losses

        self.losses: Losses = Losses()

    def read(self, writer: BaseWriter | None, shown: bool) -> None:
        """Raises: KeyboardInterrupt; what was read until then stays."""
        from refimpl.evaluation.divergence import Divergence
        from refimpl.evaluation.scoring import losses_of, window_logits

        plan, started = self.plan, time.perf_counter()
        found = window_logits(self.model, plan.ids, plan.windows, self.batch)
        with _progress(len(plan.windows), shown) as bar:
            for window, logits in found:
                targets = plan.ids[window.first : window.end]
                if plan.base is None:
                    nll = losses_of(logits, targets)
                else:
                    begin = len(self.losses)
                    rows = plan.base.rows(begin, begin + window.scored)
                    part = Divergence.of_rows(logits, rows, targets)
                    self.parts.append(part)
                    nll = part.nll
                if writer is not None:
                    writer.add(logits, nll)
                self.losses.add(nll)
                self.windows_read += 1
                self.tokens_read += window.end - window.start
                self.seconds = time.perf_counter() - started
                value, error = self.losses.perplexity
                bar.set_postfix_str(f"perplexity {value:.4f}" + ("" if error is None else f" ± {error:.4f}"))
                bar.update(1)


@contextmanager
def _progress(total: int, shown: bool) -> Iterator[Any]:
    """A bar with the value so far, on a terminal."""
    # The bar of huggingface_hub, which obeys HF_HUB_DISABLE_PROGRESS_BARS; None: only on a terminal.
    from huggingface_hub.utils import tqdm

    with tqdm(total=total, desc="Reading", unit="piece", disable=None if shown else True, leave=False) as bar:
        yield bar


def _writer(plan: Plan, model: Any, name: str, args: argparse.Namespace) -> Any:
    if args.kl_base is None:
        return nullcontext()
    from refimpl.evaluation.base_file import BaseWriter

    metadata = {
        "model": name,
        "backend": model.backend.name,
        "dtype": str(model.dtype),
        "weight_dtype": str(args.weight_dtype or "as in the file"),
        "matmul_dtype": model.backend.matmul_dtype or "float32",
        "context": str(plan.context),
        "stride": str(plan.stride or 0),
        "characters": str(plan.characters),
        "bytes": str(plan.bytes),
    }
    writer = BaseWriter(args.kl_base, plan.ids, plan.windows, model.config.vocab_size, metadata)
    if not args.quiet:
        terminal.note(f"{quote(args.kl_base)} will take {common.readable_size(writer.nbytes)}")
    return writer
