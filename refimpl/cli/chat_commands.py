"""The commands of a conversation: lines that begin with a slash."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from refimpl.cli import generation_options, terminal
from refimpl.cli.interrupt import Interrupt
from refimpl.errors import InputError, quote

if TYPE_CHECKING:
    from refimpl.cli.chat import Chat

#: Settings that belong to the conversation as a whole.
_FIXED = {
    "max_length", "min_length", "num_beams", "num_return_sequences", "use_cache", "cache_implementation",
    "context_overflow", "stop_strings", "return_dict_in_generate", "output_scores", "output_logits",
    "output_attentions", "output_hidden_states",
}  # fmt: skip


def run_command(chat: Chat, line: str, interrupt: Interrupt) -> bool:
    """Do what a line that begins with a slash says.  Returns: whether the conversation goes on.

    Raises: InputError for an unknown command or a wrong argument, and what the command raises.
    """
    word, _, rest = line[1:].partition(" ")
    rest = rest.strip()
    word = {"quit": "exit", "clear": "reset", "regenerate": "regen"}.get(word, word)
    if word == "exit":
        return False
    if word not in COMMANDS:
        near = difflib.get_close_matches(word, [*COMMANDS, "exit"], n=1)
        hint = (
            f"Did you mean /{near[0]}?"
            if near
            else "/help lists them; a text that begins with / is written //."
        )
        raise InputError("unknown command", found=quote("/" + word), hint=hint)
    COMMANDS[word][0](chat, rest, interrupt)
    return True


def _reset(chat: Chat, rest: str, interrupt: Interrupt) -> None:
    chat.conversation.reset()
    terminal.note("[a new conversation]")


def _save(chat: Chat, rest: str, interrupt: Interrupt) -> None:
    chat.save(_needed(rest, "/save FILE"))
    terminal.note(f"[{_turns(len(chat.conversation.turns))} saved in {rest}]")


def _load(chat: Chat, rest: str, interrupt: Interrupt) -> None:
    count = chat.load(_needed(rest, "/load FILE"))
    terminal.note(f"[{_turns(count)} loaded from {rest}]")


def _regen(chat: Chat, rest: str, interrupt: Interrupt) -> None:
    chat.again(interrupt)


def _undo(chat: Chat, rest: str, interrupt: Interrupt) -> None:
    turn = chat.conversation.undo()
    if turn is None:
        raise InputError("nothing was said yet")
    terminal.note(f"[taken back: {turn.user}]")


def _system(chat: Chat, rest: str, interrupt: Interrupt) -> None:
    if chat.form.system is None:
        raise InputError(f"the format {chat.form.name} has no place for a system text")
    if rest:
        chat.conversation.system = rest
    terminal.note(f"[system: {chat.conversation.system}]")


def _seed(chat: Chat, rest: str, interrupt: Interrupt) -> None:
    if rest:
        try:
            seed = int(rest)
        except ValueError:
            raise InputError("a seed is a whole number", found=quote(rest)) from None
        chat.seed = generation_options.seed_of(seed)
    terminal.note(f"[seed {chat.seed}]")


def _set(chat: Chat, rest: str, interrupt: Interrupt) -> None:
    name, _, word = rest.partition(" ")
    name, word = name.lstrip("-").replace("-", "_"), word.strip()
    name = {"temp": "temperature", "repeat_penalty": "repetition_penalty", "n": "max_new_tokens"}.get(
        name, name
    )
    if not name:
        _show_settings(chat)
        return
    if name in _FIXED:
        raise InputError("this cannot be changed in a conversation", where=name)
    if not word:
        if not hasattr(chat.settings, name):
            chat.settings.updated(**{name: 0})  # names the nearest setting
        terminal.note(f"[{name} {json.dumps(getattr(chat.settings, name))}]")
        return
    given = {name: _value(word)}
    if "do_sample" not in given:
        given |= generation_options.sampling_asked(given)
    chat.settings = chat.settings.updated(**given)
    terminal.note(f"[{name} {json.dumps(getattr(chat.settings, name))}]")


def _show_settings(chat: Chat) -> None:
    from refimpl.generation.config import CHECKS

    names = (name for name in CHECKS if name not in _FIXED and getattr(chat.settings, name) is not None)
    rows = [[name, json.dumps(getattr(chat.settings, name))] for name in names]
    terminal.note(terminal.table(rows).rstrip("\n"))


def _help(chat: Chat, rest: str, interrupt: Interrupt) -> None:
    rows = [
        ["/" + " ".join([name, argument]).strip(), what] for name, (_, argument, what) in COMMANDS.items()
    ]
    rows += [["/exit", "end (also Ctrl-D)"]]
    rows += [["//...", "say something that begins with a slash"]]
    rows += [["...\\", "a line that ends so goes on in the next one"]]
    rows += [["Ctrl-C", "end the reply; what there is of it stays"]]
    terminal.note(terminal.table(rows).rstrip("\n"))


def _needed(rest: str, usage: str) -> str:
    if not rest:
        raise InputError("the name of a file is missing", allowed=usage)
    return rest


def _value(word: str) -> Any:
    try:
        return json.loads(word)
    except ValueError:
        return word


def _turns(count: int) -> str:
    return f"{count} turn{'' if count == 1 else 's'}"


#: name -> (what to do, its argument, what that means)
COMMANDS: dict[str, tuple[Callable[[Chat, str, Interrupt], None], str, str]] = {
    "reset": (_reset, "", "forget everything that was said"),
    "regen": (_regen, "", "reply to the last turn again, by another seed"),
    "undo": (_undo, "", "take the last turn back"),
    "system": (_system, "[TEXT]", "change the system text, or show it"),
    "seed": (_seed, "[N]", "change the seed of the next replies, or show it"),
    "set": (_set, "[NAME [VALUE]]", "change a setting of generate(), or show one or all"),
    "save": (_save, "FILE", "write the conversation into a file"),
    "load": (_load, "FILE", "go on with the conversation of a file"),
    "help": (_help, "", "show this"),
}
