"""The batch of one step: what chance decides about it, and the images that this makes of the training set's."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from minigrad import check, registry
from minigrad.backend import Array, float_dtype, to_device, to_numpy

from ..data import augment
from ..options import warn

if TYPE_CHECKING:
    from .loop import Run

PADDING = 4  # pixels, as in the paper (Appendix A)


def prepare(run: Run, indices: np.ndarray, step: int) -> Array:
    """This rank's part of one step's augmented batch: images (N, 3, H, W), or the choices that `images_of` takes.

    Random numbers depend on seed, epoch and step alone: every rank draws those of the whole batch and takes its part.
    """
    config, r, train_set = run.config, run.config.recipe, run.train_set
    rng = np.random.default_rng((config.seed, run.epoch, step))
    flips = np.zeros(len(indices), bool) if r.flip == "none" else None
    if r.flip == "alternating":
        flips = augment.alternating_flips(len(train_set), run.epoch, config.seed)[indices]
    if train_set.crop and train_set.aspects is not None:
        return run.ranks.part(
            crops_of_photographs(run, indices, train_set.aspects[indices], train_set.crop, rng, flips)
        )
    drawn = augment.draw(indices, train_set.images.shape[2:], rng, PADDING, flips, r.cutout)
    choices = to_device(run.ranks.part(drawn), config.device)
    make, arguments, options = maker(run, choices)
    # A step that is a CUDA graph makes its images itself, where a kernel can: one launch in place of a dozen.
    return choices if run.cuda_graph and make is not augment.augmented else make(*arguments, **options)


def crops_of_photographs(
    run: Run, indices: np.ndarray, aspects: np.ndarray, size: int, rng: np.random.Generator, flips: np.ndarray | None
) -> Array:
    """Random parts of photographs, scaled to `size`."""
    config, r = run.config, run.config.recipe
    dtype = float_dtype(config.dtype, config.device)
    exact = np.float64 if dtype == np.float64 else np.float32  # bfloat16 has too few digits to interpolate with
    batch = augment.normalise(run.train_set.images[to_device(indices, config.device)], run.mean, run.std, exact)
    batch = augment.random_resized_crop(batch, aspects, size, rng, r.crop_area, flips)
    batch = batch.astype(dtype, copy=False)
    return augment.cutout(batch, r.cutout, rng) if r.cutout else batch


def images_of(run: Run, batch: Array) -> Array:
    """The images of what `prepare` returned, be it choices."""
    if batch.ndim == 4:
        return batch
    make, arguments, options = maker(run, batch)
    return make(*arguments, **options)


def maker(run: Run, choices: Array) -> tuple[Callable[..., Array], tuple[Any, ...], dict[str, Any]]:
    """What makes images of choices, by formulas or by a kernel that stands in for them, and what it is called with."""
    config, r = run.config, run.config.recipe
    dtype = float_dtype(config.dtype, config.device)
    arguments = run.train_set.images, choices, run.mean, run.std, dtype
    options = {"padding": PADDING, "mode": r.padding, "cutout": r.cutout}
    return registry.choose(augment.augmented, config.device, *arguments, **options), arguments, options


def check_kernel(run: Run) -> None:
    """Do without the kernel that makes batches, and say so, where it makes others than the formulas do."""
    if not check.wanted():
        return
    train_set, device = run.train_set, run.config.device
    few, rng = min(len(train_set), 16), np.random.default_rng(0)
    choices = to_device(augment.draw(np.arange(few), train_set.images.shape[2:], rng, PADDING), device)
    whole = train_set.images[:few], run.mean, run.std, float_dtype(run.config.dtype, device)
    makers: dict[Callable[..., Array], tuple[Callable[..., Array], tuple[Any, ...], dict[str, Any]]] = {
        augment.augmented: maker(run, choices),
        augment.normalise: (registry.choose(augment.normalise, device, *whole), whole, {}),
    }
    for formula, (make, arguments, options) in makers.items():
        if make is formula:
            continue
        made, expected = (to_numpy(f(*arguments, **options)).astype(np.float32) for f in (make, formula))
        if not np.allclose(made, expected, rtol=2**-7, atol=2**-7):  # of numbers around 1: one rounding to bfloat16
            registry.leave_out(make)
            warn("the kernel that makes batches of images computes wrong numbers on this GPU: CuPy makes them instead")
