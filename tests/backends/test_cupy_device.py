"""What is said where there is no GPU, no CuPy, or the wrong one; and which backend "auto" takes.  Needs no GPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import types
import warnings
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest

from refimpl.backends import get_backend
from refimpl.backends.cupy import device
from refimpl.errors import BackendError, RefimplError, ResourceLimitError

REPOSITORY = Path(__file__).parents[2]


class FakeRuntimeError(RuntimeError):
    """As `cupy.cuda.runtime.CUDARuntimeError`."""

    def __init__(self, status: int, text: str):
        super().__init__(text)
        self.status = status


class FakeOutOfMemoryError(MemoryError):
    """As `cupy.cuda.memory.OutOfMemoryError`."""


class FakeArray:
    """Of ones, as far as the trial goes."""

    def __init__(self, value: int):
        self.value = value

    def __add__(self, other: int) -> FakeArray:
        return FakeArray(self.value + other)

    def sum(self) -> int:
        return 2 * self.value


def raising(error: Exception) -> Any:
    def function(*args: Any) -> Any:
        raise error

    return function


class FakePool:
    def __init__(self, left: int, reserve: int = 0):
        self.left, self.reserve = left, reserve

    def malloc(self, size: int) -> str:
        if size > self.left:
            raise FakeOutOfMemoryError(f"Out of memory allocating {size:,} bytes")
        return "memory"

    def free_bytes(self) -> int:
        return self.reserve

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = object.__hash__


def fake_cupy(
    *,
    version: str = "14.2.0",
    devices: int | Exception = 1,
    driver: int = 13020,
    runtime: int = 13020,
    capability: str = "90",
    nvrtc: tuple[int, int] | Exception = (13, 2),
    cublas: Exception | None = None,
    kernels: Exception | None = None,
    sum_of_ones: int = 1,
    is_hip: bool = False,
    free: int = 10**9,
    reserve: int = 0,
) -> Any:
    """A module that answers as `cupy` does on such a machine."""

    class Device:
        def __init__(self, index: int):
            self.compute_capability, self.mem_info = capability, (free, 2 * free)

        def __enter__(self) -> Device:
            return self

        def __exit__(self, *error: object) -> None:
            pass

    pool, chosen = FakePool(free, reserve), []
    cuda = types.ModuleType("cupy.cuda")
    cuda.__getattr__ = raising(cublas) if cublas else lambda name: types.SimpleNamespace()  # type: ignore[method-assign]
    cuda.Device = Device  # type: ignore[attr-defined]
    cuda.runtime = types.SimpleNamespace(  # type: ignore[attr-defined]
        CUDARuntimeError=FakeRuntimeError,
        getDeviceCount=raising(devices) if isinstance(devices, Exception) else lambda: devices,
        driverGetVersion=lambda: driver,
        runtimeGetVersion=lambda: runtime,
        getDevice=lambda: 0,
        is_hip=is_hip,
    )
    compiler = raising(nvrtc) if isinstance(nvrtc, Exception) else lambda: nvrtc
    cuda.nvrtc = types.SimpleNamespace(getVersion=compiler)  # type: ignore[attr-defined]
    cuda.memory = types.SimpleNamespace(OutOfMemoryError=FakeOutOfMemoryError)  # type: ignore[attr-defined]
    cuda.get_allocator = lambda: chosen[-1] if chosen else pool.malloc  # type: ignore[attr-defined]
    cuda.set_allocator = chosen.append  # type: ignore[attr-defined]
    module = types.ModuleType("cupy")
    module.__spec__ = ModuleSpec("cupy", None)
    module.__version__ = version  # type: ignore[attr-defined]
    module.cuda = cuda  # type: ignore[attr-defined]
    module.ones = raising(kernels) if kernels else lambda *args: FakeArray(sum_of_ones)  # type: ignore[attr-defined]
    module.get_default_memory_pool = lambda: pool  # type: ignore[attr-defined]
    return module


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put a fake CuPy in the place of the real one, or None: no such package.  The device shows itself."""

    def pretend(module: Any, there: bool = True) -> Any:
        monkeypatch.setitem(sys.modules, "cupy", module)
        monkeypatch.setattr(device, "gpu_seems_there", lambda: there)
        device.usable.cache_clear()
        return module

    name = "refimpl.backends.cupy.backend"  # knows the CuPy that it was loaded with
    before = sys.modules.pop(name, None)
    yield pretend
    sys.modules.pop(name, None)
    if before is not None:
        sys.modules[name] = before
    device.usable.cache_clear()


