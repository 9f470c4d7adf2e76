"""Pickles that were made to run programs: nothing is executed, and the arguments of what may be called are exact."""

from __future__ import annotations

import ast
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from refimpl.checkpoints.torch_file import TorchFile
from refimpl.checkpoints.torch_values import GLOBALS
from refimpl.errors import CheckpointFormatError, UnsafeCheckpointError
from tests.refimpl.checkpoints.malicious_pickles import published
from tests.refimpl.checkpoints.test_torch_pickle import (
    OF,
    ORDERED,
    REBUILD,
    REPOSITORY,
    WEIGHT,
    read,
    refused,
    unsafe,
)
from tests.refimpl.checkpoints.torch_files import (
    FALSE,
    HOOKS,
    NONE,
    TRUE,
    call,
    dictionary,
    global_name,
    number,
    numbers,
    pickle_of,
    storage,
    tensor,
    text,
    torch_file,
    tuple_of,
)

# --- nothing is executed ---------------------------------------------------------------------------------


def test_no_malicious_pickle_executes_anything(tmp_path: Path) -> None:
    """In a process that notices imports, calls of eval and exec, other files, processes, sockets, foreign functions."""
    command = [sys.executable, "-m", "tests.refimpl.checkpoints.feed_pickles", str(tmp_path)]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    report: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    assert report["events"] == []
    assert report["accepted"] == []
    assert report["left"] == ["pytorch_model.bin"]
    assert set(report["refused"]) == {"UnsafeCheckpointError", "CheckpointFormatError"}
    assert sum(report["refused"].values()) > 20_000
    assert report["refused"]["CheckpointFormatError"] < 20
    assert report["files"] > 2000
    assert report["callables"] > 10_000
    assert report["allowed"] == [["collections", "OrderedDict"]]
    # The same guard notices what Python's own machine does with one of these pickles.
    assert any(event.startswith("exec") for event in report["control"]["events"])
    assert report["control"]["canary"]


@pytest.mark.parametrize("name", published())
def test_a_published_attack_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(torch_file(published()[name], {"0": bytes(24)}))
    with pytest.raises((UnsafeCheckpointError, CheckpointFormatError)):
        TorchFile(path)


def test_a_published_attack_is_refused_for_what_it_is() -> None:
    """Not for a mistake in its spelling: with an allowed name instead, most of them would be read."""
    for name, (module, function) in {
        "CVE-2025-1716 pip": ("pip", "main"),
        "GHSA-49gj-c84q-6qm9": ("cProfile", "run"),
        "CVE-2025-71320 pydoc.locate and operator.methodcaller": ("operator", "methodcaller"),
    }.items():
        error = unsafe(published()[name], repr(f"{module}.{function}"))
        assert (error.module, error.name) == (module, function)  # type: ignore[attr-defined]


def test_the_names_of_weights_are_few_and_exact() -> None:
    assert len(GLOBALS) == 19
    for module, name in GLOBALS:
        assert isinstance(refused(pickle_of(global_name(module, name))), CheckpointFormatError)
        for other in (
            name + ".x",
            name + " ",
            name.swapcase(),
            f"{module}.{name}",
            f"{name}.__init__",
            "",
            "x." + name,
        ):
            unsafe(pickle_of(global_name(module, other)), "names of weights")
        for other in (module + ".", "." + module, module + " ", module.swapcase(), "", module + "\r"):
            unsafe(pickle_of(global_name(other, name)), "names of weights")


READERS = [
    REPOSITORY / f"refimpl/checkpoints/torch_{part}.py" for part in ("zip", "pickle", "values", "file")
]
ALLOWED_MODULES = {
    "__future__", "collections.abc", "dataclasses", "enum", "itertools", "math", "pathlib", "re", "struct", "typing",
    "zlib", "numpy",
    "refimpl.errors", "refimpl.backends", "refimpl.checkpoints.torch_pickle", "refimpl.checkpoints.torch_values",
    "refimpl.checkpoints.torch_zip", "refimpl.checkpoints.weight_file",
}  # fmt: skip
FORBIDDEN = {
    "eval", "exec", "compile", "getattr", "setattr", "delattr", "__import__", "globals", "locals", "vars", "open",
    "breakpoint", "input", "pickle", "importlib", "marshal", "ctypes", "subprocess", "os", "sys", "builtins",
}  # fmt: skip
FORBIDDEN_ATTRIBUTES = {
    "as_strided", "load", "loads", "fromfile", "memmap", "save", "import_module", "system", "frompyfunc", "f2py",
    "test",
    "extract", "extractall", "unlink", "write_bytes", "write_text", "open",
}  # fmt: skip


