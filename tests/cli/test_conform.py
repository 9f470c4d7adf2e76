"""`refimpl conform`: the command, its reports and its exit codes."""

from __future__ import annotations

import json
import shlex
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from refimpl.conformance.suite import Suite
from tests.goldens import load_manifest
from tests.refimpl.conformance_engines import FEW, engine, small_suite


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_suite(tmp_path_factory.mktemp("suite"))


def output(result) -> str:
    return result.stdout.decode()


def error(result) -> str:
    return result.stderr.decode()


def run_with(inside, suite: Path, command: list[str], *more: str | Path):
    return inside("conform", "run", "--suite", suite, "--cmd", shlex.join(command), *more)


def test_a_right_engine(inside, suite: Path, tmp_path: Path) -> None:
    result = run_with(inside, suite, engine(tmp_path))
    assert (result.returncode, error(result)) == (0, "")
    lines = output(result).splitlines()
    assert lines[0] == f"echo 1, float32, suite {Suite(suite).version}"
    assert lines[-1] == f"passed: {len(FEW)} pass"
    assert ["op", "linear", "1", "1"] in [line.split() for line in lines]


def test_a_wrong_engine(inside, suite: Path, tmp_path: Path) -> None:
    result = run_with(inside, suite, engine(tmp_path, "far"))
    assert result.returncode == 1
    assert "ops/linear: fail: y is off by" in output(result)
    assert "x the largest value, 13.33 (allowed 5e-06), most at [0, 0, 5]: " in output(result)
    assert output(result).endswith(f"failed: {len(FEW) - 1} pass, 1 fail\n")
    quiet = run_with(inside, suite, engine(tmp_path, "far"), "-q")
    assert output(quiet) == f"failed: {len(FEW) - 1} pass, 1 fail\n"


def test_a_mistake_is_named(inside, suite: Path, tmp_path: Path) -> None:
    """An engine that gives the logits of interleaved rotary, in float32."""
    swap = """
        pass
    if case["id"] == "gpt_neox/tiny-plain/forward":
        tensors = read_safetensors(GOLDEN / case["expected"]["file"])
        wrong = tensor("wrong.interleaved-rotary.logits", tensors, dtype="float32")
        answer["outputs"]["logits"] = wrong
    """.strip()
    card = tmp_path / "card.md"
    result = run_with(inside, suite, engine(tmp_path, swap), "--markdown", card)
    assert result.returncode == 1
    assert "  interleaved-rotary gives the same logits (recorded, to " in output(result)
    assert "    neighbouring dimensions rotated instead of halves\n" in output(result)
    assert "  interleaved-rotary: 1 case (gpt_neox/tiny-plain/forward)" in output(result)
    assert "| interleaved-rotary | 1 | gpt_neox/tiny-plain/forward |" in card.read_text(encoding="utf-8")


def test_the_reports(inside, suite: Path, tmp_path: Path) -> None:
    paths = {name: tmp_path / name for name in ("r.json", "r.xml", "r.md")}
    more = ["--json", paths["r.json"], "--junit", paths["r.xml"], "--markdown", paths["r.md"]]
    assert run_with(inside, suite, engine(tmp_path, "nan"), *more).returncode == 1
    report = json.loads(paths["r.json"].read_text(encoding="utf-8"))
    assert report["counts"] == {"pass": len(FEW) - 1, "fail": 1}
    assert report["suite"]["sha256"] == Suite(suite).sha256
    assert {entry["id"] for entry in report["results"]} == set(FEW)
    root = ET.fromstring(paths["r.xml"].read_text(encoding="utf-8"))
    assert sum(int(part.get("tests", 0)) for part in root) == len(FEW)
    assert [case.get("name") for case in root.iter("testcase") if case.find("failure") is not None] == [
        "ops/linear"
    ]
    card = paths["r.md"].read_text(encoding="utf-8")
    for part in ("# echo 1", "| computed in | float32 |", "## Failures", "`ops/linear`", "NaN or infinity"):
        assert part in card
    result = run_with(inside, suite, engine(tmp_path), "--json", "-")
    assert json.loads(output(result))["exit_code"] == 0
    assert error(result) == f"passed: {len(FEW)} pass\n"


def test_known_deviations(inside, suite: Path, tmp_path: Path) -> None:
    path, card = tmp_path / "xfail.txt", tmp_path / "card.md"
    path.write_text("ops/linear no dense layers yet\n", encoding="utf-8")
    result = run_with(inside, suite, engine(tmp_path, "crash"), "--xfail", path, "--markdown", card)
    assert result.returncode == 0
    assert output(result).endswith(f"passed: {len(FEW) - 1} pass, 1 xfail\n")
    assert "| `ops/linear` | no dense layers yet |" in card.read_text(encoding="utf-8")
    result = run_with(inside, suite, engine(tmp_path), "--xfail", path)
    assert result.returncode == 1
    assert "ops/linear: xpass: is right, and was expected to fail: no dense layers yet" in output(result)


