"""The suite read in plain Python: nothing but the standard library, and no NumPy.

    python read_suite.py [FOLDER] [CASE]

checks the sha256 of every file and counts the cases; with a case it shows its inputs and its expected outputs.
Take what you need of it: `read_safetensors` is the only part that is more than reading JSON.
"""

import hashlib
import json
import struct
import sys
from pathlib import Path

# dtype of a safetensors file -> letter of the struct module, bytes of a number
FORMATS = {
    "F64": ("d", 8),
    "F32": ("f", 4),
    "F16": ("e", 2),
    "I64": ("q", 8),
    "I32": ("i", 4),
    "U8": ("B", 1),
    "BOOL": ("?", 1),
}


def read_safetensors(path):
    """Name -> (dtype, shape, flat list of numbers, row by row)."""
    data = Path(path).read_bytes()
    (length,) = struct.unpack_from("<Q", data)  # 8 bytes: how long the JSON is that follows
    header, start = json.loads(data[8 : 8 + length]), 8 + length
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        letter, size = FORMATS[entry["dtype"]]
        begin, end = entry["data_offsets"]  # counted from the end of the JSON
        numbers = struct.unpack_from(f"<{(end - begin) // size}{letter}", data, start + begin)
        tensors[name] = (entry["dtype"], entry["shape"], list(numbers))
    return tensors


def check_files(folder, manifest):
    """The paths of files that are not those of the manifest."""
    wrong = []
    for entry in manifest["files"]:
        path = folder / entry["path"]
        if entry["path"].startswith("../") and not path.exists():
            continue  # the trained model belongs to the repository, not to the suite
        if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != entry["sha256"]:
            wrong.append(entry["path"])
    return wrong


def show_case(folder, case):
    """Print what is given and what is expected."""
    print(case["id"], "-", case.get("title", case["operation"]))
    inputs = case["inputs"]
    if case["operation"] == "tokenizer":
        lines = (folder / inputs["file"]).read_text(encoding="utf-8").split("\n")
        print(json.dumps(json.loads(lines[inputs["line"] - 1]), ensure_ascii=False, indent=1))
        return
    print("arguments:", json.dumps(inputs["arguments"]))
    if "model" in case:
        print("model:", case["model"])
    tensors = read_safetensors(folder / inputs["file"])
    for argument, name in inputs["tensors"].items():
        show_tensor("given", argument, tensors[name])
    for output, names in case.get("expected", {"outputs": {}})["outputs"].items():
        show_tensor("expected", output, tensors[names.get("float64", names.get("int64"))])


def show_tensor(word, name, tensor):
    dtype, shape, numbers = tensor
    shown = ", ".join(f"{number:.6g}" for number in numbers[:6])
    print(f"{word} {name}: {dtype} {shape}: {shown}{', ...' if len(numbers) > 6 else ''}")


def main(arguments):
    folder = Path(arguments[0]) if arguments else Path(__file__).resolve().parents[1]
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    wrong = check_files(folder, manifest)
    if wrong:
        print("not the files of the manifest:", *wrong)
        return 1
    if len(arguments) > 1:
        found = [case for case in manifest["cases"] if case["id"] == arguments[1]]
        if not found:
            print("no such case:", arguments[1])
            return 1
        show_case(folder, found[0])
        return 0
    print(
        f"suite {manifest['suite']['version']}: {len(manifest['files'])} files, {len(manifest['cases'])} cases"
    )
    for level in ("op", "layer", "model", "tokenizer", "generation"):
        print(f"  {level}: {sum(case['level'] == level for case in manifest['cases'])}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
