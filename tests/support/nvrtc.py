"""Compile the CUDA kernels without a GPU: NVRTC, as CuPy calls it, for any architecture."""

import re
from typing import NamedTuple

from minigrad.fast.cuda.gpu import FOLDER, OPTIONS, kernel_source

FILES = sorted(path.name for path in FOLDER.glob("*.cu"))
ARCHITECTURES = {  # what CUDA 13's NVRTC knows, with GPUs that have it
    "sm_75": "T4, RTX 20",
    "sm_80": "A100",
    "sm_86": "RTX 30",
    "sm_89": "RTX 40, L4",
    "sm_90a": "H100, H200",
    "sm_100": "B200",
    "sm_120": "RTX 50",
}
TENSOR_CORES = "conv3x3.cu"  # bfloat16 products need compute capability 8.0
CUPY_OPTIONS = ("-ftz=true", "--device-as-default-execution-space")  # CuPy adds these to every compilation


class Kernel(NamedTuple):
    """What ptxas says of a kernel."""

    registers: int  # of a thread, 255 at most
    shared: int  # bytes of a block's shared memory that the source names; the launch adds the dynamic part
    stack: int  # bytes a thread keeps in local memory: registers that did not suffice


class Rejected(Exception):
    """The compiler's messages."""


def runs_on(file: str, architecture: str) -> bool:
    """Whether the engine room launches a file's kernels on this architecture."""
    return file != TENSOR_CORES or architecture != "sm_75"


def compile_file(nvrtc, file: str, architecture: str) -> tuple[bytes, dict[str, Kernel]]:
    """The machine code of a .cu file, and what each of its kernels needs."""
    return compile_text(nvrtc, file, kernel_source(file), architecture)


def compile_text(nvrtc, name: str, text: str, architecture: str) -> tuple[bytes, dict[str, Kernel]]:
    """Compile to machine code, so that ptxas's errors count too. Raises `Rejected` with the compiler's messages."""
    program = nvrtc.createProgram(text, name, (), ())
    try:
        options = (f"-arch={architecture}", "--ptxas-options=-v", *CUPY_OPTIONS, *OPTIONS)
        nvrtc.compileProgram(program, options)
        return nvrtc.getCUBIN(program), kernels(nvrtc.getProgramLog(program))
    except nvrtc.NVRTCError:
        raise Rejected(f"{name} does not compile for {architecture}:\n{nvrtc.getProgramLog(program)}") from None
    finally:
        nvrtc.destroyProgram(program)


def kernels(log: str) -> dict[str, Kernel]:
    """Read ptxas's report."""
    found = {}
    for part in log.split("Compiling entry function '")[1:]:
        name = part.split("'")[0]
        registers, stack = (int(re.search(p, part)[1]) for p in (r"Used (\d+) registers", r"(\d+) bytes stack frame"))
        shared = re.search(r"(\d+) bytes smem", part)
        found[name] = Kernel(registers, int(shared[1]) if shared else 0, stack)
    return found
