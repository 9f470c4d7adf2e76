"""`refimpl chat`: a conversation in the terminal, or line by line from a pipe."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from refimpl.cli import INTERRUPTED, chat_formats, common, generation_options, terminal
from refimpl.cli.chat_commands import run_command
from refimpl.cli.conversation import ENDING, Conversation
from refimpl.cli.interrupt import Interrupt
from refimpl.cli.writing import Writer, Written
from refimpl.errors import InputError, RefimplError, ResourceLimitError, TextInputError

if TYPE_CHECKING:
    from refimpl.generation.config import GenerationConfig

DEFAULT_NEW_TOKENS = 256

PROMPT = "> "
_CONTINUED = ". "
_SEEDS = 1 << 64


def parser(prog: str) -> common.Parser:
    examples = (
        prog,
        f"{prog} --model rinna/japanese-gpt-neox-3.6b-instruction-ppo --temperature 0.7",
        f"{prog} --model my_model --format redpajama --verbose",
        f"{prog} --format help",
        f"printf 'はい。\\nいいえ。\\n' | {prog} --json",
    )
    made = common.Parser(prog, examples, "Talk with a model. /help in the conversation lists its commands.")
    made.add_argument(
        "--format",
        metavar="NAME",
        help="how the conversation is written (default: by the model's name, else plain); help: show all",
    )
    made.add_argument("--system", metavar="TEXT", help="the system text, where the format has one")
    generation_options.add_model_options(made)
    generation_options.add_generation_options(made, DEFAULT_NEW_TOKENS, is_chat=True)
    made.add_argument(
        "-c", "--ctx-size", type=int, metavar="N", help="a context of N tokens, where the model's is longer"
    )
    made.add_argument(
        "--context-overflow",
        choices=("slide", "stop", "error"),
        default="slide",
        help="where the context ends: forget the oldest turns (default), end the reply, or refuse the turn",
    )
    made.add_argument("--load", metavar="PATH", help="go on with a conversation that /save has written")
    made.add_argument("-v", "--verbose", action="store_true", help="after each reply: tokens and tokens/s")
    made.add_argument("--json", action="store_true", help="write one JSON object for each turn")
    made.add_argument("-q", "--quiet", action="store_true", help="no greeting, only errors and warnings")
    return made


def run(args: argparse.Namespace) -> int:
    if args.format == "help":
        terminal.write(chat_formats.listing())
        return 0
    name, hub = common.model_name(args.model), common.hub_options(args)
    form = chat_formats.format_of(args.format, name)
    if args.system is not None and form.system is None:
        raise InputError(f"the format {form.name} has no place for a system text", where="--system")
    seed = generation_options.seed_of(args.seed)

    from refimpl.auto import AutoConfig

    config = AutoConfig.from_pretrained(name, **hub)
    settings = generation_options.settings_of(args, name, config)
    if settings.max_new_tokens is None:
        settings = settings.updated(max_new_tokens=DEFAULT_NEW_TOKENS)
    context = generation_options.context_of(args, config)
    tokenizer = common.load_tokenizer(name, args)
    model = generation_options.load_model(args, name, config)
    chat = Chat(model, tokenizer, form, settings, seed, context, args)
    if args.load is not None:
        chat.load(args.load)
    if sys.stdin is None:
        raise InputError("there is no standard input to read from")
    return _talk(chat) if sys.stdin.isatty() else _answer_lines(chat)


class Chat:
    """One conversation with a model.

    Args:
        model, tokenizer, form: who talks, and how that is written.
        settings: of generation.  seed: of the next reply.  context: how many tokens the model may see.
        args: `context_overflow`, `stop`, `negative_prompt`, `system`, `json`, `verbose`.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        form: chat_formats.ChatFormat,
        settings: GenerationConfig,
        seed: int,
        context: int,
        args: argparse.Namespace,
    ):
        from refimpl.prompt_cache import PromptCache

        stops, ends = generation_options.stops_and_ends([*form.stops, *(args.stop or [])], tokenizer)
        self.settings = settings if args.ignore_eos else generation_options.with_ends(settings, ends)
        self.form, self.seed = form, seed
        self.conversation = Conversation(form, tokenizer, self.settings.eos_token_ids, args.system)
        self.cache = PromptCache()
        self._context, self.args = context, args
        self._writer = Writer(model, tokenizer, stops)
        negative = args.negative_prompt
        self._negative_ids = None if negative is None else generation_options.prompt_ids(tokenizer, negative)

    @property
    def greeting(self) -> str:
        model = self._writer.model
        name = model.name_or_path if self.args.model else "the model inside the package"
        return f"{name}, format {self.form.name}. /help lists the commands; /exit or Ctrl-D ends."

    def reply(self, user: str, interrupt: Interrupt) -> None:
        """Say something, and show what is replied.

        Raises: ContextOverflowError where there is no room for it; errors in the middle, when what there was of the
            reply has been kept.
        """
        wanted = self.settings.max_new_tokens or 0
        slides = self.args.context_overflow == "slide"
        room = wanted if self.args.context_overflow == "error" else min(wanted, self._context // 4)
        ids, forgotten = self.conversation.fitting_ids(user, self._context, room, slides)
        if forgotten:
            turns = "oldest turn" if forgotten == 1 else f"{forgotten} oldest turns"
            terminal.note(f"[forgot the {turns}: the context has {self._context} tokens]")
        free = self._context - len(ids)
        if self.args.context_overflow == "error" and wanted > free:
            generation_options.refuse_overflow(len(ids), wanted, self._context, "forget with /undo or /reset")
        settings = self.settings.updated(max_new_tokens=min(wanted, free))
        shown = _Reply(self.form, is_silent=self.args.json)
        written = self._writer.write(
            ids,
            settings,
            self.seed,
            interrupt,
            shown.put,
            cache=self.cache,
            negative_ids=self._negative_ids,
        )
        interrupt.finish()  # what was shown is to be kept
        text = written.texts[0]
        turn = self.conversation.add(user, text.ids, text.text, text.finish_reason or "")
        if self.args.json:
            terminal.write_json(self._as_json(turn.user, turn.reply, forgotten, written))
        else:
            terminal.write("\n")
        if text.finish_reason == "length" and free < wanted:
            terminal.note(f"[the reply ends here: the context has {self._context} tokens]")
        if self.args.verbose:
            terminal.note(self._summary(written))
        if written.error is not None:
            raise written.error

    def again(self, interrupt: Interrupt) -> None:
        """Another reply to what was said last, by another seed."""
        turn = self.conversation.undo()
        if turn is None:
            raise InputError("nothing was said yet")
        count = len(self.conversation.turns)
        self.seed = (self.seed + 1) % _SEEDS
        try:
            self.reply(turn.user, interrupt)
        finally:
            if len(self.conversation.turns) == count:  # nothing came of it
                self.conversation.turns.append(turn)

    def save(self, path: str) -> None:
        """Write the conversation into a JSON file.  Raises: SaveError."""
        from refimpl.cli.chat_files import save

        save(path, self)

    def load(self, path: str) -> int:
        """Go on with the conversation of a file.  Returns: its number of turns.  Raises: InputError, ..."""
        from refimpl.cli.chat_files import load

        return load(path, self)

    def _summary(self, written: Written) -> str:
        text = written.texts[0]
        new = written.prompt_tokens - written.reused
        speed = written.prompt_tokens_per_second
        read = "" if speed is None else f", {speed:.1f} tokens/s"
        made = "" if text.tokens_per_second is None else f", {text.tokens_per_second:.1f} tokens/s"
        choice = "greedy" if self.settings.is_greedy else f"seed {self.seed}"
        reply = f"reply: {len(text.ids)} tokens{made}; {choice}"
        return f"[prompt: {new} new tokens, {written.reused} reused{read}; {reply}]"

    def _as_json(self, user: str, reply: str, forgotten: int, written: Written) -> dict[str, Any]:
        text = written.texts[0]
        return {
            "user": user,
            "reply": reply,
            "ids": text.ids,
            "logprobs": text.logprobs,
            "seed": None if self.settings.is_greedy else self.seed,
            "prompt_tokens": written.prompt_tokens,
            "reused": written.reused,
            "forgotten_turns": forgotten,
            "prompt_tokens_per_second": written.prompt_tokens_per_second,
            "tokens_per_second": text.tokens_per_second,
            "finish_reason": text.finish_reason,
        }


class _Reply:
    """Shows a reply without the white space around it and half a character at its end, and with its line breaks."""

    def __init__(self, form: chat_formats.ChatFormat, is_silent: bool):
        self._form, self._is_silent = form, is_silent
        self._held, self._is_first = "", True

    def put(self, row: int, text: str) -> None:
        text = self._held + self._form.shown(text)
        text = text.lstrip(" \n") if self._is_first else text
        shown = text.rstrip(ENDING)
        self._held = text[len(shown) :]
        if shown:
            self._is_first = False
            if not self._is_silent:
                terminal.write(shown)


# ---- where the turns come from


def _talk(chat: Chat) -> int:
    """A conversation with somebody at a terminal; Ctrl-C stops a reply, Ctrl-D ends."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (input() has a history and can be edited where it is loaded)
    if not chat.args.quiet:
        terminal.note(chat.greeting)
    while True:
        try:
            line = _read_turn()
            if line is None:
                return 0
            if not line.strip():
                continue
            with Interrupt(is_last=False) as interrupt:
                if not _take(chat, line, interrupt):
                    return 0
        except KeyboardInterrupt:  # while a line was typed, or in a command
            terminal.write("\n")
        except RefimplError as error:
            terminal.note(f"refimpl: error: {terminal.one_line(str(error))}")


def _read_turn() -> str | None:
    """A line, and those after it while they end with a backslash; None at the end."""
    lines, prompt = list[str](), PROMPT
    while True:
        try:
            line = common.check_argument(input(prompt), "the line")
        except EOFError:
            terminal.write("\n")
            return None
        except UnicodeDecodeError as error:
            raise TextInputError("not UTF-8", where="the line", position=error.start) from error
        if not line.endswith("\\"):
            return "\n".join([*lines, line])
        lines.append(line[:-1])
        prompt = _CONTINUED


def _answer_lines(chat: Chat) -> int:
    """One turn for each line of standard input."""
    for line in _lines():
        with Interrupt() as interrupt:
            is_going_on = _take(chat, line, interrupt)
        if interrupt.happened:
            return INTERRUPTED
        if not is_going_on:
            break
    return 0


def _lines() -> Iterator[str]:
    """The lines of standard input that say something, each when it is there.

    Raises: TextInputError, ResourceLimitError.
    """
    offset = 0
    while data := sys.stdin.buffer.readline(common.MAX_TEXT_BYTES + 1):
        if len(data) > common.MAX_TEXT_BYTES:
            raise ResourceLimitError(
                "a line is too long", where="standard input", allowed=f"{common.MAX_TEXT_BYTES} bytes"
            )
        line = common.decode(data, "standard input", offset).removesuffix("\n").removesuffix("\r")
        offset += len(data)
        if line.strip():
            yield line


def _take(chat: Chat, line: str, interrupt: Interrupt) -> bool:
    """Do what a line says.  Returns: whether the conversation goes on."""
    if line.startswith("/") and not line.startswith("//"):
        return run_command(chat, line, interrupt)
    chat.reply(line[1:] if line.startswith("//") else line, interrupt)
    return True
