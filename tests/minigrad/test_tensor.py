"""Tensors (minigrad/tensor.py): what they are made from, what they share, `no_grad`."""

import pickle
import threading
from copy import deepcopy

import ml_dtypes
import numpy as np
import pytest
from numpy.testing import assert_array_equal
from support.tape import leaf

from minigrad import Tensor, from_dlpack, no_grad
from minigrad.tensor import recording

# --- making tensors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "dtype"),
    [
        (1.5, np.float32),
        ([1.0, 2.0], np.float32),
        ([np.float64(1.0), 2.0], np.float32),
        (np.float64(1.5), np.float64),
        (np.zeros(2), np.float64),
        (np.zeros(2, np.float32), np.float32),
        ([1, 2], np.int64),
        (True, np.bool_),
        ([[True, False]], np.bool_),
        (np.zeros(2, np.uint8), np.uint8),
        ([], np.float32),
    ],
)
def test_python_numbers_are_float32_and_arrays_keep_their_dtype(data, dtype):
    assert Tensor(data).dtype == dtype


def test_a_dtype_is_reached_without_a_detour_over_float32():
    assert Tensor(0.1, dtype="float64").item() == 0.1
    assert Tensor([0.1], dtype=np.float64).data[0] == 0.1
    assert (Tensor(np.zeros(1)) + 0.1).item() == 0.1
    assert Tensor(np.array([1, 2], np.float16), dtype="float32").dtype == np.float32
    assert Tensor([1.7], dtype="int64").data.tolist() == [1]


def test_a_tensor_copies_what_it_is_made_from(device):
    x = np.array([1.0, 2.0])
    t = Tensor(x, device=device)
    u = Tensor(t)
    x[0] = 5.0
    u.data[1] = 7.0
    assert_array_equal(t.numpy(), [1.0, 2.0])


def test_the_attributes_and_methods_of_the_contract(device):
    t = Tensor(np.arange(6.0).reshape(2, 3), requires_grad=True, device=device)
    assert (t.shape, t.ndim, t.dtype, t.device, t.requires_grad) == ((2, 3), 2, np.float64, device, True)
    assert (t.size, len(t), t.grad) == (6, 2, None)
    assert Tensor(2.5, device=device).item() == 2.5
    assert float(Tensor([[2.5]], device=device)) == 2.5
    assert bool(Tensor([1.0])) is True
    assert isinstance(t.numpy(), np.ndarray)
    t.sum().backward()
    assert (type(t.grad), t.grad.shape, t.grad.dtype) == (type(t.data), t.shape, t.dtype)
    detached = t.detach()
    assert not detached.requires_grad
    assert detached.data is t.data
    assert "requires_grad=True" in repr(t)
    assert "float64" in repr(t)


def test_numpy_reads_a_tensor_on_the_cpu_without_a_copy():
    t = Tensor(np.array([1.0, 2.0]))
    assert np.shares_memory(np.asarray(t), t.data)
    assert np.asarray(t, dtype=np.float32).dtype == np.float32
    assert not np.shares_memory(np.array(t), t.data)
    assert_array_equal(np.stack([t, t]), [[1, 2], [1, 2]])
    assert_array_equal(Tensor([t, t]).data, [[1, 2], [1, 2]])


def test_dlpack_both_ways():
    t = Tensor(np.array([1.0, 2.0]))
    array = np.from_dlpack(t)
    array[0] = 5.0
    assert_array_equal(t.data, [5.0, 2.0])
    back = from_dlpack(array)
    back.data[1] = 6.0
    assert_array_equal(t.data, [5.0, 6.0])
    assert t.__dlpack_device__() == (1, 0)


def test_there_is_no_cuda_interface_on_the_cpu():
    assert not hasattr(Tensor(1.0), "__cuda_array_interface__")


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=pytest.mark.cuda)], indirect=True)
def test_interfaces_on_the_gpu(device):
    t = Tensor(np.array([1.0, 2.0]), device=device)
    assert t.__cuda_array_interface__["shape"] == (2,)
    assert from_dlpack(t).device == device
    with pytest.raises(TypeError, match=r"NumPy cannot read a tensor on cuda"):
        np.asarray(t)


