"""Every public constructor and function with hostile values: a result, or one sentence of ours (support/public.py)."""

import inspect
import re

import numpy as np
import pytest
from support.public import HOSTILE, INSIDE, PUBLIC

import minigrad
import resnext
from minigrad import draw, nn, optim

# What Python and NumPy say when a value went where it should never have come to.
RAW = re.compile(
    r"object has no attribute|not supported between|unsupported operand|is not iterable|not subscriptable|has no len"
    r"|must be real number|cannot be interpreted as an|unhashable|not callable|argument of type|unpack|descriptor|"
    r"invalid literal|list indices|expected string or|only length-1|bad operand|ambiguous. Use|bad argument|"
    r"can only concatenate|slice indices|has no attribute|cannot convert float|setting an array element|"
    r"could not convert string|must be a string, a bytes|not a mapping|must be a mapping|no attribute"
)


def public_names():
    found = {*minigrad.__all__, *(f"resnext.{name}" for name in resnext.__all__)}
    for module in (nn, optim, draw):
        for name, value in vars(module).items():
            own = inspect.isclass(value) or inspect.isfunction(value)
            if own and value.__module__ == module.__name__ and not name.startswith("_"):
                found.add(f"{module.__name__.rpartition('.')[2]}.{name}")
    return found


def test_whatever_is_public_stands_in_the_table():
    rows = {name.split(" (")[0] for name in PUBLIC} | {name.split(".")[0] for name in PUBLIC}
    assert public_names() - set(INSIDE) <= rows
    assert not set(PUBLIC) & set(INSIDE)


@pytest.mark.parametrize("name", PUBLIC)
def test_valid_arguments_are_taken(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    minigrad.save_weights(nn.Linear(3, 2), "weights.safetensors")
    row = PUBLIC[name]
    try:
        row.call(**{key: make() for key, make in row.valid.items()})
    except FileNotFoundError:
        assert name == "draw.svg"  # where Graphviz is not installed


FLAGS = {"requires_grad", "bias", "strict", "mode", "nesterov", "residual", "imagenet"}  # take what has a truth value
CASES = [(name, key) for name, row in PUBLIC.items() for key in row.valid if key not in {*row.skip, *FLAGS}]


@pytest.mark.parametrize(("name", "key"), CASES)
def test_a_hostile_value_gives_a_result_or_one_sentence(name, key, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    minigrad.save_weights(nn.Linear(3, 2), "weights.safetensors")
    row = PUBLIC[name]
    wrong = []
    for kind, make in HOSTILE.items():
        arguments = {k: v() for k, v in row.valid.items()}
        arguments[key] = make()
        try:
            with np.errstate(all="ignore"):
                row.call(**arguments)
        except row.errors as error:
            if "\n" in str(error) or RAW.search(str(error)) or not str(error):
                wrong.append(f"{kind}: {type(error).__name__}: {error}")
        except Exception as error:
            wrong.append(f"{kind}: {type(error).__name__}: {error}")
    assert not wrong, "\n".join(wrong)


def test_one_no_grad_object_serves_again_inside_itself_and_as_a_decorator():
    x, quiet = minigrad.Tensor([1.0], requires_grad=True), minigrad.no_grad()
    for _ in range(2):
        with quiet:
            with quiet:
                assert not (x * 2).requires_grad
            assert not (x * 2).requires_grad
        assert (x * 2).requires_grad
    assert not quiet(lambda: x * 2)().requires_grad
    with pytest.raises(KeyError), quiet:
        raise KeyError
    assert (x * 2).requires_grad


def test_a_state_that_does_not_fit_changes_nothing():
    p = minigrad.Parameter([1.0, 2.0])
    sgd = optim.SGD([p], 0.1, momentum=0.9)
    for state in ({}, {"lr": -1.0, "velocities": [None]}, {"lr": 0.5, "velocities": [3]}, {"lr": 0.5, "velocities": 3}):
        with pytest.raises((TypeError, ValueError)):
            sgd.load_state_dict(state)
        assert (sgd.lr, sgd.velocities) == (0.1, [None])


def test_running_statistics_are_floating_point_arrays():
    x, ones = minigrad.Tensor(np.ones((2, 3))), minigrad.Tensor(np.ones(3))
    for wrong in (np.ones(3, int), minigrad.Tensor(np.ones(3, int))):
        with pytest.raises(TypeError, match="needs a floating-point array or tensor as its running_mean, got int64"):
            minigrad.functional.batch_norm(x, ones, ones, wrong, np.ones(3), training=True)
