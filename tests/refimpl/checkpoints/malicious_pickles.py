"""Pickles that would run programs if a pickle machine read them: thousands, and those that were published.

None is ever given to one, but in `feed_pickles.py` a few, to see that an execution would be noticed.
"""

from __future__ import annotations

import ast
import importlib
import pkgutil
import sys
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tests.refimpl.checkpoints.torch_files import (
    FALSE,
    HOOKS,
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
    tuple_of,
)

# --- what can be called --------------------------------------------------------------------------------


@cache
def stdlib_callables() -> list[tuple[str, str]]:
    """(module, name) of every function, class and method of the standard library.

    Modules in Python are parsed, not imported: importing some opens windows and browsers.
    """
    folder = Path(sysconfig.get_paths()["stdlib"])
    found: set[tuple[str, str]] = set()
    for module in _modules(folder, ""):
        path = folder / Path(*module.split("."))
        source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        found |= {(module, name) for name in _defined(source)}
    for module in sys.builtin_module_names:
        names = vars(importlib.import_module(module))
        found |= {(module, name) for name, value in names.items() if callable(value)}
    return sorted(found)


def _modules(folder: Path, prefix: str) -> Iterator[str]:
    for module in pkgutil.iter_modules([str(folder)]):
        if module.name in ("test", "tests", "site-packages", "idle_test"):
            continue
        if module.ispkg:
            yield prefix + module.name
            yield from _modules(folder / module.name, f"{prefix}{module.name}.")
        elif (folder / module.name).with_suffix(".py").exists():
            yield prefix + module.name


def _defined(source: Path) -> Iterator[str]:
    try:
        tree = ast.parse(source.read_bytes())
    except (SyntaxError, ValueError):  # examples of broken programs, of lib2to3
        return
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        if isinstance(node, ast.ClassDef):
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef):
                    yield f"{node.name}.{inner.name}"


# --- how it can be called ------------------------------------------------------------------------------


def short(value: str) -> bytes:
    raw = value.encode()
    return b"\x8c" + bytes([len(raw)]) + raw


def routes(module: str, name: str, argument: bytes) -> dict[str, bytes]:
    """Every way of the pickle language to get at something by its name and to call it with one argument."""
    wanted = global_name(module, name)
    stacked = short(module) + short(name) + b"\x93"
    return {
        "GLOBAL": wanted + b"0" + argument,
        "REDUCE": wanted + tuple_of(argument) + b"R",
        "REDUCE, one opcode for the tuple": wanted + argument + b"\x85R",
        "STACK_GLOBAL": stacked + tuple_of(argument) + b"R",
        "STACK_GLOBAL with names from the memo": (
            short(module) + b"\x940" + short(name) + b"\x940" + b"h\0h\1\x93" + tuple_of(argument) + b"R"
        ),
        "STACK_GLOBAL with old texts": (
            b"V" + module.encode() + b"\nV" + name.encode() + b"\n\x93" + argument + b"\x85R"
        ),
        "INST": b"(" + argument + b"i" + wanted[1:],
        "OBJ": b"(" + wanted + argument + b"o",
        "NEWOBJ": wanted + tuple_of(argument) + b"\x81",
        "NEWOBJ_EX": wanted + tuple_of(argument) + b"}\x92",
        "BUILD": wanted + argument + b"b",
        "BUILD with a state of slots": wanted + b"N" + dictionary({"x": argument}) + b"\x86b",
        "BUILD of a class that is called": wanted + b")\x81" + dictionary({"__setstate__": argument}) + b"b",
        "EXT1": b"\x82\1" + tuple_of(argument) + b"R",
        "EXT2": b"\x83\1\0" + tuple_of(argument) + b"R",
        "EXT4": b"\x84\1\0\0\0" + tuple_of(argument) + b"R",
        "PERSID": b"P" + module.encode() + b"\n",
        "BINPERSID": tuple_of(text("storage"), wanted, text("0"), text("cpu"), number(1)) + b"Q",
        "a call of what a call gives": wanted + b")R" + tuple_of(argument) + b"R",
    }


