"""No regular expression is made of what stands in a file: patterns are constants, or escaped text."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
READING = sorted(
    [*(ROOT / "tokenizer").rglob("*.py"), ROOT / "refimpl/json_reader.py", ROOT / "refimpl/auto.py"]
)
LIBRARIES = ("re", "regex")
NO_PATTERN = ("escape", "purge")  # their functions that compile nothing


def patterns(tree: ast.Module) -> Iterator[tuple[ast.expr, ast.AST]]:
    """The first argument of every call of `re` and `regex`, and the innermost function (or module) around it."""

    def look(node: ast.AST, inside: ast.AST) -> Iterator[tuple[ast.expr, ast.AST]]:
        for child in ast.iter_child_nodes(node):
            is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            yield from look(child, child if is_function else inside)
            if isinstance(child, ast.Call) and _is_library(child.func):
                yield child.args[0] if child.args else child, inside

    yield from look(tree, tree)


def _is_library(function: ast.expr) -> bool:
    return (
        isinstance(function, ast.Attribute)
        and isinstance(function.value, ast.Name)
        and function.value.id in LIBRARIES
        and function.attr not in NO_PATTERN
    )


def is_known(part: ast.AST, inside: ast.AST) -> bool:
    """Whether an expression is made of constants of modules and of escaped text alone."""
    match part:
        case ast.Constant():
            return True
        case ast.JoinedStr(values=parts):
            return all(is_known(inner, inside) for inner in parts)
        case (
            ast.FormattedValue(value=inner)
            | ast.Attribute(value=inner, attr="pattern" | "regular_expression")
        ):
            return is_known(inner, inside)
        case ast.BinOp(left=left, right=right):
            return is_known(left, inside) and is_known(right, inside)
        case ast.Name(id=name) if name.isupper():
            return True
        case ast.Name(id=name):
            given = [value for target, value in _bindings(inside) if target == name]
            return bool(given) and all(is_known(value, inside) for value in given)
        case ast.Call(func=ast.Attribute(value=ast.Name(id="re"), attr="escape")):
            return True
        case ast.Call(
            func=ast.Name(id="map"), args=[ast.Attribute(value=ast.Name(id="re"), attr="escape"), _]
        ):
            return True
        case ast.Call(func=ast.Attribute(value=ast.Constant(), attr="join"), args=[inner]):
            return is_known(inner, inside)
        case ast.Call(func=ast.Attribute(attr="regular_expression") as method, args=[]):
            return is_known(method, inside)
        case ast.Call(func=ast.Name(id="CharacterClass"), args=[inner]):
            return is_known(inner, inside)
    return False


def _bindings(inside: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """The names that are bound by `=` or in a comprehension, each with what it is bound to."""
    for node in ast.walk(inside):
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                yield name, value
            case ast.comprehension(target=ast.Name(id=name), iter=value):
                yield name, value
            case ast.Name(id=name, ctx=ast.Store()) if not _is_simple(node, inside):
                yield name, ast.Pass()  # bound in a way that is not looked into, so it is not known
            case ast.arg(arg=name):
                yield name, node


def _is_simple(name: ast.Name, inside: ast.AST) -> bool:
    return any(
        (isinstance(node, ast.Assign) and node.targets == [name])
        or (isinstance(node, ast.comprehension) and node.target is name)
        for node in ast.walk(inside)
    )


@pytest.mark.parametrize("path", READING, ids=lambda path: str(path.relative_to(ROOT)))
def test_patterns_are_known(path: Path) -> None:
    for pattern, inside in patterns(ast.parse(path.read_text(encoding="utf-8"))):
        assert is_known(pattern, inside), f"{path}:{pattern.lineno}: {ast.unparse(pattern)}"


@pytest.mark.parametrize("path", READING, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_libraries_keep_their_names(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.module not in LIBRARIES, f"{path}:{node.lineno}"
        elif isinstance(node, ast.Import):
            assert not any(alias.name in LIBRARIES and alias.asname for alias in node.names), (
                f"{path}:{node.lineno}"
            )


def test_there_are_patterns() -> None:
    assert sum(len(list(patterns(ast.parse(path.read_text(encoding="utf-8"))))) for path in READING) > 10


@pytest.mark.parametrize(
    "program",
    [
        "re.compile(data)",
        "re.search(data['Regex'], 'a')",
        "regex.compile(f'a{data}')",
        "re.compile('a' + data)",
        "re.compile(pattern=data)",
        "re.compile('|'.join(data))",
        "re.compile('|'.join(map(str, data)))",
        "x = re.escape(data)\nx = data\nre.compile(x)",
        "for x in data: re.compile(x)",
        "def f(x): return re.compile(x)",
        "def f(x):\n    x = 'a'\n    return re.compile(x)",
        "[re.compile(x) for x in data]",
        "with data as x: re.fullmatch(x, 'a')",
        "re.compile(CharacterClass(data).regular_expression())",
        "re.compile(data.pattern)",
    ],
)
def test_what_is_not_known_is_found(program: str) -> None:
    assert [p for p, inside in patterns(ast.parse(program)) if not is_known(p, inside)]


@pytest.mark.parametrize(
    "program",
    [
        "re.compile('a')",
        "re.compile(rf'{_NAME}b{2 + 3}')",
        "re.compile('|'.join(map(re.escape, data)))",
        "x = re.escape(data)\nre.compile(x + 'a')",
        "[re.compile(x) for x in 'abc']",
    ],
)
def test_what_is_known_is_not_found(program: str) -> None:
    assert all(is_known(p, inside) for p, inside in patterns(ast.parse(program)))
