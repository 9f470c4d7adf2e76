"""Compiled kernels are cached in a private folder whose name changes with their sources."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import refimpl.kernel_cache
from refimpl.kernel_cache import cache_root, content_key, kernel_cache, private_folder

PROGRAM = """
import sys
from pathlib import Path
from refimpl.kernel_cache import kernel_cache
package = Path(sys.argv[1])
sys.path.insert(0, str(package))
with kernel_cache(package) as folder:
    import kernels
print(folder, kernels.answer(1), sum(kernels.answer.stats.cache_hits.values()))
import numba
assert numba.config.CACHE_DIR != str(folder)
"""

KERNELS = """
from numba import njit
from helper import AMOUNT
@njit(cache=True)
def answer(x):
    return x + AMOUNT
"""


def run(package: Path, cache: Path) -> tuple[str, int, int]:
    environment = {**os.environ, "REFIMPL_CACHE_DIR": str(cache)}
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(package)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    folder, value, hits = result.stdout.split()
    return folder, int(value), int(hits)


def test_a_kernel_is_compiled_once_and_again_when_any_source_changes(tmp_path):
    package, cache = tmp_path / "package", tmp_path / "cache"
    package.mkdir()
    (package / "kernels.py").write_text(KERNELS)
    (package / "helper.py").write_text("AMOUNT = 1\n")
    first, value, hits = run(package, cache)
    assert (value, hits) == (2, 0)
    assert any(Path(first).rglob("*.nbc"))
    assert run(package, cache) == (first, 2, 1)
    # Numba alone would not see this edit: the constant lives in another file.
    (package / "helper.py").write_text("AMOUNT = 5\n")
    second, value, hits = run(package, cache)
    assert second != first
    assert (value, hits) == (6, 0)


def test_the_key_depends_on_names_contents_and_versions(tmp_path):
    a, b = tmp_path / "a.py", tmp_path / "b.py"
    a.write_text("1")
    b.write_text("2")
    key = content_key([a, b], "numba 1")
    assert key == content_key([b, a], "numba 1")
    assert key != content_key([a, b], "numba 2")
    assert key != content_key([a], "numba 1")
    b.write_text("3")
    assert key != content_key([a, b], "numba 1")


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="POSIX permissions")
def test_a_folder_that_others_can_write_to_is_not_used(tmp_path):
    assert private_folder(tmp_path / "new" / "folder")
    assert (tmp_path / "new" / "folder").stat().st_mode & 0o777 == 0o700
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    assert not private_folder(shared)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "new")
    assert not private_folder(link)
    file = tmp_path / "file"
    file.write_text("")
    assert not private_folder(file)


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("REFIMPL_CACHE_DIR", str(tmp_path))
    assert cache_root() == tmp_path
    monkeypatch.delenv("REFIMPL_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_root() == Path("/x/refimpl")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_root() == Path.home() / ".cache" / "refimpl"


def test_people_are_told_before_code_is_made(monkeypatch, tmp_path):
    said = []
    monkeypatch.setattr(refimpl.kernel_cache, "announce", said.append)
    monkeypatch.setenv("REFIMPL_CACHE_DIR", str(tmp_path / "cache"))
    package = tmp_path / "kernels"
    package.mkdir()
    with kernel_cache(package) as folder:
        assert len(said) == 1
        assert said[0].endswith("once ...")
        (folder / "numba_x").mkdir()
        (folder / "numba_x" / "kernel.nbi").write_bytes(b"")
    with kernel_cache(package):
        assert len(said) == 1  # it is there
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o777)
    monkeypatch.setenv("REFIMPL_CACHE_DIR", str(tmp_path / "shared"))
    with kernel_cache(package) as folder:
        assert folder is None
        assert len(said) == 2
        assert "once" not in said[1]
