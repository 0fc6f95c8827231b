"""Every kernel file compiles through NVRTC for sm_80 (Ampere) and sm_90a (Hopper), without a GPU."""

import re
from pathlib import Path

import pytest
from support.cuda_shim import kernel_names

from minigrad.fast.cuda.gpu import FOLDER, OPTIONS, kernel_source

FILES = sorted(path.name for path in FOLDER.glob("*.cu"))
ARCHITECTURES = ["sm_80", "sm_90a"]


@pytest.fixture(scope="session")
def nvrtc():
    """CuPy's binding of NVRTC; it loads and compiles with no CUDA device and no driver."""
    pytest.importorskip("cupy", reason="compiling CUDA needs CuPy: pip install cupy-cuda13x")
    from cupy_backends.cuda.libs import nvrtc

    try:
        nvrtc.getVersion()
    except Exception as error:  # CuPy raises what its loader found, of several types
        pytest.skip(f"compiling CUDA needs NVRTC (pip install 'nvidia-cuda-nvrtc>=13,<14'): {error}")
    return nvrtc


def compile_cubin(nvrtc, name: str, text: str, architecture: str) -> tuple[bytes, int]:
    """Compile to machine code, so that ptxas's errors count too; raises with the compiler's log.

    Returns the code and how many bytes its kernels keep in local memory: registers that did not suffice.
    """
    program = nvrtc.createProgram(text, name, (), ())
    try:
        nvrtc.compileProgram(program, (f"-arch={architecture}", "--ptxas-options=-v", *OPTIONS))
        frames = re.findall(r"(\d+) bytes stack frame", nvrtc.getProgramLog(program))
        return nvrtc.getCUBIN(program), sum(map(int, frames))
    except Exception:
        pytest.fail(f"{name} does not compile for {architecture}:\n{nvrtc.getProgramLog(program)}")
    finally:
        nvrtc.destroyProgram(program)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", FILES)
def test_kernels_compile(nvrtc, name, architecture):
    cubin, local_bytes = compile_cubin(nvrtc, name, kernel_source(name), architecture)
    assert cubin[:4] == b"\x7fELF"
    assert local_bytes == 0, "a tile outgrew the registers, and every access to the rest goes through memory"
    missing = [kernel for kernel in kernel_names(name) if f".text.{kernel}\0".encode() not in cubin]
    assert not missing, f"{name} promises kernels that it does not define: {missing}"


def test_a_broken_kernel_is_noticed(nvrtc):
    with pytest.raises(pytest.fail.Exception, match=r"broken\.cu does not compile"):
        compile_cubin(nvrtc, "broken.cu", "__global__ void f() { undefined_name = 1; }", "sm_80")
    spilling = "__global__ void f(int* x) { int a[64] = {}; for (int i = 0; i < 64; ++i) a[x[i] & 63]++; *x = a[*x]; }"
    assert compile_cubin(nvrtc, "spilling.cu", spilling, "sm_80")[1] >= 256


@pytest.mark.parametrize("name", FILES)
def test_every_file_states_what_it_computes(name):
    """The head of each .cu file: formula, tile, bytes, operations, and tests that exist."""
    head = (FOLDER / name).read_text().split("\n\n#include")[0]
    for word in ("Tile", "Bytes", "Operations", "test_cuda_shim.py::", "test_fast_cuda.py::"):
        assert word in head, f"{name} does not state its {word!r}"
    for file in ("test_cuda_shim.py", "test_fast_cuda.py"):
        text = (Path(__file__).parent / file).read_text()
        named = head.split(f"{file}::")[1].split()[0].rstrip("*.,;)")
        assert f"def {named}" in text, f"{name} names the test {named}, which {file} lacks"


def test_sources_are_ascii_and_self_contained():
    for path in FOLDER.glob("*.cu*"):
        assert path.read_text().isascii(), f"{path.name}: NVRTC's messages are unreadable with other characters"
        text = kernel_source(path.name) if path.suffix == ".cu" else path.read_text()
        assert "#include" not in text, f"{path.name} includes a file that an installed package may lack"
