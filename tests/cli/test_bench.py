"""`refimpl bench`: what is compared with what, what is said of it, and that peers are on their own.

No test looks at how long anything took.
"""

from __future__ import annotations

import ast
import io
import json
import re
import sys
from pathlib import Path

import pytest

from refimpl.cli.bench import hostile, machine, pairs, participants, texts, tokenizer_cases, worker
from refimpl.cli.bench.pairs import Spread, Task
from refimpl.cli.bench.participants import Participant
from refimpl.errors import RefimplError
from tests.cli.test_main import error_of

TEXT = "朝の町を歩くと、朝の光が町の屋根を照らしていた。\nまだ人は少ない。😀\n" * 3

PEER = """
def prepare(model, threads, options):
    if "{trouble}" == "missing":
        raise ImportError("No module named 'nothing'")
    if "{trouble}" == "prints":
        print("hello")
    def encode(text):
        if "{trouble}" == "fails":
            raise ValueError("out of order")
        if "{trouble}" == "ends":
            raise SystemExit("I have had enough")
        if "{trouble}" == "hangs":
            import time
            time.sleep(60)
        return list(map(ord, text)) + ([0] if "{trouble}" == "differs" else [])
    return {{
        "what": "code points", "versions": {{"peer": "1.0"}}, "threads": threads,
        "operations": {{
            "encode": encode,
            "encode_batch": lambda texts: list(map(encode, texts)),
            "decode": lambda ids: "".join(map(chr, ids)),
            "decode_batch": lambda rows: ["".join(map(chr, ids)) for ids in rows],
        }},
    }}
"""


@pytest.fixture
def peers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of peers in place of the repository's, with one for each kind of trouble."""
    folder = tmp_path / "peers"
    folder.mkdir()
    for trouble in ("none", "missing", "prints", "fails", "ends", "hangs", "differs"):
        (folder / f"tokenizer_{trouble}.py").write_text(PEER.format(trouble=trouble))
    monkeypatch.setattr(participants, "PEERS", folder)
    return folder