def test_a_run_in_which_nothing_is_measured_fails(inside, suite: Path, tmp_path: Path) -> None:
    result = run_with(inside, suite, engine(tmp_path, more="{'has': {'levels': []}}"))
    assert result.returncode == 1
    assert "failed: nothing was measured" in output(result)


def test_a_run_is_taken_up(inside, suite: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    assert run_with(inside, suite, engine(tmp_path), "--resume", log, "--level", "op").returncode == 0
    before = log.read_text(encoding="utf-8")
    result = run_with(inside, suite, engine(tmp_path), "--resume", log, "--jobs", "2")
    assert output(result).endswith(f"passed: {len(FEW)} pass (3 of them from the log of an earlier run)\n")
    assert log.read_text(encoding="utf-8").startswith(before)


def test_a_repaired_engine_is_asked_again(inside, suite: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    assert run_with(inside, suite, engine(tmp_path, "far"), "--resume", log).returncode == 1
    result = run_with(inside, suite, engine(tmp_path), "--resume", log, "-q")
    taken = f"({len(FEW) - 1} of them from the log of an earlier run)"
    assert (result.returncode, output(result)) == (0, f"passed: {len(FEW)} pass {taken}\n")


def test_the_list_of_failures_is_short(inside, suite: Path, tmp_path: Path) -> None:
    """The first to fail come first, and what explains them last."""
    wrong = tmp_path / "wrong.py"
    wrong.write_text(
        "import json, sys\n"
        "for line in sys.stdin:\n"
        "    number = json.loads(line)['id']\n"
        "    hello = {'protocol': 1, 'name': 'x', 'dtype': 'float32'} if number == 0 else {'outputs': {}}\n"
        "    print(json.dumps({'id': number, **hello}), flush=True)\n",
        encoding="utf-8",
    )
    result = inside(
        "conform",
        "run",
        "--cmd",
        shlex.join([sys.executable, str(wrong)]),
        "--level",
        "op",
        "--exclude",
        "optional",
    )
    shown = [line.split(":")[0] for line in output(result).splitlines() if ": fail: " in line]
    total = int(output(result).split()[-2])
    assert (len(shown), shown[0].startswith("ops/activation")) == (20, True)
    assert f"\n… and {total - 20} failures more; --all shows them\n" in output(result)
    assert len(output(result).splitlines()) < 60
    everything = inside(
        "conform", "run", "--cmd", shlex.join([sys.executable, str(wrong)]), "--level", "op", "--exclude", "optional",
        "--all",
    )  # fmt: skip
    assert output(everything).count(": fail: ") == total


def test_the_cases_are_listed(inside, suite: Path) -> None:
    result = inside("conform", "run", "--suite", suite, "--list", "--level", "op", "--exclude", "softmax")
    assert output(result) == "ops/layer-norm\nops/linear\n"
    everything = output(inside("conform", "run", "--suite", suite, "--list")).split()
    assert everything == [
        "ops/layer-norm", "ops/linear", "ops/softmax", "gpt_neox/broken-wrong-shape/error-load",
        "gpt_neox/tiny-plain/forward", "gpt_neox/tiny-plain/cache-mask", "gpt_neox/tiny-plain/greedy-eos-list",
        "tokenizer/neox-small/sentence",
    ]  # fmt: skip
    listed = inside("conform", "run", "--list")
    assert len(output(listed).splitlines()) == len(load_manifest()["cases"])


def test_an_engine_in_python(inside, suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_engine.py").write_text(
        "import numpy as np\n"
        "def answer(request):\n"
        "    print('thinking')\n"
        "    if request['operation'] == 'hello':\n"
        "        return {'name': 'mine', 'dtype': 'float32', 'has': {'operations': ['linear', 'softmax']}}\n"
        "    given = {k: v.astype('float32') for k, v in request['tensors'].items()}\n"
        "    if request['operation'] == 'linear':\n"
        "        return {'outputs': {'y': given['x'] @ given['weight'].T}}\n"
        "    raise RuntimeError('no softmax today')\n",
        encoding="utf-8",
    )
    monkeypatch.chdir(tmp_path)
    result = inside("conform", "run", "--suite", suite, "--python", "my_engine:answer")
    assert result.returncode == 1
    assert output(result).endswith(f"failed: 1 pass, {len(FEW) - 2} unsupported, 1 crashed\n")
    assert "stderr: RuntimeError: no softmax today" in output(result)
    assert "Not answers" not in output(result)
    missing = inside("conform", "run", "--suite", suite, "--python", "my_engine:nothing")
    assert missing.returncode == 2
    assert "has no attribute 'nothing'" in error(missing)


@pytest.mark.parametrize(("backend", "dtype"), [("numba", "float32"), ("numpy", "float64")])
def test_this_package_passes_the_whole_suite(dtype: str, backend: str, inside) -> None:
    result = inside("conform", "run", "--backend", backend, "--dtype", dtype, "--jobs", "2")
    assert output(result).endswith(f"passed: {len(load_manifest()['cases']):,} pass\n"), output(result)[
        -3000:
    ]
    assert result.returncode == 0


def test_export(inside, suite: Path, tmp_path: Path) -> None:
    result = inside("conform", "export", tmp_path / "out", "--suite", suite)
    assert result.returncode == 0
    archive = Path(output(result).strip())
    assert archive.parent == tmp_path / "out"
    again = run_with(inside, archive, engine(tmp_path), "-q")
    assert output(again) == f"passed: {len(FEW)} pass\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("run", "name one engine"),
        ("run --cmd a --backend numpy", "found --cmd, --backend"),
        ("run --cmd ''", "the command is empty"),
        ("run --cmd '\"'", "cannot be read"),
        ("run --cmd /nothing/here", "cannot be started"),
        ("run --cmd a --dtype float32", "--dtype does not go with --cmd"),
        ("run --backend nothing", "nothing"),
        ("run --backend numpy --include nothing", "fits no case"),
        ("run --backend numpy --level middle", "unknown level"),
        ("run --backend numpy --include softmax --exclude op", "no case is left"),
        ("run --backend numpy --timeout 0", "is not a number of seconds"),
        ("run --backend numpy --timeout abc", "--timeout: 'abc' is not a number of seconds"),
        ("run --backend numpy --start-timeout abc", "'abc' is not a number of seconds"),
        ("run --backend numpy --jobs 0", "is not a whole number from 1 to 256"),
        ("run --backend numpy --jobs two", "'two' is not a whole number from 1 to 256"),
        ("run --backend numpy --suite /nothing", "no such suite"),
        ("run --backend numpy --suite EMPTY", "A suite is the folder golden/ of a source checkout"),
        ("run --backend numpy --suite EMPTY/manifest.json", "Name its folder: --suite "),
        ("", "arguments are required: {run,export}"),
        ("run --backend numpy --json /nothing/here/r.json", "no file can be written there"),
        ("run --backend numpy --xfail /nothing", "no such file"),
        ("run --from-dir /nothing --dtype float32", "no such folder"),
        ("run --from-dir /nothing --jobs 2", "--from-dir runs nothing"),
        ("run here --backend numpy", "unrecognized arguments: here"),
        ("export", "name the folder"),
        ("walk", "invalid choice"),
    ],
)
def test_a_wrong_call(arguments: str, said: str, inside, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    if "EMPTY/" in arguments:
        (tmp_path / "empty" / "manifest.json").write_text("{}", encoding="utf-8")
    result = inside("conform", *shlex.split(arguments.replace("EMPTY", str(tmp_path / "empty"))))
    assert said in error(result)
    assert result.returncode == 2
    assert output(result) == ""


def test_what_the_engine_said_at_its_end_has_lines_of_its_own(inside, suite: Path, tmp_path: Path) -> None:
    ends = engine(tmp_path, hello="print('boom', file=sys.stderr); sys.exit(3)")
    result = run_with(inside, suite, ends)
    assert result.returncode == 2
    assert error(result).splitlines() == [
        "stderr of the engine: boom",
        "refimpl: error: the engine gave no answer to the handshake: ended with exit code 3",
    ]


def test_a_suite_that_is_wrong(inside, tmp_path: Path) -> None:
    newer = small_suite(tmp_path / "newer", format_version=2)
    result = inside("conform", "run", "--suite", newer, "--backend", "numpy")
    assert (result.returncode, "newer major version" in error(result)) == (2, True)
    tampered = small_suite(tmp_path / "tampered")
    (tampered / "vectors/ops/linear.safetensors").write_bytes(b"")
    result = inside("conform", "run", "--suite", tampered, "--backend", "numpy")
    assert (result.returncode, "other sha256" in error(result)) == (2, True)


def test_the_command_in_a_process(refimpl, suite: Path, tmp_path: Path) -> None:
    result = refimpl("conform", "run", "--suite", suite, "--cmd", shlex.join(engine(tmp_path)), "-q")
    assert (result.returncode, output(result)) == (0, f"passed: {len(FEW)} pass\n")
    assert b"Exit code" in refimpl("conform", "--help").stdout
