"""What a GPU would have been asked to do."""

import ctypes
from collections import Counter
from typing import Any


class Work(ctypes.Structure):
    """What a kernel's threads did; device.h has the same struct. Bytes are what threads ask for, cached or not."""

    _fields_ = tuple(
        (name, ctypes.c_ulonglong)
        for name in (
            "loaded", "stored", "shared_loaded", "shared_stored", "fma", "add", "atomics", "mma", "mma_zero", "barriers"
        )
    )  # fmt: skip


class Counters:
    """Counts since `reset`."""

    def __init__(self) -> None:
        self.allocated = self.peak = 0
        self.blank = False  # True: launches and products are counted and not done, and new memory is zero
        self.reset()

    def reset(self) -> None:
        """Start counting anew; memory that is allocated stays so."""
        self.done: Counter[str] = Counter()  # submitted work by kind: launch, product, copy, memset, graph
        self.bytes: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()  # what the host waited for
        self.launches: Counter[str] = Counter()  # by the kernel's name
        self.work: dict[str, Work] = {}
        self.products: Counter[str] = Counter()  # matrix products by dtype, and what they multiply
        self.multiplications: Counter[str] = Counter()
        self.peak = self.allocated

    def allocate(self, size: int) -> None:
        """Device memory was allocated, or given back."""
        self.allocated += size
        self.peak = max(self.peak, self.allocated)

    def did(self, kind: str, size: int) -> None:
        """Some work was done."""
        self.done[kind] += 1
        self.bytes[kind] += size

    def product(self, dtype: str, m: int, n: int, k: int, batch: int) -> None:
        """cuBLAS multiplied matrices."""
        self.products[dtype] += 1
        self.multiplications[dtype] += m * n * k * batch

    def wait(self, what: str) -> None:
        """The host waited for the device."""
        self.waits[what] += 1

    def report(self) -> dict[str, Any]:
        """The counts as plain numbers."""
        kernels = {
            name: {"launches": n, **{field: int(getattr(self.work[name], field)) for field, _ in Work._fields_}}
            for name, n in self.launches.most_common()
        }
        return {
            "work": dict(self.done),
            "copied": self.bytes["copy"],
            "waits": dict(self.waits),
            "kernels": kernels,
            "products": dict(self.products),
            "multiplications": dict(self.multiplications),
            "allocated": self.allocated,
            "peak": self.peak,
        }

    @staticmethod
    def table(report: dict[str, Any]) -> str:
        """A report for people."""
        lines = [f"losses: {' '.join(f'{x:.5f}' for x in report['losses'])}", ""]
        header = ("kernel", "launches", "loaded", "stored", "fma", "mma", "with zeros")
        lines.append(f"{header[0]:48} " + " ".join(f"{h:>12}" for h in header[1:]))
        total = dict.fromkeys(("launches", "loaded", "stored", "fma", "mma", "mma_zero"), 0)
        for name, counts in report["kernels"].items():
            lines.append(f"{name[:48]:48} " + " ".join(f"{counts[key]:12,}" for key in total))
            total = {key: value + counts[key] for key, value in total.items()}
        lines.append(f"{'all kernels':48} " + " ".join(f"{value:12,}" for value in total.values()))
        lines += [
            "",
            *(
                f"{report['products'][t]} products of {t}: {n:,} multiply-adds"
                for t, n in report["multiplications"].items()
            ),
            f"submitted: {', '.join(f'{n} x {kind}' for kind, n in report['work'].items())}",
            f"copied: {report['copied']:,} bytes",
            f"the host waited: {', '.join(f'{n} x {what}' for what, n in report['waits'].items()) or 'never'}",
            f"device memory: {report['peak'] / 2**20:.1f} MiB at most",
        ]
        return "\n".join(lines)


COUNTERS = Counters()
