"""Running engines over the suite: good ones, and every way to behave badly."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from refimpl.conformance.log import ResultLog
from refimpl.conformance.process import Limits
from refimpl.conformance.results import Result, count
from refimpl.conformance.runner import Run, grouped, run_engine
from refimpl.conformance.suite import Suite
from refimpl.errors import EngineError, InputError
from tests.refimpl.conformance_engines import FEW, engine, small_suite

QUICK = Limits(seconds=20, start_seconds=20, answer_bytes=1 << 20)


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    return Suite(small_suite(tmp_path_factory.mktemp("suite")))


def run(suite: Suite, command: list[str], **more) -> Run:
    return run_engine(suite, suite.cases, command, **{"limits": QUICK, **more})


def by_id(measured: Run) -> dict[str, Result]:
    return {result.id: result for result in measured.results}


def test_a_right_engine_passes_everything(suite: Suite, tmp_path: Path) -> None:
    measured = run(suite, engine(tmp_path))
    assert count(measured.results) == {"pass": len(FEW)}
    assert [result.id for result in measured.results] == [case["id"] for case in suite.cases]
    assert (measured.engine.name, measured.engine.dtype) == ("echo", "float32")
    linear = by_id(measured)["ops/linear"].outputs[0]
    assert 0 < linear.difference <= linear.tolerance


@pytest.mark.parametrize(
    ("bad", "status", "said"),
    [
        ("crash", "crashed", "SIGABRT"),
        ("exit", "crashed", "exit code 3"),
        ("shape", "fail", "has the shape"),
        ("count", "fail", "numbers for the shape"),
        ("dtype", "fail", "is float64, not float32"),
        ("unknown dtype", "fail", "complex64"),
        ("nan", "fail", "NaN or infinity, first at [0, 0, 3]"),
        ("infinity", "fail", "NaN or infinity"),
        ("texts", "fail", "not a list of float32"),
        ("base64", "fail", "base64"),
        ("missing", "fail", "y is missing"),
        ("no outputs", "invalid", "none of"),
        ("list", "invalid", "none of"),
        ("broken", "invalid", "not JSON"),
        ("endless", "invalid", "more than 1,048,576 bytes"),
        ("many lines", "invalid", "more than 1,048,576 bytes"),
        ("far", "fail", "y is off by"),
        ("elsewhere", "fail", "does not lie in the folder for results"),
        ("no file", "fail", "cannot be read"),
        ("wrong error", "refused", "I do not like it"),
        ("unsupported", "unsupported", "dense layers"),
    ],
)
def test_bad_behaviour_is_the_result_of_its_case_alone(
    bad: str, status: str, said: str, suite: Suite, tmp_path: Path
) -> None:
    measured = by_id(run(suite, engine(tmp_path, bad)))
    result = measured.pop("ops/linear")
    assert (result.status, said in result.message) == (status, True), result.message
    assert count(measured.values()) == {"pass": len(FEW) - 1}


@pytest.mark.parametrize("bad", ["hang", "hang with a child"])
def test_an_engine_that_hangs_is_ended(bad: str, suite: Suite, tmp_path: Path) -> None:
    began = time.monotonic()
    measured = by_id(run(suite, engine(tmp_path, bad), limits=Limits(seconds=1.5, start_seconds=20)))
    assert time.monotonic() - began < 15
    result = measured.pop("ops/linear")
    assert (result.status, result.message) == ("timeout", "no answer within 1.5 seconds")
    assert count(measured.values()) == {"pass": len(FEW) - 1}


def test_noise_is_reported_and_does_no_harm(suite: Suite, tmp_path: Path) -> None:
    result = by_id(run(suite, engine(tmp_path, "noise")))["ops/linear"]
    assert result.status == "pass"
    assert result.noise == ["loading weights ...", '{"id": 77}', "[1, 2]"]


def test_what_a_failing_engine_said_last_is_kept(suite: Suite, tmp_path: Path) -> None:
    assert "about to end" in by_id(run(suite, engine(tmp_path, "crash")))["ops/linear"].stderr


def test_where_a_result_is_wrong_is_said(suite: Suite, tmp_path: Path) -> None:
    judged = by_id(run(suite, engine(tmp_path, "far")))["ops/linear"].worst
    assert judged.first == judged.place == [0, 0, 5]
    assert judged.found - judged.wanted == pytest.approx(1.0, abs=1e-5)
    assert judged.difference > judged.tolerance


def test_several_processes_give_the_same(suite: Suite, tmp_path: Path) -> None:
    measured = run(suite, engine(tmp_path, "exit"), jobs=3)
    assert [result.id for result in measured.results] == [case["id"] for case in suite.cases]
    assert count(measured.results) == {"pass": len(FEW) - 1, "crashed": 1}


def test_tensors_can_be_wanted_inline(suite: Suite, tmp_path: Path) -> None:
    tell = "y['data'] = [sum(len(t['data']) for t in request['tensors'].values())] * len(y['data'])"
    for encoding in ("list", "base64"):
        more = repr({"tensors": "inline", "encoding": encoding})
        result = by_id(run(suite, engine(tmp_path, tell, more=more)))["ops/linear"]
        given = suite.tensors("vectors/ops/linear.safetensors")
        size = given["x"].size + given["weight"].size
        found = result.worst.found
        assert found == size if encoding == "list" else found > 4 * size


@pytest.mark.parametrize(
    ("more", "status", "said"),
    [
        ({"lacks": {"operations": ["lin*"]}}, "unsupported", "operation linear"),
        ({"has": {"operations": ["softmax"]}}, "unsupported", "operation linear"),
        ({"lacks": {"levels": ["op"]}}, "unsupported", "level op"),
        ({"lacks": {"outputs": ["y"]}}, "unsupported", "none of its outputs: y"),
    ],
)
def test_what_an_engine_has_not_is_not_asked(more, status, said, suite: Suite, tmp_path: Path) -> None:
    result = by_id(run(suite, engine(tmp_path, "crash", more=repr(more))))["ops/linear"]
    if "outputs" in more.get("lacks", {}):  # it is asked, for there might have been an error; and it ends
        assert result.status == "crashed"
        result = by_id(run(suite, engine(tmp_path, more=repr(more))))["ops/linear"]
    assert (result.status, result.message) == (status, said)


def test_a_case_can_be_judged_in_part(suite: Suite, tmp_path: Path) -> None:
    result = by_id(run(suite, engine(tmp_path, more="{'lacks': {'outputs': ['last_*', 'offsets*']}}")))
    assert result["gpt_neox/tiny-plain/forward"].not_given == ["last_hidden_state"]
    assert result["tokenizer/neox-small/sentence"].not_given == ["offsets", "offsets_untrimmed"]
    assert count(result.values()) == {"pass": len(FEW)}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"protocol": 2}, "another version of the protocol"),
        ({"dtype": "float16"}, "wrong dtype"),
        ({"name": 3}, "wrong name"),
        ({"has": ["op"]}, "wrong 'has'"),
        ({"lacks": {"colours": ["red"]}}, "wrong 'lacks'"),
        ({"tensors": "by post"}, "wrong tensors"),
        ({"version": 0.1}, 'wrong version; found 0.1; allowed: a text: "0.1", in quotes'),
        ({"protocol": None}, "another version of the protocol; found None"),
        (
            {"has": {"operations": ["layernorm"]}},
            "'layernorm', which is no operation. Did you mean layer_norm",
        ),
        ({"lacks": {"features": ["greeyd"]}}, "Did you mean greedy"),
        ({"lacks": {"levels": ["ops"]}}, "Did you mean op"),
        ({"lacks": {"outputs": ["logit"]}}, "Did you mean logits"),
        ({"lack": {"levels": ["op"]}}, "the handshake has no 'lack'. Did you mean lacks"),
    ],
)
def test_a_wrong_handshake_is_one_clear_error(more, said: str, suite: Suite, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=said):
        run(suite, engine(tmp_path, more=repr(more)))


def test_an_engine_that_does_not_start_is_one_clear_error(suite: Suite, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="cannot be started"):
        run(suite, [str(tmp_path / "nothing")])
    with pytest.raises(EngineError, match="exit code 5") as caught:
        run(suite, engine(tmp_path, hello="print('no GPU', file=sys.stderr); sys.exit(5)"))
    assert caught.value.stderr == ["no GPU"]
    assert "no GPU" not in str(caught.value)


def test_a_program_that_may_not_be_run_says_what_to_do(suite: Suite, tmp_path: Path) -> None:
    program = tmp_path / "engine.mjs"
    program.write_text("say()\n", encoding="utf-8")
    with pytest.raises(EngineError, match=r"Permission denied.*chmod \+x .*--cmd 'node "):
        run(suite, [str(program)])
    program.chmod(0o755)
    with pytest.raises(EngineError, match=r"Exec format error.*#!"):
        run(suite, [str(program)])


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("{**answer, 'id': number['id'] + 1}", "the answer has the id {next}, the request had the id {this}"),
        ("{**answer, 'id': str(number['id'])}", 'the answer has the id "{this}", the request had'),
        ("{'outputs': answer['outputs']}", "the answer has no id, the request had the id {this}"),
        ("{'error': {'kind': 'input'}}", "the answer has no id"),
        ("{'id': True, 'unsupported': 'no'}", "the answer has the id true"),
    ],
)
def test_an_answer_with_another_id_is_told_at_once(
    answer: str, said: str, suite: Suite, tmp_path: Path
) -> None:
    began = time.monotonic()
    result = by_id(run(suite, engine(tmp_path, f"answer = {answer}")))["ops/linear"]
    assert time.monotonic() - began < 15  # the limit of one case is 20
    assert result.status == "invalid"
    number = int(result.message.split()[-1])
    assert said.format(this=number, next=number + 1) in result.message
    assert len(result.message) < 100
    assert result.noise == []


def test_objects_that_are_no_answers_are_noise(suite: Suite, tmp_path: Path) -> None:
    lines = ['{"level": "info"}', '{"error": "no cache"}', '{"id": 5, "message": "loaded"}', "x" * 1000]
    result = by_id(run(suite, engine(tmp_path, f"[print(line, flush=True) for line in {lines}]")))[
        "ops/linear"
    ]
    assert result.status == "pass"
    assert result.noise[:3] == lines[:3]
    assert len(result.noise[3]) == 160


def test_a_silent_start_is_told_and_ended(suite: Suite, tmp_path: Path) -> None:
    said: list[str] = []
    limits = Limits(start_seconds=4)
    began = time.monotonic()
    with pytest.raises(EngineError, match=r"no answer within 4 seconds.*--start-timeout"):
        run(suite, engine(tmp_path, hello="time.sleep(60)"), limits=limits, on_wait=said.append)
    noisy = engine(tmp_path, hello="print('loading', flush=True); time.sleep(60)")
    with pytest.raises(EngineError, match="no answer within 4 seconds") as caught:
        run(suite, noisy, limits=limits, on_wait=said.append)
    assert time.monotonic() - began < 15
    assert caught.value.stdout == ["loading"]
    assert [line.rpartition("; ")[2] for line in said] == [
        "it has written nothing",
        "it has written lines that are no answer, first: loading",
    ]
    run(suite, engine(tmp_path), on_wait=said.append)
    assert len(said) == 2
    assert Limits().start_seconds == 30


def test_an_engine_that_fails_by_itself_has_not_refused(suite: Suite, tmp_path: Path) -> None:
    bad = "answer = {**number, 'error': {'kind': 'internal', 'message': 'index 7'}}"
    result = by_id(run(suite, engine(tmp_path, bad)))["ops/linear"]
    assert (result.status, result.message) == ("crashed", "the engine failed by itself (index 7)")
    bad = bad.replace("internal", "oops")
    result = by_id(run(suite, engine(tmp_path, bad)))["ops/linear"]
    assert result.status == "invalid"
    assert result.message.endswith("'oops'; kinds: input, config, checkpoint, tokenizer_file, text, internal")


def test_what_a_handshake_lacks_is_said(suite: Suite, tmp_path: Path) -> None:
    whole = {"protocol": 1, "name": "x", "dtype": "float32"}
    for left_out in whole:
        part = {key: value for key, value in whole.items() if key != left_out}
        with pytest.raises(EngineError, match=f'"{left_out}" is missing'):
            run(suite, engine(tmp_path, hello=f"say({{**number, **{part!r}}}); continue"))


def test_names_that_the_suite_does_not_have_are_told(suite: Suite, tmp_path: Path) -> None:
    more = {"has": {"operations": ["matmul", "l*"]}, "lacks": {"features": ["rope-of-tomorrow", "rope-*"]}}
    measured = run(suite, engine(tmp_path, more=repr(more)))
    assert [note.partition(" of this suite")[0] for note in measured.notes] == [
        "the handshake (has operations) names 'matmul': no operation",
        "the handshake (lacks features) names 'rope-of-tomorrow': no feature",
        "the handshake (lacks features) names 'rope-*': no feature",
    ]
    assert count(measured.results)["pass"] == 3
    deep = run(suite, engine(tmp_path, more="{'lacks': {'outputs': ['hidden_states.71']}}"))
    assert count(deep.results) == {"pass": len(FEW)}


def test_an_engine_that_starts_only_once_is_given_up(suite: Suite, tmp_path: Path) -> None:
    once = f"open({str(tmp_path / 'once')!r}, 'x')"
    measured = run(suite, engine(tmp_path, "crash", hello=once))
    crashed = [result for result in measured.results if result.status == "crashed"]
    assert len(measured.results) == len(FEW)
    assert "does not start any more" in crashed[-1].message


def test_expected_failures(suite: Suite, tmp_path: Path) -> None:
    reasons = {"ops/linear": "no dense layers", "ops/softmax": "no softmax"}
    measured = by_id(run(suite, engine(tmp_path, "far"), xfail=reasons))
    assert (measured["ops/linear"].status, measured["ops/linear"].reason) == ("xfail", "no dense layers")
    assert (measured["ops/softmax"].status, measured["ops/softmax"].failed) == ("xpass", True)
    lacking = run(suite, engine(tmp_path, more="{'lacks': {'levels': ['op']}}"), xfail=reasons)
    assert lacking.notes == ["2 cases are expected to fail, and unsupported: ops/linear, ops/softmax"]


def test_a_run_is_taken_up_where_its_log_ends(suite: Suite, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with ResultLog(path) as log:
        whole = run(suite, engine(tmp_path, "far"), log=log)
    lines = path.read_text(encoding="utf-8").split("\n")
    assert len(lines) == len(FEW) + 2
    passed = [line for line in lines[1:-1] if '"status": "pass"' in line]
    path.write_text("\n".join([lines[0], *passed[:3], passed[3][:20]]), encoding="utf-8")  # cut off in a line
    asked: list[str] = []
    with ResultLog(path) as log:
        again = run(suite, engine(tmp_path, "far"), log=log, on_result=lambda result: asked.append(result.id))
    assert (len(asked), again.taken) == (len(FEW) - 3, 3)
    for first, second in zip(whole.results, again.results, strict=True):
        first.seconds = second.seconds = 0
        assert first.to_json() == second.to_json()


@pytest.mark.parametrize("bad", ["far", "exit", "no outputs", "wrong error", "unsupported", "hang"])
def test_what_did_not_pass_is_asked_again(bad: str, suite: Suite, tmp_path: Path) -> None:
    """The repaired engine has the same name and version."""
    path = tmp_path / "log.jsonl"
    limits = Limits(seconds=1 if bad == "hang" else 20)
    with ResultLog(path) as log:
        assert (
            count(run(suite, engine(tmp_path, bad), log=log, limits=limits).results)["pass"] == len(FEW) - 1
        )
    asked: list[str] = []
    for taken, left in ((len(FEW) - 1, ["ops/linear"]), (len(FEW), [])):
        with ResultLog(path) as log:
            on_result = lambda result: asked.append(result.id)  # noqa: E731
            measured = run(suite, engine(tmp_path), log=log, on_result=on_result)
        assert count(measured.results) == {"pass": len(FEW)}
        assert (measured.taken, asked) == (taken, left)
        asked.clear()


def test_the_log_of_another_engine_is_refused(suite: Suite, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with ResultLog(path) as log:
        run(suite, engine(tmp_path), log=log)
    before = path.read_bytes()
    with pytest.raises(InputError, match="another engine or suite"), ResultLog(path) as log:
        run(suite, engine(tmp_path, more="{'version': '2'}"), log=log)
    assert path.read_bytes() == before
    path.write_text("something else\n", encoding="utf-8")
    with pytest.raises(InputError, match="no log"), ResultLog(path) as log:
        run(suite, engine(tmp_path), log=log)


def test_cases_of_a_model_stay_together() -> None:
    cases = [{"model": name, "operation": "model", "inputs": {}, "n": n} for n in range(60) for name in "ab"]
    groups = grouped(cases)
    assert all(len({case["model"] for case in group}) == 1 for group in groups)
    assert sum(map(len, groups)) == 120
    assert max(map(len, groups)) <= 25
    assert [group[0]["model"] for group in groups] == ["a", "a", "a", "b", "b", "b"]