@pytest.mark.parametrize("path", READERS, ids=lambda path: path.name)
def test_the_readers_have_nothing_to_execute_with(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module or "")
    assert imported <= ALLOWED_MODULES
    # `pickle` is the name of an argument; of a module it never is, as the imports show.
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} - {"pickle"}
    assert names & FORBIDDEN == set()
    attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert attributes & FORBIDDEN_ATTRIBUTES == set()
    assert {name for name in attributes if name.startswith("__")} <= {"__name__"}


# --- calls, with other arguments -------------------------------------------------------------------------

WRONG = {
    "None": NONE, "true": TRUE, "a number": number(1), "a text": text("x"), "a tuple": numbers((1, 2)),
    "a dictionary": b"}",
    "an OrderedDict": HOOKS, "a global": global_name(*REBUILD), "a type": global_name("torch", "HalfStorage"),
    "a dtype": global_name("torch", "uint16"), "a storage": OF, "a tensor": WEIGHT,
    "bytes": storage("UntypedStorage", "1", 8, module="torch.storage"), "texts": tuple_of(text("1"), text("2")),
    "negative": number(-1), "filled hooks": ORDERED + text("x") + NONE + b"s", "truths": tuple_of(TRUE, TRUE),
}  # fmt: skip
CALLS: dict[tuple[str, str], list[bytes]] = {
    ("collections", "OrderedDict"): [],
    ("torch", "Size"): [numbers((2, 3))],
    REBUILD: [OF, number(0), numbers((2, 3)), numbers((3, 1)), FALSE, HOOKS],
    ("torch._utils", "_rebuild_tensor_v3"): [
        storage("UntypedStorage", "1", 8, module="torch.storage"),
        *(number(0), numbers((2, 2)), numbers((2, 1)), FALSE, HOOKS, global_name("torch", "uint16")),
    ],
    ("torch._utils", "_rebuild_parameter"): [WEIGHT, TRUE, HOOKS],
}


@pytest.mark.parametrize("function", CALLS, ids=".".join)
def test_a_call_with_any_other_argument(function: tuple[str, str]) -> None:
    right = CALLS[function]
    value = {"collections": b"}", "torch": WEIGHT}.get(function[0])

    def state_dict(arguments: list[bytes]) -> bytes:
        """One in whose metadata the call stands, where any value may."""
        return pickle_of(ORDERED + dictionary({"_metadata": call(*function, *arguments)}) + b"b")

    assert value is None or read(state_dict(right)) == {}
    accepted = set()
    for place, (kind, argument) in itertools.product(range(len(right)), WRONG.items()):
        arguments = [*right[:place], argument, *right[place + 1 :]]
        try:
            read(state_dict(arguments))
        except (UnsafeCheckpointError, CheckpointFormatError):
            continue
        accepted.add((place, kind))
    whole = {"a number", "negative"}
    expected: set[tuple[int, str]] = set()
    if "tensor" in function[1]:
        kind_of_storage = "bytes" if function[1].endswith("v3") else "a storage"
        expected = {(0, kind_of_storage), (5, "an OrderedDict")}
        expected |= {(1, kind) for kind in whole} | {(2, "a tuple"), (3, "a tuple")}
        expected |= {(6, "a dtype")} if function[1].endswith("v3") else {(4, "true")}
    elif "parameter" in function[1]:
        expected = {(0, "a tensor"), (1, "true"), (2, "an OrderedDict")}
    elif function[1] == "Size":
        expected = {(0, "a tuple")}
    assert accepted == expected
    for arguments in (right[:-1], [*right, NONE], [*right, number(0), NONE], [right], right[:1]):
        if arguments != right and not (function[1] == "Size" and arguments == [right]):
            flat = arguments if arguments != [right] else [tuple_of(*right)]
            unsafe(state_dict(flat), "is called in a way")


@pytest.mark.parametrize(
    ("kind", "allowed"), [("FloatStorage", True), ("BFloat16Storage", True), ("LongStorage", False)]
)
def test_only_fractions_have_gradients(kind: str, allowed: bool) -> None:
    of = storage(kind, "0", 6)
    parts = (number(0), numbers((2, 3)), numbers((3, 1)))
    parameter = call("torch._utils", "_rebuild_parameter", tensor(of, 0, (2, 3), (3, 1)), TRUE, HOOKS)
    for value in (call(*REBUILD, of, *parts, TRUE, HOOKS), parameter):
        if allowed:
            assert len(read(pickle_of(dictionary({"w": value})))) == 1
        else:
            unsafe(pickle_of(dictionary({"w": value})), "requires_grad")


