"""The program as a whole: help, version, wrong calls, exit codes, and which stream gets what."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import refimpl as package
from refimpl import cli
from refimpl.errors import MissingFileError


def error_of(result: subprocess.CompletedProcess[bytes], code: int) -> str:
    """The one line of standard error of a call that failed as it should."""
    text = result.stderr.decode()
    assert result.returncode == code, text
    assert result.stdout == b""
    assert text.startswith("refimpl: error: ")
    assert text.count("\n") == 1, text
    assert "Traceback" not in text
    return text.removeprefix("refimpl: error: ").rstrip("\n")


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["help"]])
def test_help_begins_with_examples(inside, arguments):
    result = inside(*arguments)
    assert result.returncode == 0
    assert result.stderr == b""
    text = result.stdout.decode()
    assert text.startswith("Examples:\n  refimpl generate ")
    assert all(f"\n  {name} " in text for name in cli.COMMANDS)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help_with_examples(inside, name):
    result = inside(name, "--help")
    assert result.returncode == 0
    assert result.stderr == b""
    assert f"Examples:\n  refimpl {name}" in result.stdout.decode()
    assert inside("help", name).stdout == result.stdout


def test_without_a_command_the_help_is_an_error(refimpl):
    result = refimpl()
    assert (result.returncode, result.stdout) == (2, b"")
    assert result.stderr.startswith(b"Examples:")


def test_version(refimpl):
    result = refimpl("--version")
    assert (result.returncode, result.stdout.decode()) == (0, f"refimpl {package.__version__}\n")


def test_the_console_script_is_the_same_program(environment):
    script = Path(sys.executable).with_name("refimpl")
    if not script.exists():
        pytest.skip("refimpl is not installed beside this Python")
    result = subprocess.run([script, "--version"], capture_output=True, env=environment, check=True)
    assert result.stdout.decode() == f"refimpl {package.__version__}\n"


@pytest.mark.parametrize("arguments", [["--help"], ["generate", "--help"], ["tokenize", "--nonsense"]])
def test_start_up_is_light(environment, arguments):
    program = (
        "import sys; from refimpl.cli import main\n"
        f"try: main({arguments!r})\n"
        "except SystemExit: pass\n"
        "print(sorted({'numpy', 'safetensors', 'huggingface_hub'} & set(sys.modules)), file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, env=environment, check=True)
    assert result.stderr.splitlines()[-1] == b"[]"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["genrate", "x"],
            "found 'genrate'; allowed: generate, chat, tokenize, mask, inspect, download, convert, quantize, "
            "train-vocab, perplexity, trace, compare, conform, bench. Did you mean generate?",
        ),
        (["xyzzy"], "See: refimpl --help"),
        (["--quiet", "generate"], "the first argument must be a command; found '--quiet'"),
        (
            ["generate", "--temprature", "0.5", "x"],
            "unknown option --temprature (did you mean --temperature?)",
        ),
        (["generate", "--nonsense=1", "x"], "unknown option --nonsense. See: refimpl generate --help"),
        (["generate", "-Z", "x"], "unrecognized arguments: -Z"),
        (["generate", "吾輩", "は"], "unrecognized arguments: は"),
        (["generate", "x", "--top-k", "many"], "argument --top-k: invalid int value: 'many'"),
        (["generate", "x", "--seed"], "argument -s/--seed: expected one argument"),
        (["inspect", "--compat", "hf"], "unknown option --compat"),
        (["train-vocab", "a.txt"], "the following arguments are required: -o/--output"),
        (["train-vocab", "a.txt", "--ouput", "x"], "unknown option --ouput (did you mean --output?)"),
    ],
)
def test_wrong_calls_say_what_is_wrong(inside, arguments, expected):
    assert expected in error_of(inside(*arguments), 2)


@pytest.mark.parametrize("verb", ["generate", "tokenize", "inspect"])
@pytest.mark.parametrize(
    ("name", "code", "expected"),
    [
        ("", 2, "the name of the model is empty"),
        ("no/such/model", 1, "there is no folder 'no/such/model', and this is no Hub id either"),
        ("owner/no-such-model-here", 1, "owner/no-such-model-here"),
    ],
)
def test_a_model_that_is_not_there(inside, verb, name, code, expected):
    text = [] if verb == "inspect" else ["猫"]
    assert expected in error_of(inside(verb, *text, "--model", name, "--offline"), code)


def test_a_folder_without_a_model(inside, tmp_path):
    (tmp_path / "readme.txt").write_text("nothing")
    message = error_of(inside("generate", "猫", "--model", tmp_path), 1)
    assert "the folder has no file config.json; found readme.txt" in message


def test_a_file_instead_of_a_folder(inside, model):
    assert "not a file" in error_of(inside("inspect", model / "config.json"), 2)


def test_truncated_weights(refimpl, model_copy):
    weights = model_copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    for arguments in (["generate", "猫", "--model", model_copy], ["inspect", model_copy]):
        assert "cut short" in error_of(refimpl(*arguments), 1)


def test_a_broken_config_names_the_file(inside, model_copy):
    (model_copy / "config.json").write_text('{"hidden_size": ')
    message = error_of(inside("inspect", model_copy), 1)
    assert "config.json: not valid JSON" in message


def test_a_broken_vocabulary_names_the_line(inside, model_copy):
    vocabulary = model_copy / "vocab.txt"
    vocabulary.write_text(
        vocabulary.read_text(encoding="utf-8").replace("<|byte7|>", "<|byte700|>"), encoding="utf-8"
    )
    assert "vocab.txt, line " in error_of(inside("tokenize", "猫", "--model", model_copy), 1)


def test_the_name_of_a_file_cannot_break_the_line_or_obey_the_terminal(inside, tmp_path):
    folder = tmp_path / "a\nb\x1b[31m"
    folder.mkdir()
    message = error_of(inside("inspect", folder), 1)
    assert "\x1b" not in message
    assert "a b\\x1b[31m" in message


def test_unexpected_errors_are_told_from_the_expected(monkeypatch, capsys):
    def fail(arguments):
        raise KeyError("hidden\nsize")

    monkeypatch.delenv("REFIMPL_DEBUG", raising=False)
    monkeypatch.setattr(cli, "_dispatch", fail)
    assert cli.main(["inspect"]) == 1
    assert capsys.readouterr() == (
        "",
        "refimpl: internal error: KeyError: 'hidden\\nsize'. "
        "This should not happen; REFIMPL_DEBUG=1 shows where it did.\n",
    )
    monkeypatch.setenv("REFIMPL_DEBUG", "1")
    with pytest.raises(KeyError):
        cli.main(["inspect"])


def test_too_little_memory_is_no_internal_error(monkeypatch, capsys):
    def fail(arguments):
        raise MemoryError

    monkeypatch.delenv("REFIMPL_DEBUG", raising=False)
    monkeypatch.setattr(cli, "_dispatch", fail)
    assert cli.main(["inspect"]) == 1
    assert "error: there is not enough memory" in capsys.readouterr().err


def test_debugging_raises(monkeypatch, tmp_path):
    monkeypatch.setenv("REFIMPL_DEBUG", "1")
    with pytest.raises(MissingFileError):
        cli.main(["inspect", str(tmp_path)])


def test_ctrl_c_before_the_work_begins(monkeypatch, capsys):
    def interrupt(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_dispatch", interrupt)
    assert cli.main(["inspect"]) == 130
    assert capsys.readouterr() == ("", "")


def test_warnings_are_one_line_each(monkeypatch, capsys):
    def warn(arguments):
        warnings.simplefilter("always")
        warnings.warn("first\n  and second", stacklevel=1)
        return 0

    monkeypatch.setattr(cli, "_dispatch", warn)
    assert cli.main(["inspect"]) == 0
    assert capsys.readouterr() == ("", "refimpl: warning: first and second\n")


@pytest.mark.parametrize(
    "arguments", [["--help"], ["inspect", "MODEL"], ["tokenize", "猫" * 1000, "-m", "MODEL"]]
)
def test_a_reader_that_went_away_is_no_error(environment, command, model, arguments):
    arguments = [str(model) if argument == "MODEL" else argument for argument in arguments]
    process = subprocess.Popen(
        [*command, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        env=environment,
    )
    assert process.stdout is not None
    process.stdout.close()
    _, error = process.communicate(timeout=60)
    assert b"Error" not in error
    assert process.returncode == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("arguments", [["--help"], ["inspect", "MODEL"], ["generate", "猫", "-m", "MODEL"]])
def test_a_full_disk_is_an_error(environment, command, model, arguments):
    arguments = [str(model) if argument == "MODEL" else argument for argument in arguments]
    with open("/dev/full", "w") as full:
        result = subprocess.run([*command, *arguments], stdout=full, stderr=subprocess.PIPE, env=environment)
    assert result.returncode == 1
    expected = "refimpl: error: standard output: the output cannot be written (No space left on device)\n"
    assert result.stderr.decode() == expected


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell")
def test_closed_streams_are_no_internal_error(environment, command, model):
    def shell(redirections: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        words = ["sh", "-c", f'"$@" {redirections}', "sh", *command, *arguments]
        return subprocess.run(words, capture_output=True, env=environment, timeout=60)

    result = shell(">&-", "inspect", str(model))
    assert result.returncode == 1
    assert result.stderr == b"refimpl: error: there is no standard output to write to\n"
    result = shell("2>&-", "generate", "猫", "-m", str(model), "-n", "2")
    assert result.returncode == 0
    assert result.stdout.startswith("猫".encode())
    assert b"tokens" not in result.stdout
    result = shell("<&-", "generate", "-m", str(model))
    assert result.returncode == 2
    assert b"there is no prompt" in result.stderr


def test_files_beside_the_user_are_not_imported(environment, model, tmp_path):
    """The console script does not look for modules in the current folder, which may be a stranger's model."""
    script = Path(sys.executable).with_name("refimpl")
    if not script.exists():
        pytest.skip("refimpl is not installed beside this Python")
    for name in ("numpy", "json", "safetensors", "tokenizer", "refimpl"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported the wrong module')")
    result = subprocess.run(
        [script, "generate", "猫", "-n", "2", "-m", model], capture_output=True, env=environment, cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
