"""Every public operation in every situation: the table in operations.py, checked row by row."""

import ml_dtypes
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from support.operations import OPERATIONS
from support.strategies import normal

import minigrad.functional as F
from minigrad import Tensor, gradcheck, tensor
from minigrad.backend import to_numpy
from minigrad.ops import basic
from minigrad.ops.basic import Multiply
from minigrad.ops.operators import TWO_SIDED

EVERY = list(OPERATIONS)
DIFFERENTIABLE = [name for name in EVERY if OPERATIONS[name].gradient]


def attached(name):
    """Whether the attribute `name` of Tensor is an operation: defined in minigrad/ops."""
    value = getattr(Tensor, name)
    return str(getattr(getattr(value, "fget", value), "__module__", None)).startswith("minigrad.ops")


def test_every_public_operation_has_a_record():
    methods = {name for name in dir(Tensor) if attached(name)} - {f"__i{name}__" for name in TWO_SIDED}
    assert set(EVERY) == set(F.__all__) | methods
    for name in methods & set(F.__all__):
        assert getattr(Tensor, name) is getattr(F, name), "a method and a function of one name are one function"


def run(operation, arrays, device="cpu", floating=False):
    """Call the operation with tensors that hold these very arrays; return the output and the gradients."""
    leaves = []
    for array in arrays:
        floating = floating or array.dtype.kind == "f"
        leaves.append(Tensor(array, requires_grad=floating and operation.gradient, device=device))
        if device == "cpu":
            leaves[-1].data = array  # not the copy that Tensor makes
    y = operation.call(*leaves)
    if operation.gradient:
        y.backward(normal(99, *y.shape))
    return y, [None if t.grad is None else to_numpy(t.grad) for t in leaves]


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradient(name):
    operation = OPERATIONS[name]
    assert gradcheck(operation.call, [Tensor(a, requires_grad=True) for a in operation.arrays()], rtol=2e-5)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_float32_and_float64_are_taken_and_kept(device, name, dtype):
    operation = OPERATIONS[name]
    y, gradients = run(operation, [a.astype(dtype) for a in operation.arrays()], device)
    assert isinstance(y, Tensor)
    assert y.device == device
    if operation.same_dtype:
        assert y.dtype == dtype
    assert [g.dtype for g in gradients if g is not None] == [dtype] * (len(gradients) if operation.gradient else 0)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.bool_])
def test_integers_and_booleans_are_taken_or_refused(name, dtype):
    operation = OPERATIONS[name]
    arrays = [(np.abs(a) + 1).astype(dtype) for a in operation.arrays()]
    if operation.integers:
        y = operation.call(*(Tensor(a) for a in arrays))
        assert not y.requires_grad
        assert y.dtype == dtype or not operation.same_dtype
    else:
        with pytest.raises(TypeError, match=r"floating-point|dtypes"):
            operation.call(*(Tensor(a) for a in arrays))


@pytest.mark.parametrize("name", [n for n in DIFFERENTIABLE if len(OPERATIONS[n].arrays()) > 1])
def test_dtypes_do_not_mix(name):
    operation = OPERATIONS[name]
    arrays = operation.arrays()
    arrays[-1] = arrays[-1].astype(np.float32)
    with pytest.raises(TypeError, match=r"got tensors of dtypes float64 and float32: convert one with .to\(\)"):
        operation.call(*(Tensor(a) for a in arrays))


def strided(array):
    """The same values, but every other element of a larger array along the last axis."""
    if not array.ndim:
        return array
    larger = np.full((*array.shape[:-1], 2 * array.shape[-1]), np.nan, array.dtype)
    larger[..., ::2] = array
    return larger[..., ::2]


def turned(array):
    """The same values, read backwards along every axis."""
    reverse = (slice(None, None, -1),) * array.ndim
    return array[reverse].copy()[reverse]


def read_only(array):
    copy = array.copy()
    copy.flags.writeable = False
    return copy