def test_a_call_of_what_is_no_function() -> None:
    for kind, value in WRONG.items():
        if kind == "a global":
            continue
        unsafe(pickle_of(value + b")R"), "cannot be called")
    for arguments in (NONE, number(1), text("x"), b"}", WEIGHT, HOOKS):
        unsafe(pickle_of(global_name("collections", "OrderedDict") + arguments + b"R"), "cannot be called")


def test_entries_go_into_dictionaries_only() -> None:
    """CVE-2026-24747: what is no dictionary was written over as if it were one."""
    for kind, value in WRONG.items():
        if kind in ("a dictionary", "an OrderedDict", "filled hooks"):
            continue
        unsafe(pickle_of(value + text("k") + NONE + b"s"), "not a dictionary")
        unsafe(pickle_of(value + b"(" + text("k") + NONE + b"u"), "not a dictionary")


@pytest.mark.parametrize("name", ["data", "real", "tensor_model_parallel"])
def test_a_parameter_has_no_attributes(name: str) -> None:
    """torch sets each of them: `data` and `real` then give the parameter other numbers."""
    attributes = dictionary({name: tensor(storage("FloatStorage", "1", 6), 0, (2, 3), (3, 1))})
    parameter = call("torch._utils", "_rebuild_parameter_with_state", WEIGHT, FALSE, HOOKS, attributes)
    error = unsafe(pickle_of(dictionary({"w": parameter})), "_rebuild_parameter_with_state")
    assert "torch.save(model.state_dict(), path)" in (error.hint or "")


def test_attributes_are_metadata_of_an_ordered_dict_only() -> None:
    metadata = dictionary({"_metadata": b"}"})
    assert read(pickle_of(ORDERED + metadata + b"b")) == {}
    for kind, value in WRONG.items():
        if kind not in ("an OrderedDict", "filled hooks"):
            unsafe(pickle_of(value + metadata + b"b"), "attributes")
        unsafe(pickle_of(ORDERED + value + b"b"), "attributes")
    for name in ("__class__", "__dict__", "_metadata2", ""):
        unsafe(pickle_of(ORDERED + dictionary({name: b"}"}) + b"b"), "attributes")
        unsafe(pickle_of(ORDERED + dictionary({"_metadata": b"}", name: b"}"}) + b"b"), "attributes")
    unsafe(pickle_of(ORDERED + b"q\0h\0b"), "attributes")


@pytest.mark.parametrize(
    "reference",
    [
        tuple_of(text("module"), global_name("torch", "FloatStorage"), text("0"), text("cpu"), number(6)),
        tuple_of(text("storage"), global_name("torch", "uint16"), text("0"), text("cpu"), number(6)),
        tuple_of(text("storage"), global_name(*REBUILD), text("0"), text("cpu"), number(6)),
        tuple_of(text("storage"), text("FloatStorage"), text("0"), text("cpu"), number(6)),
        *(
            tuple_of(text("storage"), global_name("torch", "FloatStorage"), key, text("cpu"), number(6))
            for key in (text(""), text("x"), text("-1"), text("../0"), text("0 "), text("0\n"), text("\u0661"),
                        text("1" * 21),
                        number(0), NONE, text("0x1"), text("1_0"), text("+1"))
        ),
        *(
            tuple_of(text("storage"), global_name("torch", "FloatStorage"), text("0"), text("cpu"), size)
            for size in (number(-1), TRUE, NONE, text("6"), numbers((6,)))
        ),
        tuple_of(text("storage"), global_name("torch", "FloatStorage"), text("0"), NONE, number(6)),
        tuple_of(text("storage"), global_name("torch", "FloatStorage"), text("0"), text("cpu"), number(6), NONE),
        tuple_of(text("storage"), global_name("torch", "FloatStorage"), text("0"), text("cpu")),
        text("storage"), NONE, b"}", b")", OF, WEIGHT,
    ],
)  # fmt: skip
def test_references_are_storages_only(reference: bytes) -> None:
    unsafe(pickle_of(dictionary({"w": reference + b"Q"})), "not a storage")


@pytest.mark.parametrize(
    ("kind", "size"), [("HalfStorage", 6), ("FloatStorage", 5), ("FloatStorage", 7), ("IntStorage", 6)]
)
def test_a_storage_is_described_in_one_way(kind: str, size: int) -> None:
    other = tensor(storage(kind, "0", size), 0, (1,), (1,))
    unsafe(pickle_of(dictionary({"w": WEIGHT, "x": other})), "two ways")
