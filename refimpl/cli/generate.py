"""`refimpl generate`: prompts and their continuations, shown while they are made."""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from refimpl.cli import INTERRUPTED, common, generation_options, terminal
from refimpl.cli.interrupt import Interrupt
from refimpl.cli.profile import Profile
from refimpl.cli.writing import Text, Writer, Written
from refimpl.errors import InputError, quote

if TYPE_CHECKING:
    from refimpl.config_base import PreTrainedConfig
    from refimpl.generation.config import GenerationConfig
    from refimpl.prompt_cache import PromptCache

DEFAULT_NEW_TOKENS = 100

#: Stands between several texts.
SEPARATOR = "----\n"

#: Settings that are always in the JSON; the others are where they change something.
_SHOWN = (
    "max_new_tokens", "do_sample", "temperature", "top_k", "top_p", "repetition_penalty", "eos_token_id",
)  # fmt: skip


def parser(prog: str) -> common.Parser:
    examples = (
        f'{prog} "吾輩は猫である。"',
        f'{prog} "吾輩は猫である。" --max-new-tokens 200 --temperature 0.8 --top-p 0.95 --seed 1',
        f"{prog} --file start.txt --json",
        f"{prog} --prompts prompts.jsonl --n 3 --stop 。 --json",
        f"echo 昔々、 | {prog} --temperature 0 --profile",
    )
    made = common.Parser(prog, examples, "Continue a text.")
    made.add_argument(
        "text", nargs="?", metavar="PROMPT", help='the text to continue; "-": read standard input'
    )
    made.add_argument("-p", "--prompt", help=argparse.SUPPRESS)
    made.add_argument("-f", "--file", metavar="PATH", help="read the prompt from a UTF-8 file")
    made.add_argument(
        "--prompts",
        metavar="PATH",
        help='several prompts: one in each line, or JSON lines with "prompt"; "-": standard input',
    )
    generation_options.add_model_options(made)
    made.add_argument(
        "--n", type=int, dest="num_return_sequences", metavar="N", help="N texts for each prompt"
    )
    made.add_argument("--num-return-sequences", type=int, help=argparse.SUPPRESS)
    generation_options.add_generation_options(made, DEFAULT_NEW_TOKENS)
    context = made.add_argument_group("context")
    context.add_argument(
        "-c", "--ctx-size", type=int, metavar="N", help="a context of N tokens, where the model's is longer"
    )
    context.add_argument(
        "--context-overflow",
        choices=("error", "stop", "continue", "slide"),
        help="where the context ends: refuse (default), end the text, go on, or forget the beginning",
    )
    context.add_argument(
        "--allow-longer", action="store_true", help="go on past the context the model was made for"
    )
    context.add_argument(
        "--prompt-cache",
        "--prompt-cache-file",
        metavar="PATH",
        help="keep what was computed in a file; the next call computes only what is new",
    )
    common.add_output_options(made)
    made.add_argument(
        "--stream",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="show each character when it is there, or the text at its end",
    )
    made.add_argument(
        "--no-display-prompt", action="store_true", help="write the continuation without the prompt"
    )
    made.add_argument("--profile", action="store_true", help="tell where the time went")
    return made


def run(args: argparse.Namespace) -> int:
    prompts = _read_prompts(args)
    seed = generation_options.seed_of(args.seed)
    name, hub = common.model_name(args.model), common.hub_options(args)

    from refimpl.auto import AutoConfig

    # Everything that can be wrong is found before the weights are loaded.
    config = AutoConfig.from_pretrained(name, **hub)
    settings = generation_options.settings_of(args, name, config)
    _check_modes(args, settings)
    tokenizer = common.load_tokenizer(name, args)
    stops, end_ids = generation_options.stops_and_ends(args.stop or [], tokenizer)
    settings = generation_options.with_ends(settings, end_ids)
    jobs = []
    for prompt in prompts:
        ids = generation_options.prompt_ids(tokenizer, prompt)
        jobs.append((prompt, ids, _settings_for(len(ids), args, settings, config)))
    negative_ids = None
    if args.negative_prompt is not None:
        negative_ids = generation_options.prompt_ids(tokenizer, args.negative_prompt)

    profile = Profile()
    began = time.perf_counter()
    model = generation_options.load_model(args, name, config)
    profile.load = time.perf_counter() - began
    cache = None if args.prompt_cache is None else _open_cache(args.prompt_cache, model)
    writer = Writer(model, tokenizer, stops, args.json, profile if args.profile else None)
    used = {
        "model": name,
        "backend": model.backend.name,
        "dtype": str(model.dtype),
        "weight_dtype": args.weight_dtype,
        "matmul_dtype": model.backend.matmul_dtype,
    }
    output = _Output(args, used, seed)
    with Interrupt() as interrupt:
        for number, (prompt, ids, of_prompt) in enumerate(jobs):
            output.next(prompt, of_prompt, is_first=number == 0)
            show, started = output.show, output.begin
            written = writer.write(ids, of_prompt, seed, interrupt, show, started, cache, negative_ids)
            output.end(ids, written)
            if cache is not None:
                _save_cache(cache, args.prompt_cache)
            if written.error is not None:
                raise written.error
            if interrupt.happened:
                break
        if args.profile:
            terminal.note(profile.table().rstrip("\n"))
    return INTERRUPTED if interrupt.happened else 0