@pytest.mark.parametrize(
    ("make", "error", "sentence"),
    [
        (lambda: Tensor("abc"), TypeError, "holds float32, float64, integers or booleans, not <U3"),
        (lambda: Tensor(None), TypeError, "not object"),
        (lambda: Tensor(1j), TypeError, "not complex128"),
        (lambda: Tensor([1.0], dtype="complex64"), TypeError, "not complex64"),
        (lambda: Tensor(10**30), TypeError, "not object"),
        (lambda: Tensor(np.zeros(2, np.float16)), TypeError, "not float16"),
        (lambda: Tensor(np.array(["2020"], "M8[Y]")), TypeError, "not datetime64"),
        (lambda: Tensor(i for i in range(3)), TypeError, "not object"),
        (lambda: Tensor([[1, 2], [3]]), ValueError, "needs a rectangular array"),
        (lambda: Tensor([1], requires_grad=True), TypeError, "only floating-point tensors .* this one is int64"),
        (lambda: Tensor([1.0], dtype="float16"), ValueError, "dtype float16 .* use float32, float64"),
        (lambda: Tensor([1.0], dtype="bfloat16"), ValueError, "bfloat16 is computed on CUDA devices only"),
        (lambda: Tensor([1.0], device="gpu"), ValueError, "unknown device 'gpu'"),
        (lambda: Tensor([1.0], device="cuda:-1"), ValueError, "unknown device 'cuda:-1'"),
        (lambda: Tensor([1.0, 2.0]).item(), ValueError, r"item\(\) needs .* shape \(2,\)"),
        (lambda: float(Tensor([1.0, 2.0])), ValueError, r"shape \(2,\)"),
        (lambda: bool(Tensor([1.0, 2.0])), ValueError, r"truth value .* shape \(2,\)"),
        (lambda: len(Tensor(1.0)), TypeError, r"shape \(\) has no length"),
        (lambda: list(Tensor(1.0)), TypeError, r"shape \(\) has no length"),
    ],
)
def test_bad_data_gets_one_sentence(make, error, sentence):
    with pytest.raises(error, match=sentence) as raised:
        make()
    assert "\n" not in str(raised.value)


def test_tensors_and_modules_can_be_copied_and_pickled():
    t = Tensor(np.array([1.0, 2.0]), requires_grad=True)
    for copy in (deepcopy(t), pickle.loads(pickle.dumps(t))):
        assert copy.requires_grad
        assert_array_equal(copy.data, t.data)
        assert not np.shares_memory(copy.data, t.data)


def test_bfloat16_becomes_float32_when_asked():
    """NumPy counts bfloat16 among the kinds of data it does not know, so it is easily passed by."""
    half = np.array([1.5, -2.0]).astype(ml_dtypes.bfloat16)
    tensor = Tensor(half, dtype="float32")
    assert tensor.dtype == np.float32
    assert tensor.data.tolist() == [1.5, -2.0]


# --- no_grad ----------------------------------------------------------------------------------------------------------


def test_no_grad_as_context_manager_and_as_decorator():
    x = leaf(1.0)
    with no_grad():
        assert not (x * 2).requires_grad
        with no_grad():
            assert not recording()
        assert not recording()
    assert (x * 2).requires_grad

    @no_grad()
    def double(t):
        """Twice t."""
        return t * 2

    assert not double(x).requires_grad
    assert not double(x).requires_grad
    assert double.__doc__ == "Twice t."
    assert recording()


def test_no_grad_ends_with_an_exception():
    with pytest.raises(KeyError), no_grad():
        raise KeyError
    assert recording()


def test_no_grad_holds_in_its_own_thread_only():
    x, results = leaf(1.0), {}
    inside, done = threading.Event(), threading.Event()

    def evaluate():
        with no_grad():
            inside.set()
            done.wait(10)
            results["evaluating"] = (x * 2).requires_grad

    thread = threading.Thread(target=evaluate)
    thread.start()
    assert inside.wait(10)
    results["training"] = (x * 2).requires_grad
    done.set()
    thread.join(10)
    assert results == {"training": True, "evaluating": False}


def test_threads_may_share_one_no_grad_object():
    """A decorator is one object. Here the main thread enters it first and leaves it first."""
    first, second, done = threading.Event(), threading.Event(), threading.Event()
    results = {}

    @no_grad()
    def forward(entered, leave):
        entered.set()
        assert leave.wait(10)

    def evaluate():
        with no_grad():
            assert first.wait(10)
            forward(second, done)
            results["evaluating"] = recording()

    thread = threading.Thread(target=evaluate)
    thread.start()
    forward(first, second)
    results["training"] = recording()
    done.set()
    thread.join(10)
    assert results == {"training": True, "evaluating": False}


def test_threads_can_each_walk_their_own_graph():
    results = [None] * 4

    def work(i):
        x = leaf(float(i))
        y = x
        for _ in range(200):
            y = y * 1.0 + x
        y.backward()
        results[i] = x.grad.item()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert results == [201.0] * 4
