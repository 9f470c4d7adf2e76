"""`refimpl generate`: a prompt and its continuation, shown while it is made."""

from __future__ import annotations

import argparse
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any

from refimpl.cli import INTERRUPTED, common, terminal
from refimpl.errors import ContextOverflowError, InputError

if TYPE_CHECKING:
    import numpy as np

    from refimpl.config_base import PreTrainedConfig
    from refimpl.generation.config import GenerationConfig

DEFAULT_NEW_TOKENS = 100

# Of 32 bits, so that it is quickly typed again and every JSON reader keeps it exactly.
_SEED_BITS = 32
_MAX_SEED = (1 << 64) - 1


def parser(prog: str) -> common.Parser:
    examples = (
        f'{prog} "吾輩は猫である。"',
        f'{prog} "吾輩は猫である。" --max-new-tokens 200 --temperature 0.8 --top-p 0.95 --seed 1',
        f"{prog} --file start.txt --json",
        f"echo 昔々、 | {prog} --temperature 0",
    )
    made = common.Parser(prog, examples, "Continue a text.")
    made.add_argument(
        "text", nargs="?", metavar="PROMPT", help='the text to continue; "-": read standard input'
    )
    made.add_argument("-p", "--prompt", help=argparse.SUPPRESS)
    made.add_argument("-f", "--file", metavar="PATH", help="read the prompt from a UTF-8 file")
    common.add_model_options(made)
    made.add_argument("--backend", default="auto", help="auto or numpy (default: auto)")
    common.add_dtype_options(made)
    made.add_argument(
        "-n",
        "--max-new-tokens",
        type=int,
        metavar="N",
        help=f"at most so many tokens (default: {DEFAULT_NEW_TOKENS}, or as the model's generation_config.json says)",
    )
    other_names = ("--max-tokens", "--predict", "--n-predict")
    made.add_argument(*other_names, dest="max_new_tokens", type=int, help=argparse.SUPPRESS)
    sampling = made.add_argument_group(
        "choice of each token (default: as the model's generation_config.json says)"
    )
    sampling.add_argument(
        "--temperature", type=float, metavar="T", help="0: always the likeliest; larger: more varied"
    )
    sampling.add_argument("--temp", dest="temperature", type=float, help=argparse.SUPPRESS)
    sampling.add_argument("--top-k", type=int, metavar="K", help="only among the K likeliest tokens; 0: all")
    sampling.add_argument(
        "--top-p", type=float, metavar="P", help="only among the likeliest that sum to probability P"
    )
    sampling.add_argument(
        "--repetition-penalty",
        type=float,
        metavar="R",
        help="above 1: what was said already gets less likely",
    )
    sampling.add_argument("--repeat-penalty", dest="repetition_penalty", type=float, help=argparse.SUPPRESS)
    sampling.add_argument("-s", "--seed", type=int, help="repeat a text: the seed that was printed with it")
    made.add_argument(
        "--allow-longer", action="store_true", help="go on past the context the model was made for"
    )
    common.add_output_options(made)
    return made


def run(args: argparse.Namespace) -> int:
    prompt = _read_prompt(args)
    seed = _seed(args.seed)
    name, hub = common.model_name(args.model), common.hub_options(args)

    from refimpl.auto import AutoConfig, AutoModelForCausalLM

    # Everything that can be wrong is found before the weights are loaded.
    config = AutoConfig.from_pretrained(name, **hub)
    settings = _settings(args, name, config)
    tokenizer = common.load_tokenizer(name, args)
    prompt_ids = tokenizer.encode(prompt)
    settings = settings.updated(max_new_tokens=_new_tokens(args, settings, len(prompt_ids), config))
    model = AutoModelForCausalLM.from_pretrained(
        name, config=config, backend=args.backend, dtype=args.dtype, weight_dtype=args.weight_dtype, **hub
    )

    show = (lambda text: None) if args.json else terminal.write
    with _Interrupt() as interrupt:
        continuation = _Continuation(prompt, tokenizer, show, interrupt)
        processors = _only_known_tokens(tokenizer, model.config.vocab_size)
        began = time.perf_counter()
        try:
            model.generate(
                [prompt_ids],
                attention_mask=[[1] * len(prompt_ids)],  # one prompt has no padding, whatever its ids
                generation_config=settings,
                streamer=continuation,
                logits_processor=processors,
                seed=seed,
            )
        except KeyboardInterrupt:
            interrupt.happened = True
        result = _Result(continuation.ids, time.perf_counter() - began, interrupt.happened, settings)
        if args.json:
            used = {
                "model": name,
                "backend": model.backend.name,
                "dtype": str(model.dtype),
                "weight_dtype": args.weight_dtype,
            }
            terminal.write_json(_as_json(prompt, prompt_ids, continuation, seed, used, result))
        else:
            terminal.write("\n")
        if not args.quiet:
            terminal.note(f"{result.summary}, {'greedy' if settings.is_greedy else f'seed {seed}'}")
    return INTERRUPTED if interrupt.happened else 0


def _read_prompt(args: argparse.Namespace) -> str:
    if args.text is not None and args.prompt is not None:
        raise InputError("there are two prompts", hint="Give it once, with --prompt or without.")
    prompt = common.read_text(args.prompt if args.text is None else args.text, args.file, "prompt")
    if not prompt:
        raise InputError(
            "the prompt is empty", allowed="at least one character, since the model continues a text"
        )
    return prompt


