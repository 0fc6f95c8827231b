"""Training as a function (train/run/fit.py), as in a notebook."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from support import tiny

from train import fit
from train.run import checkpoint, evaluation, loop

SMALL = {
    "model": "resnext11_2x4d_w8",
    "data": "shapes",
    "limit_train": 22,
    "limit_test": 12,
    "recipe": "paper",
    "batch_size": 8,
    "epochs": tiny.EPOCHS,
    "lr": 0.02,
    "weight_decay": 0.01,
}


def test_it_is_the_run_of_the_command(tmp_path, capsys):
    run = fit(**SMALL, out=tmp_path / "fit")
    assert tiny.train(tmp_path / "command") == 0
    assert tiny.differences(tmp_path / "fit", tmp_path / "command") == []
    assert [line["epoch"] for line in run.history] == [1, 2, 3]
    assert run.out == tmp_path / "fit" and not run.model.training
    assert repr(run).startswith("<run of resnext11_2x4d_w8 on shapes: 3 of 3 epochs, test error ")
    assert len(repr(run)) < 200
    assert run._repr_png_().startswith(b"\x89PNG")


def test_options_that_do_not_work_are_exceptions_with_one_sentence(tmp_path):
    for options, sentence in (
        ({"modle": "resnext29_8x64d"}, "did you mean --model"),
        ({"epochs": 0}, "--epochs must be at least 1, got 0"),
        ({"epochs": "many"}, "argument --epochs: invalid int value: 'many'"),
        ({"model": "resnext"}, "there is no network 'resnext'"),
        ({"flip": False}, "flip=False: this option takes a value"),
        ({"batch_size": False}, "batch_size=False: this option takes a value"),
        ({"nesterow": False}, "nesterow=False: no such option"),
        ({"data": str(tmp_path / "none")}, "there is no such folder or file"),
    ):
        with pytest.raises(ValueError, match=sentence):
            fit(**{**SMALL, **options}, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_network_it_returns_is_the_one_that_was_evaluated(tmp_path):
    """With the averaged weights, where the recipe keeps an average."""
    run = fit(**{**SMALL, "recipe": "short", "epochs": 1}, nesterov=False, resume=False, out=tmp_path)
    assert not run.config.recipe.nesterov
    error = evaluation.evaluate(run.model, run.test_set, run.mean, run.std, run.config).error
    assert error == pytest.approx(run.history[-1]["test_error"])
    for name, t in run.model.named_tensors():
        np.testing.assert_array_equal(t.numpy(), run.averaged[name], name)


def test_an_interrupt_saves_the_run_which_then_goes_on(tmp_path, monkeypatch):
    assert tiny.train(tmp_path / "once") == 0
    train_step = loop.train_step

    def interrupted(run, *arguments):
        if (run.epoch, run.step) == (1, 1):
            os.kill(os.getpid(), signal.SIGINT)
        return train_step(run, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", interrupted)
        with pytest.raises(KeyboardInterrupt, match="go on with --resume"):
            fit(**SMALL, out=tmp_path / "twice")
    assert checkpoint.read(tmp_path / "twice" / checkpoint.LAST)[1]["step"] == 2
    assert fit(out=tmp_path / "twice", resume=True, nesterov=None).epoch == 3
    assert tiny.differences(tmp_path / "once", tmp_path / "twice") == []


@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "module://nowhere", "nonsense"])
def test_the_backend_that_jupyter_names_is_not_loaded(tmp_path, backend):
    """In an environment without it every command died when it was imported, even with --help."""
    path = {**os.environ, "MPLBACKEND": backend, "PYTHONPATH": str(tiny.ROOT)}
    code = (
        "import sys\nsys.modules['matplotlib_inline'] = None\n"
        "from train import cifar, figures, report\n"
        "from train.show import plots\n"
        "import numpy as np, pathlib\n"
        "plots.draw_confusion(np.eye(2), 'ab', pathlib.Path('x.png'), 'title')\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=path, cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_importing_train_loads_nothing_heavy():
    code = "import sys, train; print([m for m in ('numpy', 'matplotlib', 'tqdm') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=tiny.ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n"