def places(value: bytes) -> dict[str, bytes]:
    """A state dict with that value in each place where a value can be."""
    weight = tensor(storage("FloatStorage", "0", 6), 0, (2, 3), (3, 1))
    ordered = call("collections", "OrderedDict")
    rebuild = ("torch._utils", "_rebuild_tensor_v2")
    of = storage("FloatStorage", "0", 6)
    shape, strides = numbers((2, 3)), numbers((3, 1))
    parameter = ("torch._utils", "_rebuild_parameter")
    return {
        "alone": value,
        "a weight": dictionary({"w": weight, "x": value}),
        "a key": b"}(" + value + weight + b"u",
        "behind": dictionary({"w": weight}) + value,
        "below": value + dictionary({"w": weight}),
        "the storage": dictionary({"w": call(*rebuild, value, number(0), shape, strides, FALSE, HOOKS)}),
        "the offset": dictionary({"w": call(*rebuild, of, value, shape, strides, FALSE, HOOKS)}),
        "the shape": dictionary({"w": call(*rebuild, of, number(0), value, strides, FALSE, HOOKS)}),
        "requires_grad": dictionary({"w": call(*rebuild, of, number(0), shape, strides, value, HOOKS)}),
        "the hooks": dictionary({"w": call(*rebuild, of, number(0), shape, strides, FALSE, value)}),
        "more arguments": dictionary({"w": call(*rebuild, of, number(0), shape, strides, FALSE, HOOKS, value)}),
        "the data of a parameter": dictionary({"w": call(*parameter, value, TRUE, HOOKS)}),
        "what is in an OrderedDict": call("collections", "OrderedDict", value),
        "the metadata": ordered + dictionary({"_metadata": value}) + b"b",
        "in the metadata": ordered + dictionary({"_metadata": dictionary({"": value})}) + b"b",
        "attributes": ordered + dictionary({"__class__": value}) + b"b",
        "the type of a storage": (
            dictionary({"w": tuple_of(text("storage"), value, text("0"), text("cpu"), number(6)) + b"Q"})
        ),
        "the place of a storage": (
            tuple_of(text("storage"), global_name("torch", "FloatStorage"), text("0"), value, number(6)) + b"Q"
        ),
    }  # fmt: skip


# --- what was published --------------------------------------------------------------------------------

PYTHON = "__import__('os').system('id')"

