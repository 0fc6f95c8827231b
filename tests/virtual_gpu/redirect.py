"""Point the functions of a loaded shared library somewhere else.

CuPy's wheel carries the CUDA runtime inside: libcudart is linked into cupy_backends/cuda/api/runtime*.so. Its symbol
table says where each of the runtime's functions begins, so a jump can be written there. x86-64 and ELF only.
"""

import ctypes
import mmap
import struct
from collections.abc import Iterator
from pathlib import Path

PAGE = mmap.PAGESIZE
SYMTAB, DYNSYM = 2, 11  # types of a section: the symbols of the library's own, and those it shares with others
FUNCTION = 2  # a symbol's type


def _symbols(path: Path, table: int) -> Iterator[tuple[str, int, int, int]]:
    """Yield (name, type, section, address relative to where the library is loaded) of an ELF file's symbols."""
    data = path.read_bytes()
    if data[:6] != b"\x7fELF\x02\x01":
        raise OSError(f"{path.name} is not a 64-bit little-endian ELF file")
    (headers,) = struct.unpack_from("<Q", data, 0x28)
    size, count = struct.unpack_from("<HH", data, 0x3A)
    sections = [struct.unpack_from("<IIQQQQIIQQ", data, headers + i * size) for i in range(count)]
    for _, kind, _, _, offset, length, link, _, _, entry in sections:
        if kind != table:
            continue
        names = sections[link][4]
        for at in range(offset, offset + length, entry):
            name, info, _, section, value, _ = struct.unpack_from("<IBBHQQ", data, at)
            yield data[names + name : data.index(b"\0", names + name)].decode(), info & 15, section, value


def functions(path: Path) -> dict[str, int]:
    """Return the functions in a library and their addresses relative to where it is loaded."""
    return {name: value for name, kind, section, value in _symbols(path, SYMTAB) if kind == FUNCTION and section}


def wanted(path: Path, prefix: str) -> list[str]:
    """Return the names that a library expects others to define."""
    return [name for name, _, section, _ in _symbols(path, DYNSYM) if not section and name.startswith(prefix)]


def redirect(path: Path, targets: dict[str, int]) -> list[str]:
    """Load the library and make each named function jump to the address given; return the names it does not have."""
    library = ctypes.CDLL(str(path))
    base = ctypes.cast(library._handle, ctypes.POINTER(ctypes.c_size_t))[0]  # glibc's link_map starts with it
    found = functions(path)
    for name in targets.keys() & found.keys():
        # movabs r11, target; jmp r11
        _write(base + found[name], b"\x49\xbb" + struct.pack("<Q", targets[name]) + b"\x41\xff\xe3")
    return sorted(targets.keys() - found.keys())


def _write(address: int, code: bytes) -> None:
    """Overwrite machine code, whose pages are read-only otherwise."""
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    start = address & -PAGE
    length = (address + len(code) - start + PAGE - 1) & -PAGE
    if protect(start, length, mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC):
        raise OSError(ctypes.get_errno(), "the CUDA runtime inside CuPy cannot be redirected")
    ctypes.memmove(address, code, len(code))
    protect(start, length, mmap.PROT_READ | mmap.PROT_EXEC)