@pytest.fixture
def points(peers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own side gives code points too, so that the peers are right."""
    ours = peers.parent / "ours.py"
    ours.write_text(PEER.format(trouble="none"))
    monkeypatch.setattr(tokenizer_cases, "OURS", ours)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Benchmarks that take no time worth mentioning."""
    scale = tokenizer_cases.Scale(
        repeat=2,
        shortest=0,
        limit=30,
        warm_up=100,
        short=200,
        batch=200,
        long=300,
        hostile=60,
        linear=(30, 60),
    )
    monkeypatch.setattr("refimpl.cli.bench.tokenizer.QUICK", scale)
    monkeypatch.delenv("REFIMPL_DATA", raising=False)


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "morning.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture
def bench(inside, text_file):
    """A quick benchmark of one text with one thread."""

    def call(*arguments: str | Path):
        return inside("bench", "tokenizer", "--quick", "--threads", "1", "--text", text_file, *arguments)

    return call


def record(result) -> dict:
    assert result.stdout.count(b"\n") == 1
    return json.loads(result.stdout)


# ---- the command


def test_the_family(inside):
    result = inside("bench", "--help")
    assert (result.returncode, result.stderr) == (0, b"")
    assert "\n  tokenizer  encoding and decoding" in result.stdout.decode()
    assert b"--vs" in inside("bench", "tokenizer", "--help").stdout
    assert "found nothing; allowed: tokenizer" in error_of(inside("bench"), 2)
    assert "Did you mean tokenizer?" in error_of(inside("bench", "tokeniser"), 2)


def test_wrong_calls(bench, inside, tmp_path, peers):
    assert "--cases has an unknown name; found 'sort'; allowed: short, batch" in error_of(
        bench("--cases", "short,sort"), 2
    )
    message = error_of(bench("--vs", "spacy"), 2)
    assert "'spacy'; allowed: transformers, tokenizers, tiktoken, differs" in message
    assert message.endswith("plain")
    assert "--repeat is too small; found 0" in error_of(bench("--repeat", "0"), 2)
    assert "--threads is too small" in error_of(inside("bench", "tokenizer", "--threads", "-1"), 2)
    assert "there is no such folder" in error_of(bench("--model", tmp_path / "none"), 1)
    assert "no such file" in error_of(inside("bench", "tokenizer", "--text", tmp_path / "none.txt"), 1)
    (tmp_path / "empty.txt").write_text("\n")
    assert "there is no text" in error_of(inside("bench", "tokenizer", "--text", tmp_path / "empty.txt"), 2)
    empty = tmp_path / "folder"
    empty.mkdir()
    message = error_of(bench("--model", empty, "--vs", "--json", "-q"), 1)
    assert message.startswith("refimpl: ")
    assert str(empty) in message


def test_every_case_without_peers(bench):
    result = bench("--vs", "--quiet")
    assert (result.returncode, result.stderr) == (0, b"")
    shown = result.stdout.decode()
    assert "text morning: " in shown
    for title in ("one call each", "one call for all", "One long", "first call", "growing", "Hostile"):
        assert title in shown
    assert "failed" not in shown
    assert all(f"\n{family} " in shown for family in hostile.FAMILIES)


def test_the_json_keeps_its_shape(bench, points):
    result = bench("--vs", "none", "--json", "--quiet", "--repeat", "3")
    assert (result.returncode, result.stderr) == (0, b"")
    value = record(result)
    assert list(value) == [
        *("benchmark", "refimpl", "model", "options", "machine", "settings", "texts"),
        *("participants", "unavailable", "results", "first_calls", "differences"),
    ]
    assert list(value["machine"]) == ["cpu", "cores", "usable_cores", "system", "python", "load_average"]
    assert value["settings"] == {
        "cases": list(tokenizer_cases.CASES),
        "threads": [1],
        "repeat": 3,
        "quick": True,
    }
    assert list(value["texts"][0]) == ["name", "source", "bytes", "sha256"]
    for one in value["participants"]:
        assert list(one) == ["name", "threads_asked", "threads", "what", "versions"]
    assert [one["name"] for one in value["participants"]] == ["refimpl", "none"]

    spread = {"median", "q1", "q3"}
    assert {one["case"] for one in value["results"]} == set(tokenizer_cases.CASES) - {"first"}
    for one in value["results"]:
        assert list(one) == [
            *("case", "text", "action", "threads", "variants", "strings", "bytes", "tokens", "seconds"),
            *("mb_per_s", "growth", "failed", "against"),
        ]
        assert one["failed"] is None
        assert one["mb_per_s"].keys() == spread
        assert (one["growth"] is not None) == (one["case"] == "hostile")
        (peer,) = one["against"]
        assert list(peer) == [
            *("name", "seconds", "our_seconds", "mb_per_s", "ratio", "same_result", "difference", "failed")
        ]
        assert peer["ratio"].keys() == spread
        assert (peer["same_result"], peer["difference"], peer["failed"]) == (True, None, None)
        assert len(peer["seconds"]) == len(peer["our_seconds"]) == 3
        assert one["seconds"] == peer["our_seconds"]
    assert [(one["text"], one["name"]) for one in value["first_calls"]] == [
        (text, who) for text in ("short string", "long string") for who in ("refimpl", "none")
    ]
    for one in value["first_calls"]:
        parts = ("import_s", "load_s", "call_s", "total_s")
        assert list(one) == ["text", "bytes", "name", *parts, "ratio", "failed"]
        assert all(one[part].keys() == spread for part in parts)
        assert (one["ratio"] is None) == (one["name"] == "refimpl")


def test_sizes_and_tokens(bench, points):
    value = record(bench("--vs", "--json", "-q", "--cases", "long,linear,batch"))
    by_case = {(one["case"], one["action"], one["bytes"]): one for one in value["results"]}
    beginning = (TEXT * 2).encode()[:300].decode("utf-8", "ignore")
    long = by_case[("long", "encode", len(beginning.encode()))]
    assert (long["strings"], long["tokens"], long["variants"]) == (1, len(beginning), 1)
    assert {bytes for case, _, bytes in by_case if case == "linear"} == {29, 59}  # whole characters
    batch = next(one for one in value["results"] if one["case"] == "batch")
    assert batch["strings"] > 1


def test_our_plain_form_is_a_peer(bench):
    value = record(bench("--vs", "plain", "--json", "-q", "--cases", "short"))
    assert value["participants"][1]["what"] == "GPTNeoXJapaneseTokenizer, impl plain"
    assert all(one["against"][0]["same_result"] for one in value["results"])


def test_threads_are_measured_where_they_may_help(inside, text_file, points):
    arguments = ["--threads", "3", "--vs", "none", "--json", "-q", "--cases", "short,batch"]
    value = record(inside("bench", "tokenizer", "--quick", "--text", text_file, *arguments))
    found = {(one["case"], one["threads"]) for one in value["results"]}
    assert found == {("short", 1), ("batch", 1), ("batch", 3)}
    assert [one["threads"] for one in value["participants"]] == [1, 1, 3, 3]


def test_options_of_the_tokenizer(bench):
    value = record(bench("--clean", "--vs", "--json", "-q", "--cases", "long"))
    assert value["options"] == {"do_clean_text": True}


# ---- peers that are trouble


def test_missing_peers_are_said_in_one_line(bench, points, peers):
    (peers / "tokenizer_transformers.py").write_text(PEER.format(trouble="none"))
    shown = bench("--quiet", "--cases", "long,first", "--vs", "missing", "tokenizers", "transformers")
    assert (shown.returncode, shown.stderr) == (0, b"")
    text = shown.stdout.decode()
    assert "\nmissing: not compared: No module named 'nothing'\n" in text
    assert "\ntokenizers: not compared: its script is not here (" in text
    assert text.count("missing: ") == 1
    assert text.count("transformers") == 5  # its versions, encoding and decoding, two first calls


def test_without_a_checkout_we_are_measured_alone(bench, points, monkeypatch, tmp_path):
    monkeypatch.setattr(participants, "PEERS", tmp_path / "nowhere")
    value = record(bench("--json", "-q", "--cases", "long"))
    assert list(value["unavailable"]) == ["transformers", "tokenizers", "tiktoken"]
    assert all(one["seconds"] and not one["against"] for one in value["results"])


def test_wrong_results_are_not_timed(bench, points):
    result = bench("--json", "--cases", "long", "--vs", "differs", "none")
    assert result.returncode == 1
    said = result.stderr.decode()
    assert "THE IDS DIFFER from those of differs: long, morning, encode, 1 thread: string 0 of part 0" in said
    assert re.search(r"position (\d+): \[\] here, \[0\] there \(\1 and \d+ long\)", said)
    assert "THE TEXTS DIFFER from those of differs" in said
    value = record(result)
    assert value["differences"] == 2
    for one in value["results"]:
        wrong, right = one["against"]
        assert (wrong["same_result"], wrong["seconds"], wrong["ratio"]) == (False, [], None)
        assert right["ratio"] is not None
    table = bench("-q", "--cases", "long", "--vs", "differs").stdout.decode()
    assert "DIFFERS" in table


@pytest.mark.parametrize(
    ("trouble", "said"),
    [("fails", "ValueError: out of order"), ("ends", "the process ended: I have had enough")],
)
def test_the_benchmark_outlives_a_peer(bench, points, trouble, said):
    result = bench("--json", "-q", "--cases", "long,first", "--vs", trouble, "none")
    assert result.returncode == 0
    assert f"long, morning, encode, 1 thread: {trouble}: {said}\n" in result.stderr.decode()
    value = record(result)
    for one in value["results"]:
        assert one["against"][0]["failed"] == said
        assert one["against"][1]["ratio"] is not None
    assert [one["failed"] for one in value["first_calls"]] == [None, said, None] * 2


def test_what_a_peer_prints_is_not_an_answer(bench, points):
    value = record(bench("--json", "-q", "--cases", "long", "--vs", "prints"))
    assert all(one["against"][0]["same_result"] for one in value["results"])


def test_our_own_failure_is_said_too(bench, points, peers):
    tokenizer_cases.OURS.write_text(PEER.format(trouble="fails"))
    result = bench("--json", "-q", "--cases", "long", "--vs")
    assert "refimpl: ValueError: out of order" in result.stderr.decode()
    assert all(one["failed"] and not one["seconds"] for one in record(result)["results"])


# ---- processes


def test_a_process_that_hangs_is_ended(peers):
    peer = Participant("hangs", peers / "tokenizer_hangs.py", "model", 1, limit=0.5)
    peer.start()
    peer.ask("give", name="texts", items=["a"])
    with pytest.raises(RefimplError, match=r"hangs: no answer within 0\.5 s"):
        peer.ask("make", name="ids", operation="encode", of="texts", each=True)
    assert peer.ask("forget") == {}  # a new process
    peer.close()


def test_a_python_that_is_not_there(peers):
    peer = Participant("none", peers / "tokenizer_none.py", "model", 1, python="/no/such/python")
    with pytest.raises(RefimplError, match="none: the process cannot be started"):
        peer.start()


def test_threads_reach_the_libraries(tmp_path):
    script = tmp_path / "tokenizer_asks.py"
    names = ["RAYON_NUM_THREADS", "NUMBA_NUM_THREADS", "TOKENIZERS_PARALLELISM"]
    script.write_text(
        "import os\n"
        "def prepare(model, threads, options):\n"
        f"    return {{'threads': [os.environ[n] for n in {names}], 'operations': {{}}}}\n"
    )
    for threads, expected in ((1, ["1", "1", "false"]), (3, ["3", "3", "true"])):
        asks = Participant("asks", script, "model", threads)
        assert asks.start()["threads"] == expected
        asks.close()


def test_the_protocol(peers):
    requests = [
        {"do": "prepare", "model": "m", "threads": 2, "options": {}},
        {"do": "give", "name": "texts", "items": ["ab", "c"]},
        {"do": "make", "name": "ids", "operation": "encode_batch", "of": "texts", "each": False},
        {"do": "make", "name": "back", "operation": "decode", "of": "ids", "each": True},
        {"do": "show", "name": "ids", "index": 0},
        {"do": "show", "name": "back", "index": 1},
        {"do": "run", "operation": "encode", "of": ["texts"], "each": True, "first": 0, "times": 2},
        {"do": "forget"},
        {"do": "show", "name": "ids", "index": 0},
        {"do": "nonsense"},
    ]
    answers = io.BytesIO()
    lines = b"".join(json.dumps(request).encode() + b"\n" for request in requests)
    worker.serve(worker.Worker(str(peers / "tokenizer_none.py")), io.BytesIO(lines), answers)
    said = [json.loads(line) for line in answers.getvalue().splitlines()]
    assert (said[0]["what"], said[0]["threads"]) == ("code points", 2)
    assert {"import_seconds", "load_seconds"} < said[0].keys()
    assert said[2]["sizes"] == [2, 1]
    assert len(set(said[2]["digests"])) == 2
    assert [said[4], said[5]] == [{"item": [97, 98]}, {"item": "c"}]
    assert said[6].keys() == {"seconds"}
    assert said[8]["error"].startswith("KeyError")
    assert said[9]["error"].startswith("AttributeError")


def test_a_run_goes_through_the_variants_in_turn():
    seen: list[str] = []
    one = worker.Worker("unused")
    one._operations = {"see": seen.append}
    for name in "abc":
        one.do_give(name, [name])
    one.do_run("see", ["a", "b", "c"], True, 2, 4)
    assert seen == ["c", "a", "b", "c"]


def test_peers_are_on_their_own():
    scripts = sorted((Path(__file__).parents[2] / "golden" / "peers").glob("*.py"))
    assert {path.stem for path in scripts} >= {"tokenizer_transformers", "tokenizer_tiktoken"}
    for path in [*scripts, Path(worker.__file__)]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert name.split(".")[0] != "refimpl", path
                if path.parent.name == "bench":
                    assert name.split(".")[0] in sys.stdlib_module_names


# ---- figures


def test_spread():
    assert Spread.of([]) is None
    assert Spread.of([3.0]) == Spread(3.0, 3.0, 3.0)
    assert Spread.of([5.0, 1.0, 2.0, 4.0, 3.0]) == Spread(3.0, 2.0, 4.0)


def test_ratios_are_taken_within_pairs():
    """The machine gets ten times as slow half-way: the ratio stays."""
    ours, theirs = [1.0, 1.0, 10.0, 10.0], [3.0, 4.0, 30.0, 40.0]
    assert pairs.ratios(ours, theirs) == [3.0, 4.0, 3.0, 4.0]
    assert Spread.of(pairs.ratios(ours, theirs)) == Spread(3.5, 3.0, 4.0)


def test_speeds():
    assert pairs.speeds(2_000_000, [1.0, 4.0]) == [2.0, 0.5]


def test_turns_are_taken(monkeypatch):
    order: list[str] = []

    def runner(name: str, seconds: float):
        return lambda: order.append(name) or seconds

    assert pairs.take_turns(runner("a", 1.0), runner("b", 2.0), 3) == ([1.0] * 3, [2.0] * 3)
    assert "".join(order) == "ababab"
    order.clear()
    assert len(pairs.take_turns(runner("a", 1.0), runner("b", 30.0), 9)[0]) == 3  # what takes long


def test_a_task_with_variants():
    task = Task("short", "t", "encode", True, [["a", "猫"], ["abc"], ["あ"]])
    assert (task.sizes, task.bytes, task.operation) == ([4, 3, 3], 3, "encode")
    assert Task("batch", "t", "decode", False, [["a"]]).operation == "decode_batch"


def test_seconds_are_those_of_a_middling_variant():
    """Two variants of 10 and 30 bytes, read at one byte a second: 20 s, whichever was read."""

    class Fake(Participant):
        def __init__(self) -> None:
            self.runs: list[tuple[int, int]] = []

        def ask(self, do, limit=None, **request):
            if do == "run":
                first, times = request["first"], request["times"]
                self.runs.append((first, times))
                return {"seconds": float(sum((10, 30)[(first + n) % 2] for n in range(times)))}
            return {"digests": ["x"], "sizes": [1]}

    fake = Fake()
    prepared = pairs.Prepared(fake, Task("long", "t", "encode", True, [["a" * 10], ["a" * 30]]), 50)
    assert [prepared.run() for _ in range(3)] == [20.0] * 3
    assert fake.runs == [(0, 1), (1, 3), (4, 3), (7, 3)]


# ---- texts


def test_texts_are_cut_into_variants():
    text = texts.Text("t", "", "あいうえおかきくけこ")  # 30 bytes
    assert text.variants(10) == ["あいう", "おか", "くけこ"]  # a cut character is left out
    assert text.variants(6) == ["あい", "うえ", "おか", "きく"]
    assert text.variants(20) == ["あいうえおか"]
    assert len(text.variants(1000)[0].encode()) == 999
    assert texts.Text("t", "", "a\n\nb" + "c" * 250 + "\n").short_strings(300) == [
        ["a", "b" + "c" * 199, "c" * 51, "a", "b" + "c" * 41]
    ]


def test_samples_are_the_same_each_time(monkeypatch):
    monkeypatch.delenv("REFIMPL_DATA", raising=False)
    names = ["japanese", "chat", "english", "code"]
    first = texts.samples(names)
    assert first == texts.samples(names)
    assert [text.name for text in first] == names
    assert all(len(text.content) > 50_000 for text in first)
    assert all("{" not in text.content for text in first[:3])


def test_samples_from_the_large_test_data(data_folder, monkeypatch):
    monkeypatch.setenv("REFIMPL_DATA", str(data_folder))
    for text in texts.samples(["japanese", "chat", "english", "code"]):
        assert text.source != "generated"
        assert len(text.content.encode()) > 500_000


@pytest.mark.parametrize("family", hostile.FAMILIES)
def test_hostile_families(family):
    make = hostile.FAMILIES[family]
    for size in (1000, 2000):
        text = make(size)
        assert size - 4 < len(text.encode()) <= size
        assert text == make(size)
    assert make(2000).startswith(make(1000)[:-1])


def test_hostile_families_are_many_and_different():
    assert len(hostile.FAMILIES) >= 20
    assert len({make(500) for make in hostile.FAMILIES.values()}) == len(hostile.FAMILIES)


def test_the_machine(tmp_path):
    about = machine.describe()
    assert 1 <= about["usable_cores"] <= about["cores"]
    file = tmp_path / "cpuinfo"
    file.write_text("processor: 0\nmodel name\t: A fast one\nprocessor: 1\nmodel name\t: A fast one\n")
    assert machine.cpu_model(file) == "A fast one"
    assert machine.cpu_model(tmp_path / "none") != ""
