"""Run the CUDA kernels of minigrad/fast on the CPU: g++ compiles the .cu file with cuda_shim.h, ctypes launches it.

    module = compile_host("norm.cu")
    module.launch("bn_sums_float32", grid=(1, 4), block=(16, 16), arguments=[x, partial, np.int64(M), np.int32(C),
    np.int64(8)])

Arguments are what CuPy's RawKernel takes: arrays (here NumPy's, written in place), NumPy scalars of the parameter's
exact type, structured scalars for structs passed by value, or None for a null pointer. The memory that an array
argument views must be its own.
"""

import ctypes
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from minigrad.fast.cuda.gpu import FOLDER, kernel_source

SHIM = Path(__file__).parent


def compiler() -> str | None:
    """The C++ compiler's path, or None where there is none."""
    return shutil.which("g++") or shutil.which("c++")


KERNEL = re.compile(r'extern "C" __global__ void(?:\s+__launch_bounds__\([^)]*\))?[\s\\]+(\w+?)(?:##(\w+))?\(')
MACRO = re.compile(r"^#define (\w+)\(([^)]*)\)((?:.*\\\n)+.*\n)", re.MULTILINE)


def kernel_names(name: str) -> list[str]:
    """The kernels of a .cu file; a macro's `name_##ending` stands for one kernel each time that the macro is used."""
    text = (FOLDER / name).read_text()
    found = [kernel for kernel, ending in KERNEL.findall(text) if not ending]
    for macro, parameters, body in MACRO.findall(text):
        for values in re.findall(rf"^{macro}\(([^)]*)\)", text, re.MULTILINE):
            given = dict(zip(parameters.split(", "), values.split(", "), strict=True))
            found += [kernel + given[ending] for kernel, ending in KERNEL.findall(body) if ending]
    return found


class HostModule:
    """The kernels of one .cu file, compiled for the CPU."""

    def __init__(self, library: ctypes.CDLL):
        self.dll = library
        library.shim_bank_conflicts.restype = ctypes.c_longlong

    def bank_conflicts(self) -> int:
        """How many ldmatrix rows fell on an occupied bank since the last call."""
        return int(self.dll.shim_bank_conflicts())

    def launch(
        self,
        kernel: str,
        grid,
        block,
        arguments: Sequence,
        shared: int = 0,
        schedule: int = 0,
        memory: Sequence[np.ndarray] = (),
    ) -> None:
        """Run one kernel over its whole grid; RuntimeError with the shim's reason where it went wrong.

        `memory` names the arrays that the kernel finds through addresses in a struct: it may touch no others but these
        and its arguments.
        """
        holders = [_by_pointer(argument) for argument in arguments]
        pointers = (ctypes.c_void_p * len(holders))(*(holder.ctypes.data for holder in holders))
        dims = [(ctypes.c_uint * 3)(*(*d, 1, 1, 1)[:3]) for d in (grid, block)]
        arrays = [a for a in (*arguments, *memory) if isinstance(a, np.ndarray) and a.dtype.names is None]
        begins = np.array([a.ctypes.data for a in arrays], np.uint64)
        ends = begins + np.array([a.nbytes for a in arrays], np.uint64)
        self.dll.shim_arrays(len(arrays), ctypes.c_void_p(begins.ctypes.data), ctypes.c_void_p(ends.ctypes.data))
        function = getattr(self.dll, f"launch_{kernel}")
        function.restype = ctypes.c_char_p
        message = function(len(holders), *dims, ctypes.c_ulonglong(shared), schedule, pointers)
        if message:
            raise RuntimeError(f"{kernel}: {message.decode()}")


def _by_pointer(argument) -> np.ndarray:
    """Memory that holds the argument's value: the array's address for an array, the scalar's bytes for a scalar."""
    if argument is None:
        return np.zeros(1, np.uint64)
    if isinstance(argument, np.ndarray) and argument.dtype.names is None:
        return np.array([argument.ctypes.data], np.uint64)
    if isinstance(argument, np.generic | np.ndarray):
        return np.atleast_1d(argument)
    raise TypeError(f"a kernel argument must be an array, a NumPy scalar or None, not {type(argument).__name__}")


@cache
def compile_host(name: str) -> HostModule:
    """Compile minigrad/fast/`name` with the shim into a shared library and load it, once a session."""
    return compile_text(name, kernel_source(name, first=SHIM), kernel_names(name))


def compile_text(name: str, text: str, kernels: Sequence[str]) -> HostModule:
    """Compile a kernel file's text with the shim and load it; RuntimeError with the compiler's messages."""
    exports = "\n".join(f"SHIM_EXPORT({kernel})" for kernel in kernels)
    with tempfile.TemporaryDirectory() as folder:
        source, object_file, library = (Path(folder, f"{name}{suffix}") for suffix in (".cpp", ".o", ".so"))
        source.write_text(f'#include "cuda_shim.h"\n{text}\n{exports}\n')
        # -ffp-contract=off: a fused multiply-add happens where the kernel says fmaf, nowhere else. No fortified
        # longjmp: it takes a jump to another stack for an attack. A vector access at a crooked address, which a GPU
        # refuses, ends the process.
        flags = [
            "-std=c++17",
            "-O1",
            "-ffp-contract=off",
            "-fno-strict-aliasing",
            "-fsanitize=alignment",
            "-fsanitize-undefined-trap-on-error",
            "-fsanitize=thread",
            "-fvisibility=hidden",
            "-U_FORTIFY_SOURCE",
            "-fPIC",
            "-w",
        ]
        for command in (
            [str(compiler()), *flags, f"-I{SHIM}", "-c", str(source), "-o", str(object_file)],
            [str(compiler()), "-shared", str(object_file), "-o", str(library)],
        ):
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
            if done.returncode:
                raise RuntimeError(f"{name} does not compile for the CPU:\n{done.stderr[:4000]}")
        return HostModule(ctypes.CDLL(str(library)))
