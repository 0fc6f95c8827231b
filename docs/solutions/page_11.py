"""Page 11, your own images: solutions. `python docs/solutions/page_11.py` prints the answers."""

from pathlib import Path

import numpy as np
from PIL import Image

from minigrad import Tensor, no_grad
from resnext import create
from train.data.folders import split_off
from train.data.images import MARGIN, centre_crop
from train.run.fine_tuning import freeze, set_training


def exercise_1() -> None:
    """0.2·9 = 1.8 and 0.2·31 = 6.2, rounded: 2 and 6 are kept back for testing, 7 and 25 are left for training.

    Of the 8 test images 2 are daisies, so a network that always says "tulip" errs in 25 %.
    """
    classes = {name: [Path(f"{i}.jpg") for i in range(n)] for name, n in (("daisy", 9), ("tulip", 31))}
    train, test = split_off(classes, 0.2, seed=0)
    counts = {name: (len(train[name]), len(test[name])) for name in classes}
    error = 100 * len(test["daisy"]) / sum(map(len, test.values()))
    print(f"training and test: {counts}; saying tulip always errs in {error:.0f} %")
    assert counts == {"daisy": (7, 2), "tulip": (25, 6)} and error == 25


def exercise_2() -> None:
    """A square whose side is 224/256 of the shorter side: 300·224/256 = 262.5 pixels of the photograph.

    That is 262.5²/(400·300) = 57 % of it. The size that it is scaled to does not matter, but for rounding.
    """
    width, height = 400, 300
    rows, columns = np.mgrid[:height, :width]  # each pixel's colour says where it was
    where = np.stack([columns * 255 / width, rows * 255 / height, 0 * rows], axis=-1).astype(np.uint8)
    for size in (48, 224):
        seen = np.asarray(centre_crop(Image.fromarray(where), (size, size), MARGIN)).astype(float)
        wide, high = ((np.ptp(seen[..., k]) + 1) / 255 for k in (0, 1))
        print(f"--image-size {size}: {wide * width:.0f} x {high * height:.0f} pixels, {wide * high:.0%} of the area")
        assert abs(wide * width - 262.5) < 10 and abs(high * height - 262.5) < 10


def exercise_3() -> None:
    """The last layer has 256 weights and a bias for each class: 5·257 = 1,285 parameters.

    In training batch norm's running averages move with every batch. If they moved in the frozen layers too, these would
    compute something else in evaluation than they did before, and that is no longer what the weights were found for.
    """
    model = create("resnext11_4x4d_w16", num_classes=5)
    freeze(model, "all-but-last-layer")
    trained = sum(p.size for p in model.parameters() if p.requires_grad)
    x = Tensor(np.random.default_rng(0).normal(1, 2, (8, 3, 32, 32)).astype(np.float32))

    def answers_after_a_batch(prepare):
        prepare()
        with no_grad():
            model(x)
            model.eval()
            return model(x).numpy()

    before = answers_after_a_batch(model.eval)
    kept = answers_after_a_batch(lambda: set_training(model))  # as training does it
    moved = answers_after_a_batch(model.train)
    same = np.array_equal(before, kept), np.allclose(before, moved)
    print(f"{trained:,} parameters; the answers stay: {same[0]}, with all of batch norm in training: {same[1]}")
    assert trained == 1285 and same == (True, False)


if __name__ == "__main__":
    for exercise in (exercise_1, exercise_2, exercise_3):
        exercise()
