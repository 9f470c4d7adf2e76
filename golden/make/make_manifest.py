"""Collect `golden/manifest.json` from the model folders, the vector files and the tokenizer files.

Needs the standard library only.  Nothing is computed: every vector file carries its cases in its
safetensors metadata, and every line of a tokenizer file is a case.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).resolve().parents[1]

HEAD: dict[str, Any] = {
    "$schema": "./manifest.schema.json",
    "format_version": 1,
    "suite": {"name": "refimpl golden vectors", "version": "1.3.0", "licence": "Apache-2.0"},
    "generator": {
        "command": "python golden/make/make_all.py",
        "requirements": "golden/make/requirements.txt",
    },
    "meanings": {
        "paths": "relative to the folder of this file; those that begin with ../ belong to the repository around it",
        "features": "what a program needs beside the plain forward pass to run the case; README.md explains each",
        "required": "false: a program is right without it; the case is about something that version 5 of transformers "
        "no longer has, that no published file uses, or about files that it need not read",
        "inputs.tensors": "argument of the operation -> name of the tensor in inputs.file",
        "inputs.arguments": "further arguments, by the names of transformers",
        "expected.outputs": "output -> dtype -> name of the tensor in expected.file; compare with float64, or with "
        "int64 where the outputs are ids",
        "expected.order": "of the operation layers: the outputs in the order in which they are computed",
        "expected.real_tokens": "name of a bool tensor [batch, seq]: compare only where it is true",
        "tolerance.scale": {
            "largest": "|difference| <= tolerance[dtype] * largest (the largest |value| at real tokens)",
            "element": "|difference| <= tolerance[dtype] * max(1, |expected value|), value by value",
            "exact": "equal",
        },
        "tolerance.measured_float32": "what the independent float32 run differs from float64, on this scale",
        "expect.kind": {
            "return": "the call returns the expected outputs",
            "ignore_rows": "the same, but only real tokens have a right answer",
            "either": "any one of the listed outcomes is right",
            "error": "the call is refused, with an error of the kind named",
        },
        "expect.error": {
            "input": "an argument of the call is wrong",
            "config": "no model can be built from this config",
            "checkpoint": "the weights do not fit the config, or the model that it names, or their file is more than "
            "weights",
            "tokenizer_file": "a vocabulary file is not what its format says",
            "text": "the text is not valid Unicode",
        },
        "detects": "frequent mistake -> how far its logits lie from the right ones, relative to the largest",
        "wrong": "name of a frequent mistake -> name of the tensor in expected.file with the logits that it gives; in "
        "the line of a tokenizer case: name -> the ids that it gives (wrong_decoded: the text)",
        "after": "another case: the same loaded model is called with that one first",
    },
}

DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64"}
DTYPES |= {"I32": "int32", "U8": "uint8", "BOOL": "bool"}
TOKENIZER_SOURCE = {
    "kind": "independent",
    "library": "transformers",
    "version": "5.23.0",
    "address": "https://github.com/huggingface/transformers/tree/v5.23.0/src/transformers/models/gpt_neox_japanese",
    "command": "python golden/make/make_tokenizer.py",
}
NEOX_TOKENIZER_SOURCE = {
    "kind": "independent",
    "library": "tokenizers",
    "version": "0.23.3",
    "address": "https://github.com/huggingface/tokenizers/tree/v0.23.3",
    "command": "python golden/make/make_neox_tokenizer.py",
}
SENTENCEPIECE_SOURCE = {
    "kind": "independent",
    "library": "transformers",
    "version": "4.46.3",
    "address": "https://github.com/huggingface/transformers/tree/v4.46.3/src/transformers/models/t5",
    "command": "python golden/make/make_sentencepiece.py",
    "how": "T5Tokenizer in Python (use_fast=False), over the package sentencepiece 0.2.3",
}
#: Beginning of the name of a tokenizer file -> where its cases come from, if they do not say it.
TOKENIZER_SOURCES = {
    "tokenizer/neox": NEOX_TOKENIZER_SOURCE,
    "tokenizer/sentencepiece": SENTENCEPIECE_SOURCE,
    "tokenizer/": TOKENIZER_SOURCE,
}
EMBEDDED_FILES = ("config.json", "model.safetensors")


def read_header(path: Path) -> dict[str, Any]:
    """The JSON header of a safetensors file: its length in 8 bytes, then the text."""
    with open(path, "rb") as file:
        return json.loads(file.read(int.from_bytes(file.read(8), "little")))


def describe(path: Path, name: str) -> dict[str, Any]:
    """The entry of one file: its hash, its size and, for safetensors, what it holds."""
    data = path.read_bytes()
    entry: dict[str, Any] = {"path": name, "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    if path.suffix == ".safetensors":
        header = read_header(path)
        header.pop("__metadata__", None)
        entry["tensors"] = {
            tensor: {"dtype": DTYPES[header[tensor]["dtype"]], "shape": header[tensor]["shape"]}
            for tensor in sorted(header)
        }
    return entry


def golden_files(golden: Path) -> list[Path]:
    """Every file that belongs to the suite, in a fixed order."""
    folders = [golden / name for name in ("models", "vectors", "tokenizer")]
    return sorted(path for folder in folders for path in folder.rglob("*") if path.is_file())


def cases_of_vectors(path: Path) -> list[dict[str, Any]]:
    return json.loads(read_header(path)["__metadata__"]["cases"])


def cases_of_tokenizer(path: Path, name: str) -> Iterator[dict[str, Any]]:
    """One case for each line; the line itself holds text, ids and whatever else it says."""
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if line:
            yield tokenizer_case(json.loads(line), name, number)


def tokenizer_case(line: dict[str, Any], name: str, number: int) -> dict[str, Any]:
    source = next(source for start, source in TOKENIZER_SOURCES.items() if name.startswith(start))
    entry = {
        "id": line["id"],
        "level": "tokenizer",
        "operation": "tokenizer",
        "features": line.get("features", []),
        "required": line.get("required", True),
        "inputs": {"file": name, "line": number},
        "expect": line.get("expect", {"kind": "return"}),
        "source": line.get("source", source),
    }
    if "vocabulary" in line:
        entry["inputs"]["vocabulary"] = f"{name.rpartition('/')[0]}/{line['vocabulary']}"
    return entry | {key: line[key] for key in ("title", "spec") if key in line}


def collect(golden: Path = GOLDEN) -> dict[str, Any]:
    """The manifest of what lies in `golden` now."""
    files, cases = [], []
    for path in golden_files(golden):
        name = path.relative_to(golden).as_posix()
        files.append(describe(path, name))
        if name.startswith("vectors/"):
            cases += cases_of_vectors(path)
        elif path.suffix == ".jsonl":
            cases += cases_of_tokenizer(path, name)
    outside = sorted({case["model"] for case in cases if case.get("model", "").startswith("../")})
    for folder in outside:
        files += [describe(golden / folder / name, f"{folder}/{name}") for name in EMBEDDED_FILES]
    return {**HEAD, "files": files, "cases": sorted(cases, key=lambda case: case["id"])}


def render(manifest: dict[str, Any]) -> str:
    """JSON with one line for each file and each case, so that a change shows as the lines it touches."""
    head = json.dumps(
        {k: v for k, v in manifest.items() if k not in ("files", "cases")}, indent=2, ensure_ascii=False
    )
    parts = [head.removesuffix("\n}")]
    for key in ("files", "cases"):
        lines = [json.dumps(entry, ensure_ascii=False, sort_keys=True) for entry in manifest[key]]
        parts.append(f'  "{key}": [\n    ' + ",\n    ".join(lines) + "\n  ]")
    return ",\n".join(parts) + "\n}\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--golden", type=Path, default=GOLDEN, help="where the goldens lie")
    golden = parser.parse_args().golden
    manifest = collect(golden)
    (golden / "manifest.json").write_text(render(manifest), encoding="utf-8")
    size = sum(file["bytes"] for file in manifest["files"] if not file["path"].startswith("../"))
    print(f"{len(manifest['cases'])} cases in {len(manifest['files'])} files, {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
