"""The suite as data: opened, checked, chosen from, exported, and outputs that lie in files."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

import refimpl
from refimpl.conformance import suite as suite_module
from refimpl.conformance.export import export
from refimpl.conformance.process import Limits
from refimpl.conformance.results import count
from refimpl.conformance.runner import run_engine, run_offline
from refimpl.conformance.selection import read_xfail, select
from refimpl.conformance.suite import Suite
from refimpl.errors import InputError, MissingFileError, SuiteError
from tests.goldens import GOLDEN, load_manifest
from tests.refimpl.conformance_engines import FEW, engine, small_suite

LINEAR = "vectors/ops/linear.safetensors"


def test_the_suite_of_the_checkout_is_the_default() -> None:
    with Suite() as suite:
        assert suite.folder == GOLDEN
        assert len(suite.cases) == len(load_manifest()["cases"])


def test_where_there_is_no_checkout_the_error_says_how_to_get_the_suite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refimpl, "__file__", str(tmp_path / "site-packages" / "refimpl" / "__init__.py"))
    with pytest.raises(MissingFileError, match=r"not part of the installed package.*--suite.*conform export"):
        Suite()


def test_a_suite_can_lie_a_folder_further_down(tmp_path: Path) -> None:
    small_suite(tmp_path / "refimpl-suite" / "golden")
    assert Suite(tmp_path).folder == Suite(tmp_path / "refimpl-suite").folder
    small_suite(tmp_path / "another")
    with pytest.raises(SuiteError, match="several"):
        Suite(tmp_path)
    with pytest.raises(MissingFileError):
        Suite(tmp_path / "nothing")


def tampered(folder: Path) -> None:
    path = folder / LINEAR
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (tampered, r"not those of the manifest \(other sha256\): vectors/ops/linear.safetensors"),
        (lambda folder: (folder / LINEAR).unlink(), "files are missing: vectors/ops/linear.safetensors"),
        (lambda folder: (folder / "models/x.json").write_text("{}"), "does not list: models/x.json"),
        (lambda folder: small_suite(folder, cases=[]), "the suite has no cases"),
        (lambda folder: small_suite(folder, format_version=2), "newer major version.*newer refimpl"),
        (lambda folder: small_suite(folder, suite={"name": "x", "version": "2.0.0"}), "newer major version"),
        (lambda folder: small_suite(folder, suite={"name": "x"}), "not the manifest of a suite"),
        (lambda folder: small_suite(folder, cases=[{"id": "a"}]), "not a case"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "not valid JSON"),
    ],
)
def test_a_suite_that_is_not_as_it_should_be_is_refused(change, said: str, tmp_path: Path) -> None:
    folder = small_suite(tmp_path)
    change(folder)
    with pytest.raises(SuiteError, match=said) as caught:
        Suite(folder)
    assert caught.value.exit_code == 2


def test_a_newer_minor_version_is_read(tmp_path: Path) -> None:
    assert Suite(small_suite(tmp_path, suite={"name": "x", "version": "1.99.0"})).version == "1.99.0"


@pytest.mark.parametrize("name", ["../out", "/out", "a/../../out", "a\\out", "C:out"])
def test_an_archive_writes_nothing_elsewhere(name: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "suite.zip", "w") as archive:
        archive.writestr("golden/manifest.json", "{}")
        archive.writestr(name, "x")
    with pytest.raises(SuiteError, match="leads out of the archive"):
        Suite(tmp_path / "suite.zip")
    assert [path.name for path in tmp_path.iterdir()] == ["suite.zip"]


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "suite.zip").write_bytes(b"PK\x03\x04 and so on")
    with pytest.raises(SuiteError, match="not a zip archive"):
        Suite(tmp_path / "suite.zip")


# --- export --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with Suite(GOLDEN) as suite:
        return export(suite, tmp_path_factory.mktemp("export") / "new folder")


def test_an_export_is_a_suite(exported: Path) -> None:
    with Suite(exported) as suite, Suite(GOLDEN) as origin:
        assert suite.sha256 == origin.sha256
        assert suite.cases == origin.cases
        unpacked = suite.folder
        trained = [case for case in suite.cases if suite.lacks_files(case)]
        assert {tuple(case["features"]) for case in trained} != set()
        assert all("trained" in case["features"] for case in trained)
        for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", (unpacked / "README.md").read_text("utf-8")):
            assert (unpacked / link).exists(), link
    assert not unpacked.exists()


def test_an_export_stays_small(exported: Path) -> None:
    with zipfile.ZipFile(exported) as archive:
        assert sum(entry.file_size for entry in archive.infolist()) < 15_000_000
        assert not [name for name in archive.namelist() if "__pycache__" in name or "/make/" in name]


def test_an_export_has_the_same_bytes_again(exported: Path, tmp_path: Path) -> None:
    with Suite(exported) as suite:
        assert export(suite, tmp_path).read_bytes() == exported.read_bytes()
    assert (tmp_path / f"{exported.name}.sha256").read_text().split() == [
        hashlib.sha256(exported.read_bytes()).hexdigest(),
        exported.name,
    ]


def test_an_export_refuses_a_file_as_its_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with Suite(small_suite(tmp_path / "suite")) as suite, pytest.raises(InputError, match="is a file"):
        export(suite, tmp_path / "file")


def test_an_engine_runs_over_an_archive(tmp_path: Path) -> None:
    with Suite(small_suite(tmp_path / "suite")) as small:
        archive = export(small, tmp_path)
    with Suite(archive) as suite:
        measured = run_engine(suite, suite.cases, engine(tmp_path), limits=Limits(seconds=20))
        assert count(measured.results) == {"pass": len(FEW)}


def test_the_reader_in_plain_python_reads_the_archive(exported: Path) -> None:
    with Suite(exported) as suite:
        program = [sys.executable, "-I", suite.folder / "examples" / "read_suite.py"]
        shown = subprocess.run(program, capture_output=True, text=True, check=True).stdout
        assert f"{len(suite.cases)} cases" in shown
        one = [*program, suite.folder, "ops/layer-norm"]
        shown = subprocess.run(one, capture_output=True, text=True, check=True).stdout
        numbers = suite.tensors("vectors/ops/layer-norm.safetensors")["y.float64"].reshape(-1)
        assert f"{numbers[0]:.6g}, {numbers[1]:.6g}" in shown
        tampered(suite.folder)
        assert subprocess.run(program, capture_output=True).returncode == 1


# --- choosing cases ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def golden() -> Suite:
    return Suite(GOLDEN)


def ids(cases: list[dict]) -> set[str]:
    return {case["id"] for case in cases}


def test_cases_are_chosen_by_id_and_by_tag(golden: Suite) -> None:
    assert ids(select(golden, ["ops/layer-norm*"])) == {
        c["id"] for c in golden.cases if c["operation"] == "layer_norm"
    }
    norms = select(golden, ["layer_norm"])
    assert norms == select(golden, ["ops/layer-norm*"])
    assert select(golden, ["layer_norm", "softmax"], ["ops/layer-norm*"]) == select(golden, ["softmax"])
    assert all(case["level"] == "layer" for case in select(golden, levels=["layer"]))
    assert len(select(golden, ["required"])) + len(select(golden, ["optional"])) == len(golden.cases)
    assert all("rope-yarn" in case["features"] for case in select(golden, ["rope-yarn"]))


def test_cases_are_in_the_order_in_which_an_engine_is_written(golden: Suite) -> None:
    operations = list(dict.fromkeys(case["operation"] for case in select(golden)))
    assert operations == [name for name in suite_module.OPERATIONS if name in operations]
    assert {case["operation"] for case in golden.cases} <= set(suite_module.OPERATIONS)
    assert len(select(golden)) == len(golden.cases)


def test_a_name_that_fits_nothing_is_refused(golden: Suite) -> None:
    with pytest.raises(InputError, match=r"fits no case.*Did you mean softmax"):
        select(golden, ["sofmax"])
    with pytest.raises(InputError, match="fits no case"):
        select(golden, [], ["ops/nothing*"])
    with pytest.raises(InputError, match="unknown level"):
        select(golden, levels=["ops"])
    with pytest.raises(SuiteError, match="no case is left"):
        select(golden, ["softmax"], ["op"])


def test_expected_failures_have_reasons_and_cases(golden: Suite, tmp_path: Path) -> None:
    path = tmp_path / "xfail.txt"
    path.write_text("# no tails\nops/softmax   stops at 80\n\nops/layer-norm*  variance\n", encoding="utf-8")
    reasons = read_xfail(path, golden.cases)
    assert reasons["ops/softmax"] == "stops at 80"
    assert set(reasons) == {"ops/softmax"} | ids(select(golden, ["layer_norm"]))
    path.write_text("ops/softmax one\nops/*\tall\nops/s* some\n", encoding="utf-8")
    reasons = read_xfail(path, golden.cases)
    assert (reasons["ops/softmax"], reasons["ops/linear"]) == ("one", "all")  # its own line before all globs
    path.write_text("ops/softmax one\nops/* all\nops/softmax another\n", encoding="utf-8")
    with pytest.raises(
        InputError, match="line 3: this stands in the list twice; found 'ops/softmax', as in line 1"
    ):
        read_xfail(path, golden.cases)
    path.write_text("ops/softmax\n", encoding="utf-8")
    with pytest.raises(InputError, match="line 1: an expected failure needs a reason"):
        read_xfail(path, golden.cases)
    path.write_text("ops/hardmax  it has none\n", encoding="utf-8")
    with pytest.raises(InputError, match="fits no case"):
        read_xfail(path, golden.cases)
    with pytest.raises(MissingFileError):
        read_xfail(tmp_path / "nothing", golden.cases)


# --- outputs in files ----------------------------------------------------------------------------


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    """Right outputs of three cases, in each of the forms that they may have."""
    folder = tmp_path / "outputs"
    (folder / "ops" / "linear").mkdir(parents=True)
    for name in ("linear", "layer-norm"):
        y = safetensors.numpy.load_file(GOLDEN / f"vectors/ops/{name}.safetensors")["y.float32"]
        if name == "linear":
            np.save(folder / "ops" / "linear" / "y.npy", y)
        else:
            safetensors.numpy.save_file({"y": y}, folder / "ops" / "layer-norm.safetensors")
    refused = folder / "gpt_neox/broken-wrong-shape"
    refused.mkdir(parents=True)
    answer = {"error": {"kind": "checkpoint", "message": "dense has another shape"}}
    (refused / "error-load.json").write_text(json.dumps(answer), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    return Suite(small_suite(tmp_path_factory.mktemp("small")))


def test_outputs_in_files_are_judged(outputs: Path, small: Suite) -> None:
    measured = run_offline(small, small.cases, outputs, dtype="float32")
    assert count(measured.results) == {"pass": 3, "unsupported": len(FEW) - 3}
    np.save(outputs / "ops/linear/y.npy", np.zeros((2, 2), "float32"))
    measured = run_offline(small, small.cases, outputs, dtype="float32", xfail={"ops/layer-norm": "no"})
    assert count(measured.results) == {"unsupported": len(FEW) - 3, "pass": 1, "fail": 1, "xpass": 1}


def test_an_engine_file_says_who_computed_them(outputs: Path, small: Suite) -> None:
    with pytest.raises(InputError, match="in which precision"):
        run_offline(small, small.cases, outputs)
    about = {"name": "mine", "version": "7", "dtype": "float64"}
    (outputs / "engine.json").write_text(json.dumps(about), encoding="utf-8")
    measured = run_offline(small, small.cases, outputs)
    assert measured.engine.name == "mine"
    assert {r.id: r.message for r in measured.results}["ops/linear"] == "y is float32, not float64"


def test_files_of_no_case_are_refused(outputs: Path, small: Suite, tmp_path: Path) -> None:
    (outputs / "ops" / "liner.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=r"named after no case: ops/liner\.safetensors"):
        run_offline(small, small.cases, outputs, dtype="float32")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no outputs"):
        run_offline(small, small.cases, tmp_path / "empty", dtype="float32")
    with pytest.raises(MissingFileError):
        run_offline(small, small.cases, tmp_path / "nothing", dtype="float32")


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY\x01\x00", b"PK\x03\x04"])
def test_a_file_that_cannot_be_read_is_the_result_of_its_case(content, outputs: Path, small: Suite) -> None:
    (outputs / "ops/linear/y.npy").write_bytes(content)
    measured = run_offline(small, small.cases, outputs, dtype="float32")
    assert count(measured.results) == {"pass": 2, "unsupported": len(FEW) - 3, "invalid": 1}


def test_the_package_does_not_know_the_goldens_by_heart() -> None:
    """The kit is driven by the manifest alone: no id of a case stands in its program."""
    text = "".join(p.read_text("utf-8") for p in Path(suite_module.__file__).parent.glob("*.py"))
    assert [case["id"] for case in load_manifest()["cases"] if f'"{case["id"]}"' in text] == []