# ---- prompts


def _read_prompts(args: argparse.Namespace) -> list[str]:
    if args.text is not None and args.prompt is not None:
        raise InputError("there are two prompts", hint="Give it once, with --prompt or without.")
    argument = args.prompt if args.text is None else args.text
    if args.prompts is not None:
        if argument is not None or args.file is not None:
            raise InputError("--prompts has all the prompts; give no other one")
        return _listed_prompts(args.prompts)
    prompt = common.read_text(argument, args.file, "prompt")
    if not prompt:
        raise InputError(
            "the prompt is empty", allowed="at least one character, since the model continues a text"
        )
    return [prompt]


def _listed_prompts(path: str) -> list[str]:
    """One prompt of each line that is not empty: the line itself, or the "prompt" of a JSON object.

    The file is one of JSON lines when its first line is such an object.
    Raises: InputError for a file without prompts, and for a later line that is no such object.
    """
    lines = common.read_text(None, path, "prompts").split("\n")
    numbered = [(number, line.removesuffix("\r")) for number, line in enumerate(lines, start=1)]
    numbered = [(number, line) for number, line in numbered if line.strip()]
    if not numbered:
        raise InputError("there are no prompts", where=quote(path))
    if _prompt_of_json(numbered[0][1]) is None:
        return [line for _, line in numbered]
    prompts = []
    for number, line in numbered:
        prompt = _prompt_of_json(line)
        if not prompt:
            raise InputError(
                'not a JSON object with a "prompt"', where=f"{path}: line {number}", found=quote(line)
            )
        prompts.append(common.check_argument(prompt, f"{path}: line {number}"))
    return prompts


def _prompt_of_json(line: str) -> str | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    prompt = value.get("prompt") if isinstance(value, dict) else None
    return prompt if isinstance(prompt, str) else None


# ---- settings


def _check_modes(args: argparse.Namespace, settings: GenerationConfig) -> None:
    """Raises: InputError for ways to generate that exclude each other."""
    texts, beams = settings.num_return_sequences or 1, settings.num_beams or 1
    if texts > beams > 1:
        raise InputError("there are only as many texts as beams", found=f"--n {texts} --num-beams {beams}")
    if texts > 1 and beams == 1 and settings.is_greedy:
        raise InputError(
            f"--n {texts} texts: there is one likeliest text",
            hint="Draw several with --temperature 1, or search for several with --num-beams.",
        )
    several = "--num-beams" if beams > 1 else "--n" if texts > 1 else None
    for flag, is_given in (
        ("--prompt-cache", args.prompt_cache is not None),
        ("--prompt-lookup-num-tokens", settings.prompt_lookup_num_tokens is not None),
    ):
        if is_given and (several or not settings.use_cache):
            raise InputError(
                f"{flag} follows one text with a cache", found=f"{flag} with {several or '--no-use-cache'}"
            )
    if args.allow_longer and args.context_overflow not in (None, "continue"):
        raise InputError(f"--allow-longer contradicts --context-overflow {args.context_overflow}")
    if args.ctx_size and args.context_overflow == "slide":
        raise InputError("--context-overflow slide slides over the model's own context; leave out --ctx-size")


def _settings_for(
    prompt: int, args: argparse.Namespace, settings: GenerationConfig, config: PreTrainedConfig
) -> GenerationConfig:
    """The settings for a prompt of so many tokens, with the number of new ones.

    Raises: ContextOverflowError; InputError for a shortest length above the longest.
    """
    from refimpl.generation.request import check_lengths

    context = generation_options.context_of(args, config)
    overflow = "continue" if args.allow_longer else args.context_overflow or "error"
    wanted, is_asked = _new_tokens(prompt, args, settings)
    if overflow in ("error", "stop") and prompt + wanted > context:
        if prompt >= context or (overflow == "error" and is_asked):
            way_out = "accept poorer text with --allow-longer"
            generation_options.refuse_overflow(prompt, wanted, context, way_out)
        wanted = context - prompt
    kept = overflow if overflow == "slide" else "continue"
    settings = settings.updated(max_new_tokens=wanted, context_overflow=kept)
    check_lengths(settings, prompt, prompt + wanted)
    return settings


