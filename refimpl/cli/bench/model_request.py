"""What `refimpl bench model` was asked for: which tests, models and peers, and whether they are there and fit."""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from refimpl.backends import get_backend
from refimpl.backends.base import Backend
from refimpl.cli import common
from refimpl.cli.bench import llama_bench, machine
from refimpl.cli.bench.model_cases import Combination, Peer, Setting, adapter
from refimpl.cli.bench.model_shapes import config_of_shape
from refimpl.cli.bench.model_sides import Test
from refimpl.errors import ContextOverflowError, InputError, MissingFileError, quote
from refimpl.generation.repeated_step import RecordingBackend
from refimpl.memory import refuse_too_large

PEERS = ("transformers", "llama.cpp")

#: What a peer of transformers computes in -> bytes of one of its weights.
PEER_DTYPES = {"float32": 4, "bfloat16": 2, "float16": 2}

#: What it computes in unless --peer-dtype says so; beside a GPU only what we compute in.
PROCESSOR_PEER_DTYPES = ("float32", "bfloat16")

# Where the peers would be found; a question, not an import, since that takes seconds.
_ARE_THERE = "import sys, importlib.util as u; sys.exit(any(u.find_spec(n) is None for n in sys.argv[1:]))"

# This has to be an import.
_SEES_GPU = "import sys, torch; print(torch.__version__); sys.exit(not torch.cuda.is_available())"


def asked_tests(args: argparse.Namespace) -> list[Test]:
    if args.repetitions < 1:
        raise InputError("--repetitions is too small", found=args.repetitions, allowed="1 or more")
    prompts = [count for count in _numbers(args.n_prompt, "--n-prompt", 0) if count]
    made = [count for count in _numbers(args.n_gen, "--n-gen", 0) if count]
    depths = _numbers(args.depth, "--depth", 0)
    tests = [Test.prefill(count) for count in prompts]
    tests += [Test.decoding(count, depth) for depth in depths for count in made]
    if not tests:
        raise InputError("there is nothing to measure", found="-p 0 -n 0", allowed="one of them above 0")
    return tests


def _numbers(given: str, option: str, low: int) -> list[int]:
    """The numbers of a list with commas, each once. Raises: InputError."""
    numbers = []
    for part in given.split(","):
        text = part.strip()
        if not (text.isascii() and text.isdigit() and low <= int(text) < 1 << 31):
            raise InputError(
                f"{option} has something else than a number",
                found=quote(part),
                allowed=f"whole numbers from {low}, with commas",
            )
        numbers.append(int(text))
    return list(dict.fromkeys(numbers))


def _names(given: str, option: str, allowed: Sequence[str]) -> list[str]:
    names = [name.strip() for name in given.split(",")]
    for name in names:
        if name not in allowed:
            raise InputError(f"{option} has an unknown name", found=quote(name), allowed=", ".join(allowed))
    return list(dict.fromkeys(names))


def asked_combinations(args: argparse.Namespace) -> list[Combination]:
    """Raises: InputError, and BackendError for a backend, device or dtype that is not there."""
    products: list[Any] = [None]
    if args.matmul_dtype is not None:
        products = _names(args.matmul_dtype, "--matmul-dtype", common.MATMUL_DTYPES)
    names = list(dict.fromkeys(name.strip() for name in args.backend.split(",")))
    chosen = {
        (name, rounded): _backend(name, rounded, names, args)
        for name, rounded in itertools.product(names, products)
    }
    forms: list[Any] = [None]
    if args.weight_dtype is not None:
        forms = _names(args.weight_dtype, "--weight-dtype", common.WEIGHT_DTYPES)
    threads = [machine.usable_cores()]
    if args.threads is not None:
        threads = _numbers(args.threads, "--threads", 1)
    graphs = [name == "on" for name in _names(args.graph, "--graph", ("on", "off"))]
    if args.starts < 0:
        raise InputError("--starts is too small", found=args.starts, allowed="0 or more")
    made = []
    for count, name, form, rounded in itertools.product(threads, names, forms, products):
        backend = chosen[name, rounded]
        # Only a backend that records its steps can do without.
        for graph in graphs if isinstance(backend, RecordingBackend) else [True]:
            made.append(
                Combination(
                    *(name, form, count, rounded, backend.name, backend.device),
                    gemm_dtype=_gemm_dtype(backend),
                    graph=graph,
                )
            )
    return made


def _backend(name: str, rounded: str | None, names: Sequence[str], args: argparse.Namespace) -> Backend:
    """The backend of that name. `--device` is for those that have a choice. Raises: BackendError."""
    of_gpu = [one for one in names if one in ("auto", "cupy")]
    options: dict[str, Any] = {"dtype": args.dtype, "matmul_dtype": rounded}
    if args.device is not None and (name in of_gpu or not of_gpu):
        options["device"] = args.device
    elif name == "auto" and args.threads is not None:
        options["threads"] = _numbers(args.threads, "--threads", 1)[0]
    return get_backend(name, **options)


def _gemm_dtype(backend: Backend) -> str:
    """What matrices are multiplied in to see what the device can do: NumPy's BLAS is measured in float32."""
    if backend.device == "cpu":
        return "float32"
    return backend.matmul_dtype or backend.dtype.name