#: (module, name) and arguments, by the number of the report. From the advisories of picklescan, fickling and torch.
PUBLISHED_CALLS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "CVE-2025-1716 pip": ("pip", "main", ("install",)),
    "CVE-2025-10157 below a listed module": ("asyncio.unix_events", "_UnixSubprocessTransport._start", ("id",)),
    "GHSA-4r9r-ch6f-vxmx": ("torch.utils.bottleneck.__main__", "run_cprofile", (PYTHON,)),
    "GHSA-4whj-rm5r-c2v8": ("torch.utils.bottleneck.__main__", "run_autograd_prof", (PYTHON,)),
    "GHSA-86cj-95qr-2p4f": ("torch._dynamo.guards", "GuardBuilder.get", (PYTHON,)),
    "GHSA-f4x7-rfwp-v3xw": ("torch.fx.experimental.symbolic_shapes", "ShapeEnv.evaluate_guards_expression", (PYTHON,)),
    "GHSA-f745-w6jp-hpxx": ("torch.utils.collect_env", "run", ("id",)),
    "GHSA-jhph-76pp-mggw": ("torch.utils.collect_env", "run_and_read_all", ("id",)),
    "GHSA-h3qp-7fh3-f8h4": ("torch.utils.data.datapipes.utils.decoder", "basichandlers", ("pickle", "x")),
    "GHSA-vr7h-p6mm-wpmh": ("torch.jit.unsupported_tensor_ops", "execWrapper", (PYTHON,)),
    "GHSA-vv6j-3g6g-2pvj": ("torch.utils._config_module", "ConfigModule.load_config", ("x",)),
    "GHSA-5qwp-399c-mjwf": ("trace", "Trace.run", (PYTHON,)),
    "GHSA-g344-hcph-8vgg": ("trace", "Trace.runctx", (PYTHON,)),
    "GHSA-x696-vm39-cp64": ("profile", "Profile.run", (PYTHON,)),
    "GHSA-6vqj-c2q5-j97w": ("profile", "Profile.runctx", (PYTHON,)),
    "GHSA-f54q-57x4-jg88": ("lib2to3.pgen2.grammar", "Grammar.loads", ("x",)),
    "GHSA-p9w7-82w4-7q8m": ("lib2to3.pgen2.pgen", "ParserGenerator.make_label", (PYTHON,)),
    "GHSA-3vg9-h568-4w9m": ("idlelib.debugobj", "ObjectTreeItem.SetText", (PYTHON,)),
    "GHSA-6w4w-5w54-rjvr": ("idlelib.autocomplete", "AutoComplete.get_entity", (PYTHON,)),
    "GHSA-7cq8-mj8x-j263": ("idlelib.autocomplete", "AutoComplete.fetch_completions", (PYTHON,)),
    "GHSA-8r4j-24qv-fmq9": ("idlelib.calltip", "Calltip.fetch_tip", (PYTHON,)),
    "GHSA-9xph-j2h6-g47v": ("idlelib.calltip", "get_entity", (PYTHON,)),
    "GHSA-m869-42cg-3xwr": ("idlelib.run", "Executive.runcode", (PYTHON,)),
    "GHSA-j343-8v2j-ff7w": ("idlelib.pyshell", "ModifiedInterpreter.runcommand", (PYTHON,)),
    "GHSA-3gf5-cxq9-w223": ("idlelib.pyshell", "ModifiedInterpreter.runcode", (PYTHON,)),
    "GHSA-cj3c-v495-4xqh": ("code", "InteractiveInterpreter.runcode", (PYTHON,)),
    "GHSA-xp4f-hrf8-rxw7": ("ensurepip", "_run_pip", ("install",)),
    "GHSA-fqq6-7vqf-w3fg": ("doctest", "debug_script", (PYTHON,)),
    "GHSA-9w88-8rmg-7g2p": ("cProfile", "runctx", (PYTHON,)),
    "GHSA-49gj-c84q-6qm9": ("cProfile", "run", (PYTHON,)),
    "GHSA-m273-6v24-x4m4": ("distutils.file_util", "write_file", ("x", "y")),
    "GHSA-4675-36f9-wf6r": ("ctypes", "CDLL", ("libc.so.6",)),
    "GHSA-vqmv-47xg-9wpr": ("pty", "spawn", ("id",)),
    "GHSA-r8g5-cgf2-4m4m": ("numpy.f2py.crackfortran", "getlincoef", (PYTHON,)),
    "pkgutil.resolve_name": ("pkgutil", "resolve_name", ("os:system",)),
    "numpy runstring": ("numpy.testing._private.utils", "runstring", (PYTHON,)),
    "torch codecache": ("torch._inductor.codecache", "compile_file", ("", "", "id")),
    "torch.load in weights": ("torch.serialization", "load", ("other.bin",)),
    "torch.hub": ("torch.hub", "load", ("somebody/something", "model")),
    "timeit": ("timeit", "timeit", ("", PYTHON)),
    "runpy": ("runpy", "_run_code", (PYTHON,)),
    "bdb": ("bdb", "Bdb.run", (PYTHON,)),
    "pydoc pipepager": ("pydoc", "pipepager", ("", "id")),
    "venv": ("venv", "create", ("$(id)",)),
    "requests": ("requests", "get", ("https://example.invalid",)),
    "aiohttp": ("aiohttp", "ClientSession", ()),
    "joblib": ("joblib", "load", ("other.bin",)),
    "a dotted name": ("collections", "OrderedDict.__init__.__globals__", ()),
    "a dotted name of torch": ("torch._utils", "_rebuild_tensor_v2.__globals__", ()),
    "a name inside of an allowed module": ("collections", "_sys.intern", ("x",)),
    "an allowed name with a dotted module": ("torch", "_utils._rebuild_tensor_v2", ()),
}  # fmt: skip