def refusal(wanted: str | None = None) -> BackendError:
    with pytest.raises(BackendError) as caught:
        device.open_device(wanted)
    return caught.value


# --- one error for each thing that is missing --------------------------------------------------------


def test_a_gpu_that_works(pretend):
    pretend(fake_cupy(devices=2))
    assert device.open_device(None) == device.open_device("cuda") == device.open_device("cuda:0") == 0
    assert device.open_device("cuda:1") == 1


def test_cupy_is_missing(pretend):
    pretend(None)
    text = str(refusal())
    assert "needs CuPy" in text
    assert 'pip install "refimpl[cuda12]" or pip install "refimpl[cuda13]"' in text


def test_cupy_cannot_be_loaded(pretend, monkeypatch, tmp_path):
    said = "\n====\nFailed to import CuPy.\n\nOriginal error:\n  ImportError: libcudart.so.12: cannot open\n====\n"
    (tmp_path / "cupy.py").write_text(f"raise ImportError({said!r})")
    pretend(None)
    monkeypatch.delitem(sys.modules, "cupy")
    monkeypatch.syspath_prepend(tmp_path)
    text = str(refusal())
    assert "CuPy cannot be loaded; found ImportError: libcudart.so.12: cannot open." in text
    assert "pip uninstall cupy" in text


def test_a_package_that_cupy_needs_is_missing(pretend, monkeypatch, tmp_path):
    (tmp_path / "cupy.py").write_text("import a_package_that_is_not_there")
    pretend(None)
    monkeypatch.delitem(sys.modules, "cupy")
    monkeypatch.syspath_prepend(tmp_path)
    assert "No module named 'a_package_that_is_not_there'" in str(refusal())


NO_DRIVER = FakeRuntimeError(35, "cudaErrorInsufficientDriver: CUDA driver version is insufficient")


@pytest.mark.parametrize(
    ("machine", "words"),
    [
        ({"version": "13.6.0"}, ["too old; found CuPy 13.6.0; allowed: CuPy 14", "pip uninstall cupy"]),
        ({"version": "14.0.0rc1", "is_hip": True}, ["a CuPy for ROCm"]),
        ({"devices": NO_DRIVER, "driver": 0}, ["no driver of NVIDIA", "nvidia-smi", "--gpus all"]),
        (
            {"devices": NO_DRIVER, "driver": 12040},
            ["a driver for CUDA 12.4", "CUDA 13, which", 'pip install "refimpl[cuda12]"'],
        ),
        ({"devices": NO_DRIVER, "driver": 11080, "runtime": 12090}, ["CUDA 11.8", "a driver for CUDA 12."]),
        ({"devices": FakeRuntimeError(100, "cudaErrorNoDevice")}, ["CUDA sees no GPU"]),
        ({"devices": 0}, ["CUDA sees no GPU"]),
        (
            {"devices": FakeRuntimeError(803, "cudaErrorSystemDriverMismatch: x")},
            ["CUDA does not start; found cudaErrorSystemDriverMismatch"],
        ),
        ({"capability": "61"}, ["compute capability 6.1; allowed: 7.0 (Volta)"]),
        ({"capability": "70"}, ["no longer compiles", 'pip install "refimpl[cuda12]"']),
        (
            {"nvrtc": RuntimeError('Failure finding "libnvrtc.so.13"')},
            ["NVRTC", 'found Failure finding "libnvrtc.so.13"', 'pip install "refimpl[cuda13]"'],
        ),
        (
            {"cublas": ImportError("libcublasLt.so.12"), "runtime": 12090, "nvrtc": (12, 9)},
            ["cuBLAS", "libcublasLt.so.12", 'pip install "refimpl[cuda12]"'],
        ),
        (
            {"kernels": RuntimeError("Failed to find CUDA headers.\nSecond line")},
            ["cannot compile or run", "found Failed to find CUDA headers.", "refimpl[cuda13]"],
        ),
        ({"sum_of_ones": 2}, ["computes wrongly"]),
    ],
)  # fmt: skip
def test_what_keeps_it_from_computing(pretend, machine, words):
    pretend(fake_cupy(**machine))
    text = str(refusal())
    for word in words:
        assert word in text
    assert "\n" not in text


def test_a_driver_that_is_too_old_for_any_cupy_is_no_reason_to_install_another(pretend):
    pretend(fake_cupy(devices=NO_DRIVER, driver=11080, runtime=12090))
    assert "refimpl[" not in str(refusal())


