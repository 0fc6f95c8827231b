"""Launch every kernel family of the CUDA engine room on small arrays: what compute-sanitizer watches.

    compute-sanitizer --tool memcheck --error-exitcode 9 python benchmarks/launch_kernels.py

CuPy's memory pool cuts arrays out of larger allocations, so that an access outside of an array would still lie inside
of one and pass unseen. Here every array has an allocation of its own. Nothing is captured, because a graph's memory is
a pool again, and no numbers are compared: `python -m minigrad.check` does that.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np

from minigrad.backend import cupy, float_dtype, synchronize, to_device
from minigrad.fast.cases import Declined, Family, families
from minigrad.fast.cuda import augment, gpu, graph
from train.data.augment import draw

# Shared memory of a block, in KiB, of an H100, an A100 and the RTX 30, 40 and 50: a card with more can launch what one
# with less is given.
SHARED = (227, 163, 99)


def launches() -> Iterator[tuple[str, Family]]:
    """Yield each family, with what to call it; those whose tiles depend on shared memory once for each kind of card."""
    own = gpu.properties()
    for family in families("cuda"):
        if family.leave_out is graph.avoid:
            continue
        tiled = "tensor cores" in family.name
        for kib in SHARED if tiled else SHARED[:1]:
            shared = min(own.shared_bytes, kib << 10)
            gpu.properties = lambda shared=shared: own._replace(shared_bytes=shared)
            yield f"{family.name}, {family.dtype}" + f", {shared >> 10} KiB" * tiled, family
        if family.dtype == "bfloat16" and family.filters:  # weights that are no parameters may be bfloat16, too
            yield f"{family.name}, {family.dtype} weights", family._replace(filters=False)
        if tiled:  # four images of one pixel: nearly all of a patch is border, and the smallest tile must do
            x, *others = family.arrays
            pixels = np.repeat(x[:, :, :1, :1], 2, axis=0)
            yield f"{family.name}, {family.dtype}, four pixels", family._replace(arrays=[pixels, *others])
    gpu.properties = lambda: own


def main() -> int:
    """Launch everything; return 0, or 1 if a launch fails. The sanitizer has an exit code of its own."""
    cupy().cuda.set_allocator(None)
    failed = 0
    for name, family in launches():
        arrays = family.rounded(float_dtype(family.dtype, "cuda"))
        try:
            family.fast(*(None if a is None else to_device(a, "cuda") for a in arrays))
            synchronize("cuda")
            print(name, flush=True)
        except Declined as reason:
            print(f"{name}: {reason}", flush=True)
        except Exception as error:  # the next family may still run
            print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            failed = 1
    for dtype in ("float32", "bfloat16") if gpu.properties().compute >= 80 else ("float32",):
        images, choices = np.zeros((20, 3, 9, 7), np.uint8), draw(np.arange(20), (9, 7), np.random.default_rng(0))
        numbers = np.ones(3), np.ones(3), float_dtype(dtype, "cuda")
        options = {"padding": 4, "mode": "reflect", "cutout": 5}
        augment.augmented(to_device(images, "cuda"), to_device(choices, "cuda"), *numbers, **options)
        synchronize("cuda")
        print(f"a training batch, {dtype}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