def repeated(array):
    """One slice in the place of all: an array with stride 0."""
    return np.broadcast_to(array[:1], array.shape)


FORMS = {
    "strided": strided,
    "column-major": np.asfortranarray,
    "negative strides": turned,
    "read-only": read_only,
    "broadcast": repeated,
}


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("form", FORMS)
def test_any_memory_layout_works_is_not_changed_and_not_shared(name, form):
    operation = OPERATIONS[name]
    views = [FORMS[form](a) for a in operation.arrays()]
    copies = [np.ascontiguousarray(v) for v in views]
    expected, expected_gradients = run(operation, copies)
    y, gradients = run(operation, views)
    assert_allclose(y.numpy(), expected.numpy(), rtol=1e-13, atol=1e-14)
    for actual, wanted in zip(gradients, expected_gradients, strict=True):
        if wanted is not None:
            assert_allclose(actual, wanted, rtol=1e-12, atol=1e-13)
    for view, original in zip(views, [FORMS[form](a) for a in operation.arrays()], strict=True):
        assert_array_equal(view, original)
        assert operation.view or not np.shares_memory(y.data, view)
        assert all(g is None or not np.shares_memory(g, view) for g in gradients)


@pytest.mark.parametrize(
    ("name", "shapes"), [(name, shapes) for name in EVERY for shapes in OPERATIONS[name].empty], ids=str
)
def test_inputs_of_size_zero_give_a_result_or_a_sentence(name, shapes):
    operation, expected = OPERATIONS[name], OPERATIONS[name].empty[shapes]
    arrays = [np.ones(shape) for shape in shapes]
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected):
            run(operation, arrays)
        return
    y, gradients = run(operation, arrays)
    assert y.shape == expected
    assert [g.shape for g in gradients if g is not None] == (list(shapes) if operation.gradient else [])


@pytest.mark.parametrize("name", [name for name in EVERY if OPERATIONS[name].same_dtype])
def test_bfloat16_is_taken_and_kept(device, name, monkeypatch):
    """On the CPU too, which refuses it otherwise: the formulas must not turn into float32 on the way."""
    for module in (basic, tensor):
        monkeypatch.setattr(module, "float_dtype", lambda name, device: np.dtype(name))
    half, operation = np.dtype(ml_dtypes.bfloat16), OPERATIONS[name]
    arrays = operation.arrays()
    dtypes = [half] + [np.dtype(np.float32) if name.startswith("batch_norm") else half] * (len(arrays) - 1)
    rounded = [a.astype(dtype) for a, dtype in zip(arrays, dtypes, strict=True)]
    y, gradients = run(operation, rounded, device, True)
    assert y.dtype == (np.float32 if name == "cross_entropy" else half)
    assert not operation.gradient or [g.dtype for g in gradients] == dtypes
    exact, exact_gradients = run(operation, [a.astype(np.float64) for a in rounded])
    for mine, book in zip([y.numpy(), *gradients], [exact.numpy(), *exact_gradients], strict=True):
        if book is not None:
            assert abs(mine.astype(np.float64) - book).max() <= 0.02 * abs(book).max()


class Foreign:
    """Another library's tensor: it has a shape and a dtype of its own, and NumPy can read it."""

    def __init__(self, array):
        self.array, self.shape, self.ndim, self.size, self.dtype = array, array.shape, array.ndim, array.size, "float64"

    def __array__(self, dtype=None, copy=None):
        return self.array


def numpy_array(array):
    return array


NO_TENSORS = {
    "none": lambda array: None,
    "number": lambda array: 3,
    "text": lambda array: "text",
    "list": np.ndarray.tolist,
    "array": numpy_array,
    "foreign": Foreign,
    "function": lambda array: numpy_array,
}