@pytest.mark.parametrize(("devices", "allowed"), [(1, "cuda:0"), (3, "cuda:0 to cuda:2")])
def test_a_device_that_is_not_there(pretend, monkeypatch, devices, allowed):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,6,7")
    pretend(fake_cupy(devices=devices))
    error = refusal("cuda:9")
    assert (error.where, error.found, error.allowed) == ("device", "'cuda:9'", allowed)
    assert "CUDA_VISIBLE_DEVICES=5,6,7" in str(error)


@pytest.mark.parametrize(
    "name", ["cpu", "cuda:", "cuda:-1", "cuda:x", "cuda:0:0", "gpu", "", 0, "cuda:99999"]
)
def test_what_is_no_device(pretend, name):
    pretend(fake_cupy())
    assert "not a device of the cupy backend" in str(refusal(name))


# --- "auto" ------------------------------------------------------------------------------------------


def test_auto_asks_for_no_cupy_where_no_driver_is(pretend):
    pretend(None, there=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert get_backend().name == get_backend("auto").name == "numba"


def test_auto_says_once_why_a_gpu_is_not_used(pretend):
    pretend(fake_cupy(version="13.0.0"))
    with pytest.warns(UserWarning, match=r"the GPU is not used: this CuPy is too old") as caught:
        assert get_backend().name == get_backend().name == "numba"
    assert len(caught) == 1
    assert Path(caught[0].filename).name == Path(__file__).name


def test_arguments_of_a_processor_mean_the_processor(pretend):
    """Also where a GPU could be used: they are not refused, and the GPU is not even asked."""
    pretend(fake_cupy(version="13.0.0"))
    for arguments in ({"threads": 1}, {"device": "cpu"}, {"matmul_dtype": "int8"}):
        assert get_backend(**arguments).name == "numba"


def test_the_device_chooses_the_backend(pretend):
    pretend(fake_cupy(devices=FakeRuntimeError(100, "cudaErrorNoDevice")), there=False)
    for name in ("cuda", "cuda:1"):
        with pytest.raises(BackendError, match="CUDA sees no GPU"):
            get_backend(device=name)


def test_the_words_of_get_backend(pretend):
    pretend(fake_cupy())
    with pytest.raises(BackendError, match=r"does not round .* allowed: float32, float16, bfloat16, tf32"):
        get_backend("cupy", matmul_dtype="int8")
    with pytest.raises(BackendError, match="does not compute in this dtype"):
        get_backend("cupy", dtype="int8")


@pytest.mark.parametrize(
    ("visible", "cards", "there"),
    [(None, 1, True), (None, 0, False), ("", 1, False), ("-1", 1, False), ("0", 1, True)],
)
def test_a_look_at_the_file_system(monkeypatch, visible, cards, there):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(device, "glob", lambda pattern: ["/dev/nvidia0"] * cards)
    monkeypatch.setattr(device.os.path, "exists", lambda path: False)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert device.gpu_seems_there() is there


def test_choosing_a_backend_imports_no_cupy():
    program = (
        "import sys; from refimpl.backends import get_backend; get_backend();"
        "print('cupy' in sys.modules, 'refimpl.backends.cupy.backend' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True, text=True, check=True, cwd=REPOSITORY, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert result.stdout.strip() == "False False"


# --- memory ------------------------------------------------------------------------------------------


def test_what_is_free_is_what_nobody_has_and_the_pool_s_reserve():
    assert device.free_memory(fake_cupy(free=1000, reserve=24), 0) == 1024


def test_a_full_device_is_one_error_with_the_bytes():
    cupy = fake_cupy(free=1000, reserve=24)
    device.tell_when_full(cupy)
    allocate = cupy.cuda.get_allocator()
    assert allocate(1000) == "memory"
    with pytest.raises(
        ResourceLimitError, match=r"1,024 bytes free; allowed: at least the 5,000 bytes"
    ) as caught:
        allocate(5000)
    assert (caught.value.requested, caught.value.free) == (5000, 1024)
    assert isinstance(caught.value, FakeOutOfMemoryError)  # who catches CuPy's error still does
    assert isinstance(caught.value, RefimplError)
    assert re.search("Out of memory allocating 5,000", str(caught.value.__cause__))


def test_an_allocator_of_the_user_s_stays():
    cupy = fake_cupy()
    cupy.cuda.set_allocator(len)
    device.tell_when_full(cupy)
    assert cupy.cuda.get_allocator() is len