def _new_tokens(prompt: int, args: argparse.Namespace, settings: GenerationConfig) -> tuple[int, bool]:
    """How many tokens to make, and whether somebody asked for just so many."""
    if args.max_new_tokens is None and args.max_length is not None:
        return max(0, args.max_length - prompt), True
    if settings.max_new_tokens is None:
        return DEFAULT_NEW_TOKENS, False
    return settings.max_new_tokens, args.max_new_tokens is not None


# ---- the cache in a file


def _open_cache(path: str, model: Any) -> PromptCache:
    """The cache of an earlier call, or an empty one.  Raises: as `PromptCache.load`."""
    from refimpl.prompt_cache import PromptCache

    return PromptCache.load(path, model) if os.path.lexists(path) else PromptCache()


def _save_cache(cache: PromptCache, path: str) -> None:
    # Ctrl-C may have come between two layers.
    cache.crop(cache.token_ids.shape[1])
    cache.save(path)


# ---- what is shown


class _Output:
    """Writes the texts of one prompt after the other, in the way that was asked for."""

    def __init__(self, args: argparse.Namespace, used: dict[str, Any], seed: int):
        self._args, self._used, self._seed = args, used, seed

    def next(self, prompt: str, settings: GenerationConfig, is_first: bool) -> None:
        self._prompt, self._settings, self._is_first = prompt, settings, is_first
        self._is_live = (
            self._args.stream and not self._args.json and (settings.num_return_sequences or 1) == 1
        )

    def begin(self) -> None:
        if self._is_live:
            self._write_start(self._is_first)

    def show(self, row: int, text: str) -> None:
        if self._is_live:
            terminal.write(text)

    def end(self, prompt_ids: list[int], written: Written) -> None:
        """Complete what is shown, and the summary."""
        if self._args.json:
            for text in written.texts:
                terminal.write_json(self._as_json(prompt_ids, text, written))
        elif self._is_live:
            terminal.write("\n")
        else:
            for row, text in enumerate(written.texts):
                self._write_start(self._is_first and row == 0)
                terminal.write(text.text + "\n")
        if not self._args.quiet:
            terminal.note(self._summary(written))

    def _write_start(self, is_first: bool) -> None:
        if not is_first:
            terminal.write(SEPARATOR)
        if not self._args.no_display_prompt:
            terminal.write(self._prompt)

    def _summary(self, written: Written) -> str:
        count = sum(len(text.ids) for text in written.texts)
        seconds = max((text.seconds or 0.0 for text in written.texts), default=0.0)
        later = sum(max(0, len(text.ids) - 1) for text in written.texts)
        speed = f", {later / seconds:.1f} tokens/s" if later and seconds else ""
        choice = "greedy" if self._settings.is_greedy else f"seed {self._seed}"
        line = f"{count} token{'' if count == 1 else 's'}{speed}, {choice}"
        if written.prompt_tokens_per_second is None:
            return line
        new = written.prompt_tokens - written.reused
        reused = f" and {written.reused} reused" if written.reused else ""
        return f"{line}; prompt: {new} tokens{reused}, {written.prompt_tokens_per_second:.1f} tokens/s"

    def _as_json(self, prompt_ids: list[int], text: Text, written: Written) -> dict[str, Any]:
        from refimpl.generation.config import DEFAULTS

        settings = asdict(self._settings)
        further = {
            name: value
            for name, value in settings.items()
            if name not in _SHOWN and name not in ("unused_keys", "pad_token_id", "bos_token_id")
            if value is not None and value != DEFAULTS.get(name)
        }
        return {
            "prompt": self._prompt,
            "text": text.text,
            "prompt_ids": prompt_ids,
            "ids": text.ids,
            "logprobs": text.logprobs,
            "seed": None if self._settings.is_greedy else self._seed,
            "settings": {**self._used, **{name: settings[name] for name in _SHOWN}, **further},
            "prompt_tokens_per_second": written.prompt_tokens_per_second,
            "tokens_per_second": text.tokens_per_second,
            "finish_reason": text.finish_reason,
        }