@pytest.mark.parametrize("name", [n for n in EVERY if n in F.__all__ or OPERATIONS[n].mixes])
@pytest.mark.parametrize("kind", NO_TENSORS)
def test_what_is_no_tensor_is_refused_in_one_sentence(name, kind):
    operation = OPERATIONS[name]
    for position, array in enumerate(operation.arrays()):
        arguments = [Tensor(a) for a in operation.arrays()]
        arguments[position] = NO_TENSORS[kind](array)
        if arguments[position] is None and operation.optional == position:
            continue
        try:
            operation.call(*arguments)
        except (TypeError, ValueError) as error:
            assert "\n" not in str(error)
            assert "NoneType' object" not in str(error)
        else:
            assert operation.mixes, f"{name} takes {kind} for its input {position}"


@pytest.mark.parametrize("method", ["to", "__getitem__", "__neg__", "relu", "sum"])
def test_methods_refuse_what_is_no_tensor(method):
    arguments = [0] if method == "__getitem__" else []
    with pytest.raises(TypeError, match=r"takes tensors, got list.*: wrap it in Tensor\(...\)"):
        getattr(Tensor, method)([1.0, 2.0], *arguments)


@pytest.mark.parametrize("name", [n for n in EVERY if OPERATIONS[n].mixes])
def test_an_array_beside_a_tensor_takes_its_dtype(name):
    a, b = OPERATIONS[name].arrays()
    expected = OPERATIONS[name].call(Tensor(a, dtype="float32"), Tensor(b, dtype="float32"))
    for pair in ((Tensor(a, dtype="float32"), b), (a, Tensor(b, dtype="float32"))):
        y = OPERATIONS[name].call(*pair)
        assert isinstance(y, Tensor)
        assert y.dtype == expected.dtype
        assert_array_equal(y.numpy(), expected.numpy())


@pytest.mark.parametrize("name", EVERY)
def test_arrays_in_foreign_byte_order_are_converted(name):
    arrays = OPERATIONS[name].arrays()
    swapped = [Tensor(a.astype(a.dtype.newbyteorder())) for a in arrays]
    assert all(t.dtype == np.float64 for t in swapped)
    assert_array_equal(
        OPERATIONS[name].call(*swapped).numpy(), OPERATIONS[name].call(*(Tensor(a) for a in arrays)).numpy()
    )


def test_every_record_says_what_happens_with_size_zero_and_bad_inputs():
    assert [name for name in EVERY if not OPERATIONS[name].empty or not OPERATIONS[name].bad] == []


@pytest.mark.parametrize("name", EVERY)
def test_float32_stays_near_float64(device, name):
    operation = OPERATIONS[name]
    rounded = [a.astype(np.float32) for a in operation.arrays()]
    single, single_gradients = run(operation, rounded, device)
    double, double_gradients = run(operation, [a.astype(np.float64) for a in rounded], device)
    pairs = zip([single.numpy(), *single_gradients], [double.numpy(), *double_gradients], strict=True)
    for actual, exact in pairs:
        if actual is not None and exact.dtype.kind == "f":
            assert abs(actual - exact).max() <= operation.error * np.finfo(np.float32).eps * abs(exact).max()


def test_a_gradient_that_is_wrong_only_in_float32_would_be_noticed(monkeypatch):
    """The gradient check computes in float64, so it cannot see such a mistake; the comparison above does."""
    right = Multiply.backward

    def backward(self, dy):
        da, db = right(self, dy)
        return None if da is None else da * (1 + 1e-5 * (da.dtype == np.float32)), db

    monkeypatch.setattr(Multiply, "backward", backward)
    test_gradient("__mul__")
    with pytest.raises(AssertionError):
        test_float32_stays_near_float64("cpu", "__mul__")


BAD = [(name, i) for name in EVERY for i in range(len(OPERATIONS[name].bad))]


@pytest.mark.parametrize(("name", "number"), BAD)
def test_bad_input_gets_one_sentence_that_names_the_numbers(name, number):
    call, error, sentence = OPERATIONS[name].bad[number]
    with pytest.raises(error, match=sentence) as raised:
        call()
    assert "\n" not in str(raised.value)