def asked_config(args: argparse.Namespace) -> tuple[Any, str]:
    """The settings of the model and what to call it. Weights of the Hub are downloaded, if need be."""
    if args.shape is not None:
        if args.model is not None:
            raise InputError("give --model or --shape, not both")
        return config_of_shape(args.shape), args.shape
    from refimpl.auto import AutoConfig
    from refimpl.checkpoints.locate import find_weights

    name = common.model_name(args.model)
    config = AutoConfig.from_pretrained(name, **common.hub_options(args))
    find_weights(name, **common.hub_options(args))
    return config, os.path.abspath(name) if os.path.isdir(name) else name


def check_context(tests: Sequence[Test], config: Any) -> None:
    """Raises: ContextOverflowError."""
    context = config.max_position_embeddings
    for test in tests:
        if test.depth + test.tokens > context:
            raise ContextOverflowError(
                "a test is longer than the model's context",
                where=test.name,
                found=f"{test.depth + test.tokens} tokens",
                allowed=f"{context} together",
            )


def check_memory(setting: Setting, combinations: Sequence[Combination], config: Any) -> None:
    """Raises: ResourceLimitError when our weights and those of a peer do not fit side by side."""
    from refimpl.auto import AutoModelForCausalLM
    from refimpl.cli.bench.random_weights import refuse_without_room, weight_bytes

    model_class = AutoModelForCausalLM.class_for(config, setting.model)
    numbers = model_class.skeleton(config, get_backend("numpy")).num_parameters()
    theirs = max(
        (numbers * PEER_DTYPES[peer.options["dtype"]] for peer in setting.peers if peer.script is not None),
        default=0,
    )
    for one in combinations:
        # A mapped file takes no memory of its own, and loading it looks for what else it does.
        form = one.weight_dtype or _half(setting.dtype)
        backend = get_backend(one.engine, dtype=setting.dtype, device=one.device if one.on_gpu else None)
        ours = 0
        if setting.random or form is not None:
            ours = weight_bytes(model_class.skeleton(config, backend), form)
        what = f"weights of {model_class.__name__}" + (" and a peer's" if theirs else "")
        if one.on_gpu:  # where the host holds a matrix at a time
            refuse_too_large(ours + theirs, what, None, one.device, backend.free_memory())
        else:
            refuse_without_room(ours + theirs, what)


def store(folder: str, config: Any, args: argparse.Namespace) -> None:
    """Write random weights into a folder, as `save_pretrained` does. Raises: ResourceLimitError, SaveError."""
    from refimpl.cli.bench.random_weights import random_model

    floats = [form for form in (args.weight_dtype or "").split(",") if form.strip() in PEER_DTYPES]
    form = floats[0].strip() if floats else _half(args.dtype)
    random_model(config, get_backend("numpy"), form).save_pretrained(folder)


def _half(dtype: str | None) -> str | None:
    return dtype if dtype in ("float16", "bfloat16") else None


def asked_peers(args: argparse.Namespace, combinations: Sequence[Combination]) -> list[Peer]:
    """Raises: InputError, MissingFileError: whoever asks for a peer wants it, so nothing is left out."""
    made = []
    python = args.peer_python or sys.executable
    on_gpu = any(one.on_gpu for one in combinations)
    for name in dict.fromkeys(args.vs or ()):
        if name not in PEERS:
            raise InputError("--vs names an unknown peer", found=quote(name), allowed=", ".join(PEERS))
        if name == "llama.cpp":
            program, gguf = llama_bench.find(args.gguf)
            made.append(Peer(name, None, program, gguf=gguf))
            continue
        script = _script(name)
        _check_installed(python, ("transformers", "torch"))
        if on_gpu:
            _check_sees_gpu(python)
        for dtype in _peer_dtypes(args, on_gpu):
            made.append(Peer(f"{name} {dtype}", script, python, {"dtype": dtype}))
            if on_gpu and any(int(count) for count in args.n_gen.split(",")):
                made.append(Peer(f"{name} {dtype} compiled", script, python, {"dtype": dtype}, compiled=True))
    return made


def _peer_dtypes(args: argparse.Namespace, on_gpu: bool) -> list[str]:
    if args.peer_dtype:
        return _names(args.peer_dtype, "--peer-dtype", tuple(PEER_DTYPES))
    if on_gpu:
        return [args.dtype if args.dtype in PEER_DTYPES else "float32"]
    return list(PROCESSOR_PEER_DTYPES)


def _script(name: str) -> Path:
    script = adapter(name)
    if not script.is_file():
        raise MissingFileError(
            "the script of this peer is not here",
            where=quote(str(script)),
            hint="A checkout of the repository has it.",
        )
    return script


def _check_installed(python: str, packages: Sequence[str]) -> None:
    """Raises: InputError."""
    names = " and ".join(packages)
    try:
        there = subprocess.run([python, "-P", "-c", _ARE_THERE, *packages], capture_output=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InputError(f"this Python cannot be started ({error})", where="--peer-python") from error
    if there.returncode:
        raise InputError(
            f"{names} are not both installed for this Python",
            where="--vs transformers",
            found=quote(python),
            hint="Install them, or name another Python with --peer-python.",
        )


def _check_sees_gpu(python: str) -> None:
    """Raises: InputError: it would compute on the processor, which compares nothing."""
    try:
        seen = subprocess.run([python, "-P", "-c", _SEES_GPU], capture_output=True, timeout=300)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InputError(f"torch cannot be asked for its GPU ({error})", where="--vs transformers") from error
    if seen.returncode:
        version = seen.stdout.decode("utf-8", "replace").strip()
        raise InputError(
            "torch sees no GPU, and ours computes on one",
            where="--vs transformers",
            found=f"torch {version}" if version else quote(python),
            hint="Install a torch with CUDA, name another Python with --peer-python, or leave --vs out.",
        )