def _seed(given: int | None) -> int:
    if given is None:
        return secrets.randbits(_SEED_BITS)
    if not 0 <= given <= _MAX_SEED:
        raise InputError(
            "not a possible seed", found=str(given), allowed="a whole number from 0 to 2**64 - 1"
        )
    return given


def _settings(args: argparse.Namespace, name: str, config: PreTrainedConfig) -> GenerationConfig:
    """The model's own settings, changed by the options. Whoever asks for a temperature asks for sampling."""
    from refimpl.generation.config import GenerationConfig, settings_of_model

    of_files = settings_of_model(name, **common.hub_options(args))
    settings = of_files or GenerationConfig.from_model_config(config)
    names = ("temperature", "top_k", "top_p", "repetition_penalty", "max_new_tokens")
    given: dict[str, Any] = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if given.keys() & {"temperature", "top_k", "top_p"}:
        given["do_sample"] = args.temperature != 0
    return settings.updated(**given).completed(GenerationConfig())


def _new_tokens(
    args: argparse.Namespace, settings: GenerationConfig, prompt: int, config: PreTrainedConfig
) -> int:
    """How many tokens to make. A number that nobody asked for is cut to what the context holds.

    Raises: ContextOverflowError.
    """
    context = config.max_position_embeddings  # type: ignore[attr-defined]
    wanted = DEFAULT_NEW_TOKENS if settings.max_new_tokens is None else settings.max_new_tokens
    if args.allow_longer or prompt + wanted <= context:
        return wanted
    if args.max_new_tokens is None and prompt < context:
        return context - prompt
    raise ContextOverflowError(
        "the prompt and the new tokens are more than the model's context",
        found=f"{prompt} + {wanted} tokens",
        allowed=f"{context} together",
        hint="Shorten the prompt, lower --max-new-tokens, or accept poorer text with --allow-longer.",
    )


def _only_known_tokens(
    tokenizer: Any, vocab_size: int
) -> list[Callable[[np.ndarray, np.ndarray], np.ndarray]]:
    """Rules out the ids at the end of a padded embedding, which no token has and no text can show."""
    known = vocab_size
    while known and not _is_known(tokenizer, known - 1):
        known -= 1
    if known == vocab_size:
        return []

    def rule_out(ids: np.ndarray, logits: np.ndarray) -> np.ndarray:
        logits = logits.copy()
        logits[:, known:] = float("-inf")
        return logits

    return [rule_out]


def _is_known(tokenizer: Any, token_id: int) -> bool:
    try:
        tokenizer.check_id(token_id)
    except InputError:
        return False
    return True


class _Interrupt:
    """The first Ctrl-C ends generation, but not between making a token and showing it; the second, the process.

    Attribute `happened`: whether there was one.
    """

    def __init__(self) -> None:
        self.happened = False
        self._is_held = False

    def __enter__(self) -> _Interrupt:
        self._before = signal.getsignal(signal.SIGINT)
        if self._before is not signal.SIG_IGN:  # started in the background: Ctrl-C is meant for others
            signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        self.happened = True
        if not self._is_held:
            raise KeyboardInterrupt

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let what is inside be finished first."""
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False
        if self.happened:
            raise KeyboardInterrupt


class _Continuation:
    """A streamer for `generate()`: shows the prompt as it was given, then the text as it becomes complete."""

    def __init__(self, prompt: str, tokenizer: Any, show: Callable[[str], None], interrupt: _Interrupt):
        from refimpl.tokenizer.streaming import StreamDecoder

        self.ids: list[int] = []
        self.text = ""
        self._prompt: str | None = prompt
        self._decoder = StreamDecoder(tokenizer, skip_special_tokens=True)
        self._show, self._interrupt = show, interrupt

    def put(self, ids: Any) -> None:
        with self._interrupt.held():
            if self._prompt is not None:
                self._show(self._prompt)
                self._prompt = None
                return
            self.ids.append(int(ids[0]))
            self._add(self._decoder.put(self.ids[-1]))

    def end(self) -> None:
        with self._interrupt.held():
            self._add(self._decoder.finish())

    def _add(self, text: str) -> None:
        if text:
            self.text += text
            self._show(text)


@dataclass(frozen=True)
class _Result:
    ids: list[int]
    seconds: float
    interrupted: bool
    settings: GenerationConfig

    @property
    def tokens_per_second(self) -> float | None:
        return round(len(self.ids) / self.seconds, 2) if self.ids and self.seconds else None

    @property
    def finish_reason(self) -> str:
        if self.interrupted:
            return "interrupted"
        return "eos" if self.ids and self.ids[-1] in self.settings.eos_token_ids else "length"

    @property
    def summary(self) -> str:
        speed = f", {self.tokens_per_second:.1f} tokens/s" if self.tokens_per_second else ""
        return f"{len(self.ids)} token{'' if len(self.ids) == 1 else 's'}{speed}"


def _as_json(
    prompt: str, prompt_ids: list[int], made: _Continuation, seed: int, used: dict[str, Any], result: _Result
) -> dict[str, Any]:
    settings = asdict(result.settings)
    shown = (
        "max_new_tokens", "do_sample", "temperature", "top_k", "top_p", "repetition_penalty", "eos_token_id",
    )  # fmt: skip
    return {
        "prompt": prompt,
        "text": made.text,
        "prompt_ids": prompt_ids,
        "ids": made.ids,
        "seed": None if result.settings.is_greedy else seed,
        "settings": {**used, **{name: settings[name] for name in shown}},
        "tokens_per_second": result.tokens_per_second,
        "finish_reason": result.finish_reason,
    }
