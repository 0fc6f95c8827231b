"""A GPU that cannot be used says why in one sentence: CuPy, driver, device and errors are stand-ins."""

import importlib
import sys
from types import SimpleNamespace

import pytest

from minigrad import backend, diagnosis


def stand_in(version="14.2.0", runtime=13020, driver=13020, devices=(90,), fail=None):
    """A module that answers like CuPy with these versions and GPUs."""

    def device_count():
        if fail:
            raise RuntimeError(fail)
        return len(devices)

    functions = SimpleNamespace(
        runtimeGetVersion=lambda: runtime, driverGetVersion=lambda: driver, getDeviceCount=device_count
    )
    device = lambda index: SimpleNamespace(compute_capability=str(devices[index]), use=lambda: None)  # noqa: E731
    return SimpleNamespace(__version__=version, cuda=SimpleNamespace(runtime=functions, Device=device))


FAULTS = {
    "CuPy 13": (stand_in(version="13.6.0"), "needs CuPy 14 or later, 13.6.0 is installed"),
    "no driver": (stand_in(driver=0), "needs an NVIDIA GPU with its driver, and CuPy finds none"),
    "driver for CUDA 12": (stand_in(driver=12080), "driver is for CUDA 12, and CuPy is for CUDA 13.*580.*cupy-cuda12x"),
    "driver for CUDA 11": (stand_in(driver=11080), "driver is for CUDA 11, and CuPy is for CUDA 13.*580 or later$"),
    "hidden": (stand_in(devices=()), "no NVIDIA GPU: is CUDA_VISIBLE_DEVICES empty"),
    "broken": (stand_in(fail="cudaErrorSystemNotReady: not ready."), "cudaErrorSystemNotReady: not ready$"),
}


@pytest.mark.parametrize(("cupy", "sentence"), FAULTS.values(), ids=FAULTS)
def test_what_is_missing_is_named(monkeypatch, cupy, sentence):
    monkeypatch.setattr(backend, "import_optional", lambda *arguments: cupy)
    with pytest.raises(backend.DeviceError, match=sentence):
        backend.cupy()


@pytest.mark.parametrize("cupy", [stand_in(), stand_in(runtime=12090), stand_in(devices=(75, 61))])
def test_what_works_is_let_through(monkeypatch, cupy):
    monkeypatch.setattr(backend, "import_optional", lambda *arguments: cupy)
    assert backend.cupy() is cupy


@pytest.mark.parametrize(
    ("runtime", "capability", "sentence"),
    [
        (
            13020,
            70,
            r"capability 7\.0, and CuPy's CUDA 13 compiles for 7\.5 and later: pip install 'cupy-cuda12x\[ctk\]'",
        ),
        (13020, 52, r"capability 5\.2.*no CUDA version serves"),
        (12090, 52, r"capability 5\.2, and CuPy's CUDA 12 compiles for 6\.0"),
    ],
)
def test_a_gpu_that_is_too_old_is_named(monkeypatch, runtime, capability, sentence):
    cupy = stand_in(runtime=runtime, devices=(capability,))
    monkeypatch.setattr(backend, "import_optional", lambda *arguments: cupy)
    with pytest.raises(backend.DeviceError, match=sentence):
        backend.to_device(0.0, "cuda")


@pytest.mark.parametrize(("runtime", "capability"), [(13020, 75), (12090, 60), (13020, 120), (14000, 90)])
def test_a_gpu_that_is_young_enough_is_not(runtime, capability):
    assert diagnosis.not_here(stand_in(runtime=runtime, devices=(capability,)), 0) is None


def test_a_compilers_pages_become_one_line():
    error = ValueError("nvrtc: options\nkernel.cu(3): error: identifier x is undefined.\n\n1 error detected")
    assert diagnosis.in_words(error) == "kernel.cu(3): error: identifier x is undefined"
    assert diagnosis.in_words(ValueError()) == "ValueError"


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=pytest.mark.cuda)], indirect=True)
def test_the_exceptions_of_a_gpu_are_cupys(device):
    importlib.import_module("cupy.cuda.compiler")
    libraries = importlib.import_module("cupy_backends.cuda.libs")
    assert libraries.cublas and libraries.nvrtc  # as attributes: for these CuPy looks where pip puts the libraries
    names = {error.__name__ for error in diagnosis.errors()}
    assert names >= {
        "GPUError", "CUDARuntimeError", "CUDADriverError", "CUBLASError", "NVRTCError", "CompileException",
    }  # fmt: skip


def test_a_cupy_without_its_libraries_has_the_exceptions_of_those_that_are_there(monkeypatch):
    """Where cuBLAS is not installed, asking for its exception ended in an ImportError in place of what went wrong."""
    for name in [name for name in sys.modules if name.split(".")[0] in ("cupy", "cupy_backends")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace())
    assert diagnosis.errors() == (diagnosis.GPUError,)
    driver = SimpleNamespace(CUDADriverError=KeyError)
    monkeypatch.setitem(sys.modules, "cupy_backends.cuda.api.driver", driver)
    assert diagnosis.errors() == (diagnosis.GPUError, KeyError)
