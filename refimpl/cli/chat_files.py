"""Conversations in files: JSON, with the ids of the replies, so that a conversation goes on exactly."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from refimpl.cli import common
from refimpl.errors import InputError, quote

if TYPE_CHECKING:
    from refimpl.cli.chat import Chat

_FORMAT = "refimpl chat 1"


def save(path: str, chat: Chat) -> None:
    """Write a conversation.  Raises: SaveError; a file of that name is then as it was."""
    from refimpl.files import write_atomically

    value = {
        "format": _FORMAT,
        "prompt_format": chat.form.name,
        "system": chat.conversation.system,
        "seed": chat.seed,
        "turns": [asdict(turn) for turn in chat.conversation.turns],
    }
    text = json.dumps(value, ensure_ascii=False, indent=1)
    write_atomically(path, text.encode("utf-8", "surrogatepass") + b"\n")


def load(path: str, chat: Chat) -> int:
    """Go on with the conversation of a file, in the format that was chosen here.  Returns: its number of turns.

    Raises: MissingFileError, TextInputError; InputError for a file that holds no conversation.  The conversation so
        far is then as it was.
    """
    text = common.read_text(None, path, "conversation")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError("not a saved conversation", where=quote(path), found=quote(error)) from error
    if not isinstance(value, dict) or value.get("format") != _FORMAT:
        raise InputError("not a saved conversation", where=quote(path), allowed=f'"format": "{_FORMAT}"')
    turns, system = value.get("turns"), value.get("system", "")
    if not isinstance(turns, list) or not all(map(_is_turn, turns)) or not isinstance(system, str):
        raise InputError("not the turns of a conversation", where=quote(path))
    chat.conversation.restore(turns)
    if chat.form.system is not None:
        chat.conversation.system = system
    return len(turns)


def _is_turn(value: Any) -> bool:
    if not isinstance(value, dict) or set(value) != {"user", "ids", "reply", "finish_reason"}:
        return False
    ids = value["ids"]
    are_ids = isinstance(ids, list) and all(type(token_id) is int for token_id in ids)
    return are_ids and all(isinstance(value[name], str) for name in ("user", "reply", "finish_reason"))
