"""What a GPU would have been asked to do."""

import ctypes
from collections import Counter


class Work(ctypes.Structure):
    """What a kernel's threads did; device.h has the same struct."""

    _fields_ = tuple(
        (name, ctypes.c_ulonglong)
        for name in ("loaded", "stored", "shared_loaded", "shared_stored", "fma", "add", "atomics", "mma", "mma_zero", "barriers")
    )


class Counters:
    """Counts since `reset`."""

    def __init__(self) -> None:
        self.allocated = self.peak = 0
        self.reset()

    def reset(self) -> None:
        """Start counting anew; memory that is allocated stays so."""
        self.done: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self.launches: Counter[str] = Counter()
        self.work: dict[str, Work] = {}
        self.products: Counter[str] = Counter()  # matrix products by dtype, and what they multiply
        self.multiplications: Counter[str] = Counter()
        self.peak = self.allocated

    def allocate(self, size: int) -> None:
        self.allocated += size
        self.peak = max(self.peak, self.allocated)

    def did(self, kind: str, size: int) -> None:
        self.done[kind] += 1
        self.bytes[kind] += size

    def product(self, dtype: str, m: int, n: int, k: int, batch: int) -> None:
        self.products[dtype] += 1
        self.multiplications[dtype] += m * n * k * batch

    def wait(self, what: str, stream: object) -> None:
        self.waits[what] += 1


COUNTERS = Counters()
