"""Every public constructor and function with hostile values: a result, or one sentence of ours (support/public.py)."""

import inspect
import re
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from support.public import HOSTILE, INSIDE, PUBLIC

import minigrad
import resnext
from minigrad import Tensor, draw, nn, optim
from minigrad import functional as F

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


# Numbers of all kinds of scalars, in the place of a number that is right; what is no number is refused.
KINDS = [np.float16, np.float32, np.float64, np.longdouble, np.int8, np.uint8, np.int16, np.int64, np.uint64]
STRANGE = [
    *(np.finfo(kind).max for kind in (np.float16, np.float32, np.longdouble)),
    *(kind("nan") for kind in (np.float16, np.longdouble)),
    *(np.float16("inf"), np.array(0.5), np.array(2, np.int8), np.bool(True), np.str_("2"), np.bytes_(b"2"), "0.5"),
    *(np.complex64(1), 1j, np.datetime64("2020"), np.timedelta64(2), np.void(b"abcd"), np.array(None, object)),
    *(Fraction(1, 2), Fraction(2), Decimal("0.5"), Decimal("sNaN"), 10**400, -(10**400), 10**5000),
]
NUMBERS = [
    (name, key, value)
    for name, row in PUBLIC.items()
    for key, make in row.valid.items()
    if key not in {*row.skip, *FLAGS} and isinstance(value := make(), int | float)
]


@pytest.mark.parametrize(("name", "key", "value"), NUMBERS)
def test_a_number_of_any_kind_is_that_number_or_refused_in_a_sentence(name, key, value):
    """Without a warning either: beside a float16 or an int8 NumPy turns the other side of a comparison into one."""
    row = PUBLIC[name]
    same = [kind(value) for kind in KINDS if isinstance(value, float) or np.dtype(kind).kind in "iu"]
    for number in same if isinstance(value, int) else [n for n in same if isinstance(n, np.floating)]:
        row.call(**{**{k: v() for k, v in row.valid.items()}, key: number})
    for number in STRANGE:
        too_large = isinstance(number, np.floating) and float(number) > 1e30
        try:
            with np.errstate(over="ignore" if too_large else "warn", invalid="ignore" if too_large else "warn"):
                row.call(**{**{k: v() for k, v in row.valid.items()}, key: number})
        except row.errors as error:
            assert "\n" not in str(error) and not RAW.search(str(error)), f"{number!r}: {error}"


def test_small_integers_of_numpy_are_not_added_up_as_such():
    """128 is no int8, so 64 times 4 would not be 256, and 256 channels would have no remainder."""
    x, four = Tensor(np.ones((1, 256, 2, 2), np.float32)), np.int8(4)
    assert F.reshape(x, np.int8(64), np.int8(16)).shape == (64, 16)
    assert F.conv2d(x, Tensor(np.ones((8, 64, 1, 1), np.float32)), groups=four).shape == (1, 8, 2, 2)


def test_numbers_beside_a_tensor():
    x = Tensor(np.ones(2, np.float32))
    for number in (np.float16(3), np.longdouble(3), np.int8(3), np.uint64(3), 3):
        for y in (x + number, number * x, number - x, x**number):
            assert y.dtype == np.float32
    assert np.isinf((x * 10**400).data).all()


def test_a_schedule_that_no_machine_holds_is_refused():
    with pytest.raises(ValueError, match=r"multi_step's gamma 1e\+300 to the power of 2 is larger than any number"):
        optim.multi_step(0.1, [1, 2], 1e300)


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
