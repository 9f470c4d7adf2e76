"""What an engine is asked: the request of a case, and the vocabulary folders that tokenizer cases need."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np

from refimpl.conformance.protocol import PROTOCOL, Capabilities, inline
from refimpl.conformance.suite import Case, Suite

#: Of the line of a tokenizer case: what is given, and what is wanted.
TEXT_INPUTS = ("text", "text_hex", "text_utf16_hex", "pair", "words_given")
TOKENIZER_ARGUMENTS = ("options", "call", "added_tokens", "do_clean_text")
TOKENIZER_OUTPUTS = (
    "ids", "tokens", "words", "offsets", "offsets_untrimmed", "type_ids", "special_tokens_mask", "pieces",
    "decoded", "decoded_without_special_tokens", "ids_original", "decoded_original",
)  # fmt: skip


def is_text(line: dict[str, Any]) -> bool:
    """Whether a tokenizer case gives text, and not ids that are to be decoded."""
    return any(key in line for key in TEXT_INPUTS)


def wanted_outputs(suite: Suite, case: Case) -> list[str]:
    """The names of the outputs of a case, in the order in which they are judged.

    A case of `cached_model` has one of each way to feed the text: `logits.0`, `logits.1`, ...
    """
    if case["operation"] == "tokenizer":
        line = suite.line(case)
        names = [name for name in TOKENIZER_OUTPUTS if name in line]
        if "expect" in line:
            return []
        return names if is_text(line) else [name for name in names if name != "ids"]
    expected = case.get("expected")
    if expected is None:
        return []
    names = expected.get("order", list(expected["outputs"]))
    if case["operation"] == "cached_model":
        ways = len(case["inputs"]["arguments"]["feed_lengths"])
        return [f"{name}.{way}" for name in names for way in range(ways)]
    return list(names)


def hello(suite: Suite, scratch: Path) -> dict[str, Any]:
    """The first request: the handshake."""
    return {
        "id": 0,
        "operation": "hello",
        "protocol": PROTOCOL,
        "suite": suite.identity,
        "scratch": str(scratch),
    }


class Requests:
    """Makes the requests of cases for an engine; what they need in files lies in `scratch`."""

    def __init__(self, suite: Suite, scratch: Path):
        self.suite, self.scratch = suite, scratch
        self._vocabularies = Vocabularies(suite, scratch / "vocabularies")

    def request(self, case: Case, number: int, engine: Capabilities) -> dict[str, Any]:
        """The request of a case, without the one that goes before it where it has `after`."""
        request: dict[str, Any] = {"id": number, "case": case["id"], "operation": case["operation"]}
        outputs = [name for name in wanted_outputs(self.suite, case) if engine.gives(name)]
        if case["operation"] == "tokenizer":
            line = self.suite.line(case)
            arguments = {key: line[key] for key in (*TEXT_INPUTS, *TOKENIZER_ARGUMENTS) if key in line}
            if not is_text(line) and "ids" in line:
                arguments["ids"] = line["ids"]
            folder = self._vocabularies.folder(case, line)
            request |= {"model": str(folder), "arguments": arguments, "tensors": {}}
        else:
            if "model" in case:
                request["model"] = str((self.suite.folder / case["model"]).resolve())
            request |= {"arguments": case["inputs"]["arguments"], "tensors": self._tensors(case, engine)}
        return {**request, "outputs": outputs, "results": str(self.results(number))}

    def results(self, number: int) -> Path:
        """The safetensors file in which the engine may leave the outputs of a request."""
        return self.scratch / "results" / f"{number}.safetensors"

    def _tensors(self, case: Case, engine: Capabilities) -> dict[str, Any]:
        inputs = case["inputs"]
        if engine.tensors == "file":
            path = str(self.suite.folder / inputs["file"])
            return {argument: {"file": path, "tensor": name} for argument, name in inputs["tensors"].items()}
        if not inputs["tensors"]:
            return {}
        arrays: dict[str, np.ndarray] = self.suite.tensors(inputs["file"])
        return {a: inline(arrays[name], engine.encoding) for a, name in inputs["tensors"].items()}


class Vocabularies:
    """Vocabularies of tokenizer cases as the folders that a tokenizer loads.

    A sparse Japanese one becomes `vocab.txt` and `emoji.json`; one with other contents in some file is a copy.
    """

    def __init__(self, suite: Suite, scratch: Path):
        self._suite, self._scratch = suite, scratch
        self._made: dict[str, Path] = {}
        self._lock = threading.Lock()

    def folder(self, case: Case, line: dict[str, Any]) -> Path:
        """The folder of a case's vocabulary."""
        # Those Japanese lines that are refused name none: any will do.
        name = case["inputs"].get("vocabulary", "tokenizer/japanese_sparse.json")
        changes, files = line.get("changes"), line.get("files")
        if not name.endswith(".json") and changes is None and files is None:
            return (self._suite.folder / name).resolve()
        key = json.dumps([name, changes, files])
        with self._lock:
            if key not in self._made:
                folder = self._scratch / str(len(self._made))
                if name.endswith(".json"):
                    _expand(self._suite.folder / name, folder)
                else:
                    _copy(self._suite.folder / name, folder, changes or [], files or {})
                self._made[key] = folder
            return self._made[key]


def _expand(source: Path, folder: Path) -> None:
    """A Japanese vocabulary as files; the lines that a sparse one leaves out hold characters of private use."""
    content = json.loads(source.read_text(encoding="utf-8"))
    lines = content["lines"]
    if isinstance(lines, dict):
        lines = [lines.get(str(index), chr(0xF0000 + index)) for index in range(content["size"])]
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_bytes("\n".join(lines).encode("utf-8"))
    emoji = {key: content[key] for key in ("emoji", "emoji_inv")}
    (folder / "emoji.json").write_text(json.dumps(emoji), encoding="utf-8")
    config = {"tokenizer_class": "GPTNeoXJapaneseTokenizer", "unk_token": content["unk_token"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


def _copy(source: Path, folder: Path, changes: list[dict[str, Any]], files: dict[str, str]) -> None:
    shutil.copytree(source, folder)
    for name, content in files.items():
        (folder / name).write_text(content, encoding="utf-8")
    path = folder / "tokenizer.json"
    for change in changes:
        content = json.loads(path.read_text(encoding="utf-8"))
        place = content
        for key in change["path"][:-1]:
            place = place[key]
        place[change["path"][-1]] = change["value"]
        path.write_text(json.dumps(content), encoding="utf-8")
