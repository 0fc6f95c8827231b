"""Every kernel file compiles through NVRTC, without a GPU, for every architecture that the engine room runs on."""

import re
from pathlib import Path

import pytest
from support.cuda_shim import kernel_names
from support.nvrtc import ARCHITECTURES, FILES, Rejected, compile_file, compile_text, runs_on

from minigrad.fast.cuda.gpu import FOLDER, kernel_source

CASES = [(file, architecture) for architecture in ARCHITECTURES for file in FILES if runs_on(file, architecture)]


@pytest.fixture(scope="session")
def nvrtc():
    """CuPy's binding of NVRTC; it loads and compiles with no CUDA device and no driver."""
    pytest.importorskip("cupy", reason="compiling CUDA needs CuPy: pip install cupy-cuda13x nvidia-cuda-nvrtc")
    from cupy_backends.cuda.libs import nvrtc

    try:
        nvrtc.getVersion()
    except Exception as error:  # CuPy raises what its loader found, of several types
        pytest.skip(f"compiling CUDA needs NVRTC (pip install nvidia-cuda-nvrtc): {error}")
    return nvrtc


@pytest.mark.parametrize(("file", "architecture"), CASES, ids=[f"{file}-{arch}" for file, arch in CASES])
def test_kernels_compile(nvrtc, file, architecture):
    cubin, kernels = compile_file(nvrtc, file, architecture)
    assert cubin[:4] == b"\x7fELF"
    spilling = [name for name, kernel in kernels.items() if kernel.stack]
    assert not spilling, f"a tile outgrew the registers, and every access to the rest goes through memory: {spilling}"
    assert max(kernel.registers for kernel in kernels.values()) <= 255
    assert max(kernel.shared for kernel in kernels.values()) <= 48 << 10
    assert set(kernel_names(file)) == set(kernels), f"{file} promises other kernels than it defines"


def test_a_broken_kernel_is_noticed(nvrtc):
    with pytest.raises(Rejected, match=r"broken\.cu does not compile"):
        compile_text(nvrtc, "broken.cu", "__global__ void f() { undefined_name = 1; }", "sm_80")
    spilling = "__global__ void f(int* x) { int a[64] = {}; for (int i = 0; i < 64; ++i) a[x[i] & 63]++; *x = a[*x]; }"
    assert compile_text(nvrtc, "spilling.cu", f'extern "C" {spilling}', "sm_80")[1]["f"].stack >= 256


def test_tensor_cores_are_what_older_gpus_lack(nvrtc):
    with pytest.raises(Rejected, match="sm_80"):
        compile_file(nvrtc, "conv3x3.cu", "sm_75")


@pytest.mark.parametrize("name", FILES)
def test_every_file_states_what_it_computes(name):
    """The head of each .cu file: formula, tile, bytes, operations, and tests that exist."""
    head = (FOLDER / name).read_text().split("\n\n#include")[0]
    for word in ("Tile", "Bytes", "Operations"):
        assert word in head, f"{name} does not state its {word!r}"
    named = dict(re.findall(r"(test_cuda_\w+\.py)::(\w+)", head))
    assert "test_cuda_gpu.py" in named and len(named) > 1, f"{name} names {named}: a test on the CPU, one on a GPU"
    for file, test in named.items():
        text = (Path(__file__).parent / file).read_text()
        assert f"def {test}" in text, f"{name} names the test {test}, which {file} lacks"


def test_sources_are_ascii_and_self_contained():
    for path in FOLDER.glob("*.cu*"):
        assert path.read_text().isascii(), f"{path.name}: NVRTC's messages are unreadable with other characters"
        text = kernel_source(path.name) if path.suffix == ".cu" else path.read_text()
        assert "#include" not in text, f"{path.name} includes a file that an installed package may lack"
