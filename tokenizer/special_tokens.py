"""The tokens with a role (`bos_token`, `pad_token`, ...) as attributes of a tokenizer, with their ids."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from refimpl.errors import InputError, quote
from refimpl.tokenizer.added_tokens import AddedToken

SPECIAL_TOKEN_NAMES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)


def _token(name: str) -> Any:
    def get(self: SpecialTokens) -> str | None:
        token = self._named_tokens.get(name)
        return None if token is None else str(token)

    def put(self: SpecialTokens, token: str | AddedToken | None) -> None:
        self._named_tokens[name] = check_token(token, name)

    return property(get, put, doc=f"The {name.removesuffix('_token')} token, or None when there is none.")


def _token_id(name: str) -> Any:
    def get(self: SpecialTokens) -> int | None:
        token = getattr(self, name)
        return None if token is None else self.convert_tokens_to_ids(token)

    def put(self: SpecialTokens, index: int | None) -> None:
        setattr(self, name, None if index is None else self.convert_ids_to_tokens(index))

    return property(get, put, doc=f"The id of {name}; setting it names the token of that id.")


def check_token(token: Any, name: str) -> str | AddedToken | None:
    """`token` when it can have the role `name`. Raises: InputError."""
    if token is None or (isinstance(token, AddedToken | str) and str(token)):
        return token
    raise InputError(
        f"{name} is not a token", found=quote(token), allowed="a non-empty str, an AddedToken or None"
    )


class SpecialTokens(ABC):
    """What a tokenizer knows about its special tokens: seven named ones and any number of extra ones.

    Naming a token does not give it an id; `add_special_tokens` does both.
    """

    _named_tokens: dict[str, str | AddedToken | None]
    _extra_special_tokens: list[str | AddedToken]

    bos_token, bos_token_id = _token("bos_token"), _token_id("bos_token")
    eos_token, eos_token_id = _token("eos_token"), _token_id("eos_token")
    unk_token, unk_token_id = _token("unk_token"), _token_id("unk_token")
    sep_token, sep_token_id = _token("sep_token"), _token_id("sep_token")
    pad_token, pad_token_id = _token("pad_token"), _token_id("pad_token")
    cls_token, cls_token_id = _token("cls_token"), _token_id("cls_token")
    mask_token, mask_token_id = _token("mask_token"), _token_id("mask_token")

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """Role -> token, for the roles that are filled."""
        return {name: str(token) for name in SPECIAL_TOKEN_NAMES if (token := self._named_tokens.get(name))}

    @property
    def extra_special_tokens(self) -> list[str]:
        """The special tokens that have no role."""
        return [str(token) for token in self._extra_special_tokens]

    @extra_special_tokens.setter
    def extra_special_tokens(self, tokens: Sequence[str | AddedToken] | None) -> None:
        tokens = tokens or []
        if isinstance(tokens, str) or not isinstance(tokens, Sequence):
            raise InputError("extra_special_tokens is not a list of tokens", found=quote(tokens))
        checked = [check_token(token, "an extra special token") for token in tokens]
        self._extra_special_tokens = [token for token in checked if token is not None]

    @property
    def extra_special_tokens_ids(self) -> list[int]:
        """The ids of `extra_special_tokens`."""
        return self.convert_tokens_to_ids(self.extra_special_tokens)

    # The names that transformers 4 has for the same.
    additional_special_tokens = extra_special_tokens
    additional_special_tokens_ids = extra_special_tokens_ids

    @property
    def all_special_tokens(self) -> list[str]:
        """Every special token once, the named ones first."""
        return list(dict.fromkeys([*self.special_tokens_map.values(), *self.extra_special_tokens]))

    @property
    def all_special_ids(self) -> list[int]:
        """The ids of `all_special_tokens`."""
        return self.convert_tokens_to_ids(self.all_special_tokens)

    def add_special_tokens(
        self,
        special_tokens_dict: Mapping[str, Any],
        replace_extra_special_tokens: bool = True,
    ) -> int:
        """Gives tokens a role, and an id where they have none: `{"pad_token": "<pad>"}`.

        The key `extra_special_tokens` (or `additional_special_tokens`) takes a list.
        Returns: how many of them were new to the vocabulary. Raises: InputError.
        """
        added: list[str | AddedToken] = []
        for name, value in special_tokens_dict.items():
            if name in ("extra_special_tokens", "additional_special_tokens"):
                added += self._set_extra(value, replace_extra_special_tokens)
            elif name in SPECIAL_TOKEN_NAMES and isinstance(value, str | AddedToken):
                setattr(self, name, as_special(value))
                added.append(as_special(value))
            else:
                raise InputError(
                    "this is not a special token",
                    found=f"{quote(name)}: {quote(value)}",
                    allowed=", ".join((*SPECIAL_TOKEN_NAMES, "extra_special_tokens")),
                )
        return self.add_tokens(added, special_tokens=True)

    def _set_extra(self, tokens: Any, replace: bool) -> list[AddedToken]:
        if not isinstance(tokens, list | tuple) or not all(isinstance(t, str | AddedToken) for t in tokens):
            raise InputError("extra_special_tokens is not a list of tokens", found=quote(tokens))
        new = [
            as_special(token) for token in tokens if replace or str(token) not in self.extra_special_tokens
        ]
        kept = [] if replace and new else self._extra_special_tokens
        self._extra_special_tokens = [*kept, *new]
        return new

    @abstractmethod
    def add_tokens(self, new_tokens: Any, special_tokens: bool = False) -> int:
        """Gives tokens an id."""

    @abstractmethod
    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        """Token or tokens -> id or ids."""

    @abstractmethod
    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """Id or ids -> token or tokens."""


def as_special(token: str | AddedToken) -> AddedToken:
    """`token` as a special one, looked for in the text as it is."""
    return AddedToken(token, special=True) if isinstance(token, str) else token