def published() -> dict[str, bytes]:
    """Complete pickles, by the number of the report."""
    found = {
        name: pickle_of(call(module, function, *map(text, arguments)))
        for name, (module, function, arguments) in PUBLISHED_CALLS.items()
    }
    weight = tensor(storage("FloatStorage", "0", 6), 0, (2, 3), (3, 1))
    locate = call("pydoc", "locate", text("os"))
    method = call("operator", "methodcaller", text("system"), text("id"))
    return found | {
        "CVE-2025-71320 pydoc.locate and operator.methodcaller": pickle_of(method + tuple_of(locate) + b"R"),
        "GHSA-84r2-jw7c-4r5q attrgetter": pickle_of(
            call("operator", "attrgetter", text("system"))
            + tuple_of(locate)
            + b"R"
            + tuple_of(text("id"))
            + b"R"
        ),
        "CVE-2026-24747 an entry set in a tensor": pickle_of(weight + text("x") + number(1) + b"s"),
        "CVE-2026-24747 entries set in a tensor": pickle_of(weight + b"(" + text("x") + number(1) + b"u"),
        "CVE-2026-24747 entries set in a storage": pickle_of(storage("FloatStorage", "0", 6) + b"(KcKcu"),
        "CVE-2026-24747 more numbers than the record has": pickle_of(
            dictionary({"w": tensor(storage("FloatStorage", "0", 1 << 40), 0, (1 << 40,), (1,))})
        ),
        "CVE-2025-32434 the tar format inside": pickle_of(
            dictionary({"w": call("tarfile", "open", text("x"))})
            + b"0"
            + call("torch.serialization", "_legacy_load")
        ),
        "sour pickles: globals, compile, eval": (
            b"c__builtin__\nglobals\n(tRp100\n0c__builtin__\ncompile\n(S'1'\nS''\nS'exec'\ntRp101\n"
            b"0c__builtin__\neval\n(g101\ng100\ntR."
        ),
        "INST in protocol 0": b"(S'raise SystemExit'\ni__builtin__\nexec\n.",
        "INST behind PROTO": b"\x80\2(" + text(PYTHON) + b"ibuiltins\nexec\n.",
        "names out of order (a capture the flag)": (
            b"Vos\np2\n0Vsystem\np3\n0Vtorch\np0\n0VLongStorage\np1\n0g2\ng3\n\x93(Vid\ntR."
        ),
        "an invalid memo index stops the scanner": b"\x80\4" + short("os") + b"\x94h\7" + b"h\0\x93.",
        "bytes behind STOP": pickle_of(dictionary({"w": weight})) + call("os", "system", text("id")) + b".",
        "POP hides the call": pickle_of(call("os", "system", text("id")) + b"0" + dictionary({"w": weight})),
        "an opcode that breaks the scanner after the call": pickle_of(
            call("os", "system", text("id")) + b"\xff"
        ),
        "a frame of a wrong size": b"\x80\4\x95" + bytes(8) + call("os", "system", text("id")) + b".",
        "a frame of no end": b"\x80\4\x95" + b"\xff" * 8 + call("os", "system", text("id")) + b".",
        "a module of the file system": pickle_of(global_name("..x", "y")),
        "a module with a line end of Windows": pickle_of(b"cos\r\nsystem\n" + tuple_of(text("id")) + b"R"),
        "a name in another form of Unicode": pickle_of(
            global_name("ｏｓ", "system") + tuple_of(text("id")) + b"R"
        ),
        "collections.OrderedDict by eval": pickle_of(
            call("builtins", "eval", text("collections.OrderedDict"))
        ),
        "copyreg": pickle_of(
            call("copyreg", "add_extension", text("os"), text("system"), number(1)) + b"0\x82\1."
        ),
        "getattr": pickle_of(call("builtins", "getattr", global_name("os", "path"), text("os"))),
        "__import__": pickle_of(call("builtins", "__import__", text("os"))),
        "_codecs.encode, as bytes in protocol 2": pickle_of(
            call("_codecs", "encode", text("x"), text("latin1"))
        ),
        "a code object": pickle_of(call("types", "FunctionType", call("marshal", "loads", text("x")))),
        "numpy scalar objects": pickle_of(call("numpy.core.multiarray", "_reconstruct", text("x"))),
        "dill": pickle_of(call("dill._dill", "_create_function", text("x"))),
        "cloudpickle": pickle_of(call("cloudpickle.cloudpickle", "_make_function", text("x"))),
    }


def everything(canary: str) -> Iterator[tuple[str, bytes]]:
    """All of them, each a whole data.pkl; `canary` is the path of a file that none may make."""
    write = text(f"open({canary!r}, 'w')")
    for module, name in stdlib_callables():
        yield f"{module}.{name}", pickle_of(call(module, name, write), 2)
    for module, name in (("os", "system"), ("posix", "system"), ("subprocess", "Popen"), ("nt", "system")):
        for route, value in routes(module, name, text(f"touch {canary}")).items():
            for place, body in places(value).items():
                for protocol in (2, 3, 4, 5):
                    yield f"{module}.{name} by {route} in {place}, {protocol}", pickle_of(body, protocol)
    for module, name in (("builtins", "exec"), ("builtins", "eval"), ("__builtin__", "eval"), ("io", "open")):
        for route, value in routes(module, name, write).items():
            for place, body in places(value).items():
                yield f"{module}.{name} by {route} in {place}", pickle_of(body, 4)
    yield from published().items()
