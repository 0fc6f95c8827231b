"""What every CUDA kernel needs on every architecture: `python tests/tools/kernel_table.py > docs/kernels.md`.

Needs no GPU, but NVRTC and CuPy's binding of it: pip install cupy-cuda13x nvidia-cuda-nvrtc ml_dtypes.
"""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from cupy_backends.cuda.libs import nvrtc  # noqa: E402
from support.nvrtc import ARCHITECTURES, FILES, compile_file, runs_on  # noqa: E402

from minigrad.fast.cuda.tiles import Packing, plan  # noqa: E402

CARDS = {227: "H100", 163: "A100", 99: "RTX 30, 40, 50"}  # KiB of shared memory that a block may have
NETWORKS = {"8x64d": (8, 64), "16x64d": (16, 64), "4x16d": (4, 16), "32x4d": (32, 4)}
BATCH = 128

HEAD = """# The CUDA kernels in numbers

This page is what `python tests/tools/kernel_table.py` prints, here with NVRTC {}.{} (no GPU needed). A kernel may take
255 registers a thread; none keeps anything in local memory on any architecture (a test holds that).

## Registers a thread
"""

EXPLANATION = f"""
## Tiles and shared memory of the grouped 3x3

Batch {BATCH}; pixels x filters of a block and KiB of dynamic shared memory: forward, input gradient, weight gradient.
`_d16`, `_d32`: only the blocks of that size on a pack's diagonal are multiplied.
"""


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def registers() -> str:
    """Registers of every kernel on every architecture, and the shared memory that its source names."""
    found: dict[str, dict[str, tuple[int, int]]] = {}
    for architecture in ARCHITECTURES:
        for file in FILES:
            if runs_on(file, architecture):
                for name, kernel in compile_file(nvrtc, file, architecture)[1].items():
                    found.setdefault(name, {})[architecture] = (kernel.registers, kernel.shared)
    rows = []
    for name, by_architecture in sorted(found.items()):
        shared = max(shared for _, shared in by_architecture.values())
        cells = [str(by_architecture[a][0]) if a in by_architecture else "" for a in ARCHITECTURES]
        rows.append([name, f"{shared:,}", *cells])
    return table(["kernel", "static shared, bytes", *(f"{a} ({gpu})" for a, gpu in ARCHITECTURES.items())], rows)


def shared_memory() -> str:
    """The kernels that the grouped 3x3 layers of four networks take on each card, and the shared memory of a block."""
    rows = []
    for network, (C, d) in NETWORKS.items():
        for stage in range(3):
            for stride in sorted({1, min(stage + 1, 2)}):
                size, channels = (32 >> stage) * stride, C * d << stage
                shape = (BATCH, size, size, channels)
                packing = Packing.of(channels, channels, C)
                cells = []
                for kib in CARDS:
                    passes = plan(shape, channels, stride, packing, kib << 10)
                    cells.append(
                        f"{passes.forward.kernel()[8:]} {passes.forward.shared_bytes() / 1024:.1f}, "
                        f"{passes.dgrad.kernel()[8:]} {passes.dgrad.shared_bytes() / 1024:.1f}, "
                        f"{passes.wgrad.wgrad_kernel()[14:]} {passes.wgrad.wgrad_bytes() / 1024:.1f}"
                    )
                rows.append([f"{network}, stage {stage + 1}, stride {stride}", *cells])
    return table(["layer", *(f"{card} ({kib} KiB)" for kib, card in CARDS.items())], rows)


if __name__ == "__main__":
    print(HEAD.format(*nvrtc.getVersion()))
    print(registers())
    print(EXPLANATION)
    print(shared_memory())
