"""Engines for the tests of `refimpl conform run`: small suites, and programs that answer well or badly."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.goldens import GOLDEN, load_manifest

#: One case of each kind of answer.
FEW = (
    "ops/layer-norm",
    "ops/linear",
    "ops/softmax",
    "gpt_neox/tiny-plain/forward",
    "gpt_neox/tiny-plain/greedy-eos-list",
    "gpt_neox/tiny-plain/cache-mask",
    "gpt_neox/broken-wrong-shape/error-load",
    "tokenizer/neox-small/sentence",
)

#: Gives the float32 outputs of the suite itself, and does what WHAT names in the case ops/linear.
ENGINE = """\
import base64, json, os, subprocess, sys, time
from pathlib import Path
sys.path.insert(0, EXAMPLES)
from read_suite import read_safetensors

WHAT = sys.argv[1] if len(sys.argv) > 1 else ""
GOLDEN = Path(SUITE)
CASES = {case["id"]: case for case in json.loads((GOLDEN / "manifest.json").read_text())["cases"]}
DTYPES = {"F64": "float64", "F32": "float32", "I64": "int64", "BOOL": "bool"}


def tensor(name, tensors, **changes):
    dtype, shape, numbers = tensors[name]
    return {"dtype": DTYPES[dtype], "shape": shape, "data": numbers, **changes}


def outputs_of(case, request):
    if case["operation"] == "tokenizer":
        lines = (GOLDEN / case["inputs"]["file"]).read_text(encoding="utf-8").split("\\n")
        line = json.loads(lines[case["inputs"]["line"] - 1])
        return {name: line[name] for name in request["outputs"]}
    tensors = read_safetensors(GOLDEN / case["expected"]["file"])
    made = {}
    for output, names in case["expected"]["outputs"].items():
        value = tensor(names.get("float32", names.get("int64")), tensors)
        ways = [name for name in request["outputs"] if name.startswith(output + ".")]
        made |= {name: value for name in ways} if case["operation"] == "cached_model" else {output: value}
    return made


def say(answer):
    print(json.dumps(answer), flush=True)


for line in sys.stdin:
    request = json.loads(line)
    number = {"id": request["id"]}
    if request["operation"] == "hello":
        HELLO
        say({**number, "protocol": 1, "name": "echo", "version": "1", "dtype": "float32", **MORE})
        continue
    case = CASES[request["case"]]
    if case["expect"]["kind"] == "error":
        say({**number, "error": {"kind": case["expect"]["error"], "message": "no"}})
        continue
    answer = {**number, "outputs": outputs_of(case, request)}
    if case["id"] == "ops/linear":
        y = answer["outputs"]["y"]
        BAD
    say(answer)
"""

#: Bad behaviour, in the case ops/linear: name -> what the engine does there.
BAD = {
    "": "pass",
    "hang": "time.sleep(600)",
    "hang with a child": "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); time.sleep(600)",
    "crash": "print('about to end', file=sys.stderr, flush=True); os.abort()",
    "exit": "sys.exit(3)",
    "noise": "print('loading weights ...', flush=True); print('{\"id\": 77}', flush=True); print('[1, 2]', flush=True)",
    "shape": "y['shape'] = [len(y['data'])]",
    "count": "y['data'] = y['data'][1:]",
    "dtype": "y['dtype'] = 'float64'",
    "unknown dtype": "y['dtype'] = 'complex64'",
    "nan": "y['data'][3] = float('nan')",
    "infinity": "y['data'][3] = float('inf')",
    "texts": "y['data'] = ['a'] * len(y['data'])",
    "base64": "y['data'] = '???'",
    "missing": "answer['outputs'] = {}",
    "no outputs": "answer = number",
    "list": "answer['outputs'] = [1]",
    "broken": "print('{\"id\": ', flush=True); time.sleep(600)",
    "endless": "os.write(1, b'x' * (1 << 20)) and [os.write(1, b'x' * (1 << 20)) for _ in range(600)]",
    "many lines": "[os.write(1, b'noise\\n' * (1 << 16)) for _ in range(600)]",
    "far": "y['data'][5] += 1.0",
    "elsewhere": "answer['outputs']['y'] = {'file': '/etc/passwd', 'tensor': 'y'}",
    "no file": "answer['outputs']['y'] = {'file': request['results'], 'tensor': 'y'}",
    "wrong error": "answer = {**number, 'error': {'kind': 'input', 'message': 'I do not like it'}}",
    "unsupported": "answer = {**number, 'unsupported': 'dense layers'}",
}


def engine(
    folder: Path, bad: str = "", suite: Path = GOLDEN, more: str = "{}", hello: str = "pass", tail: str = ""
) -> list[str]:
    """The command of an engine that is written into `folder`."""
    program = ENGINE.replace("EXAMPLES", repr(str(GOLDEN / "examples"))).replace("SUITE", repr(str(suite)))
    program = program.replace("HELLO", hello).replace("MORE", more).replace("BAD", BAD.get(bad, bad))
    path = folder / f"engine_{hashlib.sha256(program.encode()).hexdigest()[:8]}.py"
    path.write_text(program + textwrap.dedent(tail), encoding="utf-8")
    return [sys.executable, str(path)]


def small_suite(folder: Path, ids: Sequence[str] = FEW, **suite: Any) -> Path:
    """A suite of a few cases of the real one, as a folder of its own; `suite` changes what its manifest says."""
    manifest = load_manifest()
    cases = [case for case in manifest["cases"] if case["id"] in ids]
    assert len(cases) == len(ids)
    used = {case["inputs"][key] for case in cases for key in ("file", "vocabulary") if key in case["inputs"]}
    used |= {case["model"] for case in cases if "model" in case}
    files = [e for e in manifest["files"] if e["path"] in used or e["path"].rpartition("/")[0] in used]
    for entry in files:
        target = folder / entry["path"]
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(GOLDEN / entry["path"], target)
    content = {**manifest, "files": files, "cases": cases, **suite}
    (folder / "manifest.json").write_text(json.dumps(content), encoding="utf-8")
    return folder
