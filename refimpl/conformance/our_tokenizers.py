"""Our tokenizers as an engine of the protocol: the operation `tokenizer` of the suite."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import refimpl
from refimpl.errors import TextInputError, TokenizerFileError
from refimpl.tokenizer import AddedToken


class OurTokenizers:
    """Answers requests about texts and ids; tokenizers are kept."""

    def __init__(self) -> None:
        self._japanese = cache(_japanese)

    def __call__(self, request: dict[str, Any]) -> dict[str, Any]:
        """The outputs of a request.  Raises: the errors of the tokenizers."""
        folder, arguments = Path(request["model"]), request["arguments"]
        if (folder / "emoji.json").is_file():
            return self._japanese_outputs(folder, arguments, request["outputs"])
        if (folder / "spiece.model").is_file():
            return _sentencepiece_outputs(folder, arguments)
        return _neox_outputs(folder, arguments)

    def _japanese_outputs(self, folder: Path, arguments: dict[str, Any], wanted: list[str]) -> dict[str, Any]:
        tokenizer = self._japanese(folder, arguments.get("do_clean_text", False), "hf")
        if "ids" in arguments:
            ids = arguments["ids"]
            return {"pieces": tokenizer.convert_ids_to_tokens(ids), "decoded": tokenizer.decode(ids)}
        text = text_of(arguments)
        ids = tokenizer(text)["input_ids"]
        outputs = {
            "ids": ids,
            "tokens": tokenizer.tokenize(text),
            "decoded": tokenizer.decode(ids),
            "decoded_without_special_tokens": tokenizer.decode(ids, skip_special_tokens=True),
        }
        if "ids_original" in wanted:
            original = self._japanese(folder, arguments.get("do_clean_text", False), "original")
            outputs["ids_original"] = original.encode(text)
            outputs["decoded_original"] = original.decode(outputs["ids_original"])
        return outputs


def text_of(arguments: dict[str, Any]) -> str:
    """The text of a request; one that is not Unicode comes as UTF-16 alone."""
    if "text_utf16_hex" not in arguments:
        return str(arguments["text"])
    units = bytes.fromhex(arguments["text_utf16_hex"])
    return "".join(chr(int.from_bytes(units[i : i + 2])) for i in range(0, len(units), 2))


def _japanese(folder: Path, do_clean_text: bool, compat: str) -> Any:
    unk_token = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))["unk_token"]
    return refimpl.GPTNeoXJapaneseTokenizer(
        folder / "vocab.txt",
        folder / "emoji.json",
        unk_token=unk_token,
        do_clean_text=do_clean_text,
        compat=compat,
    )


def _loaded(folder: Path, arguments: dict[str, Any]) -> Any:
    """The tokenizer of a folder with the options of a case and the tokens that it adds.  Raises: TokenizerFileError."""
    tokenizer = refimpl.AutoTokenizer.from_pretrained(str(folder), **arguments.get("options", {}))
    for entry in arguments.get("added_tokens", ()):
        tokenizer.add_tokens([AddedToken(**{key: value for key, value in entry.items() if key != "id"})])
        found = tokenizer.convert_tokens_to_ids(entry["content"])
        if found != entry["id"]:
            raise TokenizerFileError(
                "an added token has another id", found=str(found), allowed=str(entry["id"]), path=folder
            )
    return tokenizer


def _sentencepiece_outputs(folder: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    tokenizer, outputs = _loaded(folder, arguments), dict[str, Any]()
    ids = arguments.get("ids")
    if ids is None:
        given = [text_of(arguments)] + ([arguments["pair"]] if "pair" in arguments else [])
        ids = tokenizer(*given, **arguments.get("call", {}))["input_ids"]
        outputs = {"ids": ids, "tokens": tokenizer.tokenize(given[0])}
    outputs["pieces"] = tokenizer.convert_ids_to_tokens(ids)
    return outputs | _decoded(tokenizer, ids)


def _neox_outputs(folder: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    tokenizer = _loaded(folder, arguments)
    outputs: dict[str, Any] = {}
    if "ids" in arguments:
        outputs["pieces"] = tokenizer.convert_ids_to_tokens(arguments["ids"])
        return outputs | _decoded(tokenizer, arguments["ids"])
    if not {"text", "text_utf16_hex", "words_given"} & arguments.keys():
        raise TextInputError("the request has neither text nor ids")
    words = {"is_split_into_words": True} if "words_given" in arguments else {}
    given = [arguments["words_given"]] if words else [text_of(arguments)]
    given += [arguments["pair"]] if "pair" in arguments else []
    for trim, name in ((False, "offsets_untrimmed"), (True, "offsets")):
        tokenizer.trim_offsets = trim
        encoding = tokenizer(
            *given,
            **arguments.get("call", {}),
            **words,
            return_offsets_mapping=True,
            return_token_type_ids=True,
            return_special_tokens_mask=True,
        )
        outputs[name] = [list(span) for span in encoding["offset_mapping"]]
    outputs |= {
        "ids": encoding["input_ids"],
        "tokens": encoding.tokens(),
        "words": encoding.word_ids(),
        "type_ids": encoding["token_type_ids"],
        "special_tokens_mask": encoding["special_tokens_mask"],
        "pieces": tokenizer.convert_ids_to_tokens(encoding["input_ids"]),
    }
    return outputs | _decoded(tokenizer, outputs["ids"])


def _decoded(tokenizer: Any, ids: list[int]) -> dict[str, str]:
    return {
        "decoded": tokenizer.decode(ids),
        "decoded_without_special_tokens": tokenizer.decode(ids, skip_special_tokens=True),
    }
