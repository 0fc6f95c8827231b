"""The tape (minigrad/tensor.py): tensors, graphs, the backward walk and what it checks."""

import gc
import operator
import pickle
import threading
import weakref
from copy import deepcopy

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, rule
from numpy.testing import assert_allclose, assert_array_equal
from support.strategies import normal, seeds

import minigrad.functional as F
from minigrad import Function, Tensor, from_dlpack, no_grad
from minigrad.tensor import recording, unbroadcast


def leaf(*values):
    return Tensor(np.array(values, np.float64), requires_grad=True)


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


@pytest.mark.cuda
def test_interfaces_on_the_gpu(device):
    if device == "cpu":
        pytest.skip("the interfaces of the CPU have their own tests")
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


# --- the walk ---------------------------------------------------------------------------------------------------------


def test_the_chain_rule_by_hand():
    """z = (x + y)² x at x = 2, y = 3: z = 50, ∂z/∂x = 2 (x + y) x + (x + y)² = 45, ∂z/∂y = 20."""
    x, y = leaf(2.0), leaf(3.0)
    s = x + y
    z = s * s * x
    z.backward()
    assert (z.item(), x.grad.item(), y.grad.item()) == (50.0, 45.0, 20.0)


@pytest.mark.parametrize("length", [5_000, 50_000])
def test_a_long_chain_needs_no_recursion(length):
    x, one = leaf(1.0), leaf(1.0)
    y = x
    for _ in range(length):
        y = y + one
    y.backward()
    assert (x.grad.item(), one.grad.item()) == (1.0, length)


def test_a_long_chain_that_is_dropped_without_a_backward_pass_needs_no_recursion():
    y, zero = leaf(1.0), leaf(0.0)
    for _ in range(50_000):
        y = y + zero
    del y


def test_a_tall_diamond_takes_linear_time():
    """Every step uses the value twice, so there are 2^200 paths; the walk must pass each node once."""
    x = leaf(1.0)
    y = x
    for _ in range(200):
        y = (y + y) * 0.5
    y.backward()
    assert x.grad.item() == 1.0


def test_a_node_waits_for_all_gradients_whatever_the_lengths_of_the_paths():
    x = leaf(3.0)
    u = x * x
    long = u
    for _ in range(10):
        long = long * 1.0
    (u + long * u + x).backward()  # x² + x⁴ + x
    assert x.grad.item() == 2 * 3 + 4 * 27 + 1


def test_gradients_of_two_backward_passes_add_up():
    x = leaf(3.0)
    (x * x).backward()
    first = x.grad
    (x * 2).backward()
    assert x.grad.item() == 8.0
    assert first.item() == 6.0, "an array that was handed out must not change"
    x.grad = None
    (x * 2).backward()
    assert x.grad.item() == 2.0


def test_a_leaf_is_its_own_graph():
    x = leaf(1.0, 2.0)
    dy = np.array([3.0, 4.0])
    x.backward(dy)
    dy[0] = 0.0
    assert_array_equal(x.grad, [3.0, 4.0])


def test_the_gradient_may_be_given_as_tensor_array_or_numbers():
    for dy in (Tensor(np.array([1.0, 10.0])), np.array([1, 10]), [1.0, 10.0], np.array([1.0, 10.0], np.float32)):
        x = leaf(1.0, 2.0)
        (x * 2).backward(dy)
        assert_array_equal(x.grad, [2.0, 20.0])


def test_only_leaves_that_ask_get_a_gradient():
    x, y, constant = leaf(1.0), leaf(2.0), Tensor(np.array([3.0]))
    z = x * y
    (z * constant + z.detach() * x).backward()
    assert (x.grad.item(), y.grad.item()) == (6.0 + 2.0, 3.0)
    assert constant.grad is None
    assert z.grad is None


def test_an_operation_on_constants_stays_off_the_tape():
    y = Tensor([1.0]) * Tensor([2.0])
    assert not y.requires_grad
    assert y.node is None


@pytest.mark.parametrize(
    ("run", "sentence"),
    [
        (
            lambda: (leaf(1.0, 2.0) * 2).backward(),
            r"without a gradient needs .* one value, not shape \(2,\)",
        ),
        (lambda: Tensor([1.0]).backward(), "computed from one with requires_grad=True"),
        (lambda: leaf(1.0, 2.0).backward(np.ones(3)), r"gradient of shape \(3,\) for a tensor of shape \(2,\)"),
        (lambda: leaf(1.0, 2.0).backward(1.0), r"gradient of shape \(\) for a tensor of shape \(2,\)"),
    ],
)
def test_a_backward_pass_that_makes_no_sense_is_refused(run, sentence):
    with pytest.raises(ValueError, match=sentence):
        run()


@pytest.mark.parametrize("dy", ["a", [None], np.array([1j])])
def test_a_gradient_that_is_no_array_of_real_numbers_is_refused(dy):
    with pytest.raises(TypeError, match="a Tensor holds"):
        leaf(1.0).backward(dy)


def test_a_second_backward_pass_through_a_freed_graph_is_refused_and_changes_nothing():
    x, y = leaf(2.0), leaf(5.0)
    u = x * x
    z = u + y
    z.backward()
    for again in (z, u, u * y):
        with pytest.raises(ValueError, match=r"an earlier backward\(\) has already freed"):
            again.backward()
    assert (x.grad.item(), y.grad.item()) == (4.0, 1.0)


# --- memory -----------------------------------------------------------------------------------------------------------


class Watched(np.ndarray):
    """An array that can be counted: it takes weak references and is told apart by identity."""

    __hash__ = object.__hash__  # type: ignore[assignment]


class Double(Function):
    """y = 2x, keeping an array for the backward pass that `alive` counts."""

    alive: "weakref.WeakSet[Watched]"

    def forward(self, x):
        self.kept = np.array(x).view(Watched)
        Double.alive.add(self.kept)
        return x * 2

    def backward(self, dy):
        Double.seen.append(len(Double.alive))
        return dy * 2


@pytest.fixture
def without_collector():
    """No garbage collection: only what reference counting frees is freed."""
    gc.collect()
    gc.disable()
    Double.alive, Double.seen = weakref.WeakSet(), []
    yield
    gc.enable()


def test_the_walk_frees_the_graph_as_it_goes(without_collector):
    x = leaf(1.0)
    y = x
    for _ in range(20):
        y = Double.apply(y)
    assert len(Double.alive) == 20
    y.backward()
    assert Double.seen == list(range(20, 0, -1))
    assert len(Double.alive) == 0
    assert x.grad.item() == 2.0**20


def test_a_graph_without_a_backward_pass_holds_no_cycle(without_collector):
    x = leaf(1.0)
    y = Double.apply(Double.apply(x)) + x
    nodes = weakref.WeakSet([y.node])
    tensors = weakref.WeakSet([y])
    del y
    assert (len(Double.alive), len(nodes), len(tensors)) == (0, 0, 0)


def test_values_that_no_backward_pass_needs_are_freed_in_the_forward_pass(without_collector):
    x = leaf(1.0)
    u = x + 1.0
    reference = weakref.ref(u)
    y = u + 1.0  # addition keeps neither input
    del u
    assert reference() is None
    y.backward()
    assert x.grad.item() == 1.0


def test_a_network_leaves_no_cycles_behind(without_collector):
    from minigrad import nn

    net = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4, 3)
    )
    for _ in range(2):
        loss = F.cross_entropy(net(Tensor(normal(0, 3, 2, 4, 5).astype(np.float32))), [0, 1, 2])
        loss.backward()
        net.zero_grad()
        del loss
        found = gc.collect()  # the first step also makes what is made once: thread pool, handles of libraries
    assert found == 0


# --- memory that is shared and memory that is not ---------------------------------------------------------------------


def test_gradients_of_leaves_share_memory_with_nothing():
    a, b, c = leaf(1.0, 2.0), leaf(3.0, 4.0), leaf(5.0, 6.0)
    dy = np.ones(2)
    (a + b - c.reshape(2, 1).reshape(2)).backward(dy)
    arrays = [a.grad, b.grad, c.grad, dy, a.data, b.data, c.data]
    for i, first in enumerate(arrays):
        for second in arrays[i + 1 :]:
            assert not np.shares_memory(first, second)


def test_leaves_that_get_one_and_the_same_gradient_get_an_array_each():
    a, b, c = leaf(1.0), leaf(2.0), leaf(3.0)
    (c + (a + b)).backward()  # dy goes to c, and through the inner sum to a and b
    assert not any(np.shares_memory(s.grad, t.grad) for s, t in ((a, b), (b, c), (a, c)))
    d, e = leaf(1.0), leaf(2.0)
    operation(lambda dy: (2 * dy,) * 2).apply(d, e).backward()  # one new array for both
    assert (d.grad.item(), e.grad.item()) == (2.0, 2.0)
    assert not np.shares_memory(d.grad, e.grad)


def test_only_operations_that_broadcast_get_their_gradients_summed():
    a, b = (Tensor(normal(i, 2, 3), requires_grad=True) for i in range(2))
    with pytest.raises(ValueError, match=r"gradient of shape \(1, 2, 3\) .* for input 1, which has shape \(2, 3\)"):
        operation(lambda dy: (dy, dy[None])).apply(a, b).backward(np.ones((2, 3)))


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: x.sum(),
        lambda x: x.mean(axis=0).sum(),
        lambda x: x.reshape(6).sum(axis=0),
        lambda x: x.T[1].sum(),
        lambda x: F.concat([x, x]).sum(),
        lambda x: F.pad(x, [(1, 1), (0, 2)]).sum(),
        lambda x: x[:, :2].sum(),
        lambda x: x + x,
        lambda x: x,
    ],
)
def test_the_gradient_of_a_leaf_can_be_written_to(fn):
    x = Tensor(normal(0, 2, 3), requires_grad=True)
    y = fn(x)
    y.backward(np.ones(y.shape))
    assert x.grad.flags.writeable
    assert x.grad.base is None
    assert x.grad.strides == x.data.strides


def test_changing_an_index_or_label_array_after_the_forward_pass_does_no_harm():
    x = Tensor(normal(0, 3, 2), requires_grad=True)
    index, labels = np.array([0, 2]), np.array([0, 1])
    loss = F.cross_entropy(x[index], labels)
    index[:], labels[:] = 1, 0
    loss.backward()
    expected = Tensor(x.data, requires_grad=True)
    F.cross_entropy(expected[[0, 2]], [0, 1]).backward()
    assert_array_equal(x.grad, expected.grad)


# --- what the engine checks -------------------------------------------------------------------------------------------


def operation(gradient, broadcasts=False):
    """An operation y = a + b whose backward pass returns what `gradient(dy)` says."""
    attributes = {
        "broadcasts": broadcasts,
        "forward": lambda self, a, b: a + b,
        "backward": lambda self, dy: gradient(dy),
    }
    return type("Faulty", (Function,), attributes)


@pytest.mark.parametrize("broadcasts", [False, True])
@pytest.mark.parametrize(
    ("gradient", "sentence"),
    [
        (lambda dy: (dy, dy[0]), r"gradient of shape \(3,\) .* for input 1, which has shape \(2, 3\)"),
        (lambda dy: (dy.T, dy), r"gradient of shape \(3, 2\) .* for input 0, which has shape \(2, 3\)"),
        (lambda dy: (dy, dy.sum()), r"gradient of shape \(\) .* for input 1, which has shape \(2, 3\)"),
        (lambda dy: (dy, dy[None, None, :1]), r"for input 1, which has shape \(2, 3\)"),
        (lambda dy: (dy.astype(np.float32), dy), r"dtype float32 for input 0, .* dtype float64"),
        (lambda dy: (dy, None), "None for input 1, which wants a gradient"),
        (lambda dy: dy, "1 gradients, the operation has 2 inputs"),
        (lambda dy: (dy, dy, dy), "3 gradients, the operation has 2 inputs"),
    ],
)
def test_a_wrong_gradient_is_caught_and_the_operation_named(gradient, sentence, broadcasts):
    a, b = (Tensor(normal(i, 2, 3), requires_grad=True) for i in range(2))
    y = operation(gradient, broadcasts).apply(a, b)
    with pytest.raises(ValueError, match="Faulty.backward returned .*" + sentence):
        y.backward(np.ones((2, 3)))


def test_a_gradient_that_nobody_wants_is_not_looked_at():
    a, b = Tensor(normal(0, 2, 3), requires_grad=True), Tensor(normal(1, 2, 3))
    operation(lambda dy: (dy, None)).apply(a, b).backward(np.ones((2, 3)))
    assert_array_equal(a.grad, np.ones((2, 3)))


@pytest.mark.parametrize(
    ("value", "kind"), [(1.0, "float"), (None, "NoneType"), (Tensor(1.0), "Tensor"), ((np.ones(2),), "tuple")]
)
def test_a_forward_pass_that_returns_no_array_is_named(value, kind):
    faulty = type("Faulty", (Function,), {"forward": lambda self, x: value})
    with pytest.raises(TypeError, match=f"Faulty.forward must return an array, it returned a {kind}"):
        faulty.apply(Tensor(1.0))


def test_an_operation_without_a_method_or_a_tensor_is_named():
    with pytest.raises(NotImplementedError, match=r"Half defines no forward\(\)"):
        type("Half", (Function,), {}).apply(Tensor(1.0))
    half = type("Half", (Function,), {"forward": lambda self, x: 0.5 * x})
    with pytest.raises(NotImplementedError, match=r"Half defines no backward\(\)"):
        half.apply(Tensor(1.0, requires_grad=True)).backward()
    for arguments in ((), (None,)):
        with pytest.raises(TypeError, match="Half needs at least one tensor"):
            half.apply(*arguments)


def test_gradients_may_be_a_list():
    a, b = (Tensor(normal(i, 2, 3), requires_grad=True) for i in range(2))
    operation(lambda dy: [dy, 2 * dy]).apply(a, b).backward(np.ones((2, 3)))
    assert_array_equal(b.grad, 2 * a.grad)


def test_what_is_no_tensor_is_refused_by_name():
    with pytest.raises(TypeError, match=r"ReLU takes tensors, got ndarray: wrap it in Tensor\(...\)"):
        F.relu(np.ones(3))
    with pytest.raises(TypeError, match="conv2d takes tensors, got ndarray for its weight"):
        F.conv2d(Tensor(np.ones((1, 1, 3, 3))), np.ones((1, 1, 2, 2)))


def test_dtypes_do_not_mix_by_accident():
    with pytest.raises(TypeError, match=r"Add got tensors of dtypes float64 and float32: convert one with .to\(\)"):
        leaf(1.0) + Tensor([1.0])
    with pytest.raises(TypeError, match="Multiply computes with floating-point tensors, got int64"):
        Tensor([1]) * Tensor([2])


@given(st.data())
def test_unbroadcast_is_the_transpose_of_broadcasting(data):
    """<broadcast(x), y> = <x, unbroadcast(y)> for every x and y."""
    shape = data.draw(st.lists(st.integers(1, 3), max_size=3).map(tuple), label="shape")
    lead = data.draw(st.lists(st.integers(1, 3), max_size=2).map(tuple), label="axes in front")
    full = lead + tuple(data.draw(st.integers(1, 3)) if n == 1 else n for n in shape)
    x, y = normal(0, *shape), normal(1, *full)
    back = unbroadcast(y, shape)
    assert back.shape == shape
    assert np.vdot(np.broadcast_to(x, full), y) == pytest.approx(np.vdot(x, back))


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


# --- random graphs against dual numbers -------------------------------------------------------------------------------


class Dual:
    """A value and its derivative in one direction: forward-mode differentiation, with rules of its own."""

    def __init__(self, value, slope):
        self.value, self.slope = value, slope

    def __add__(self, other):
        return Dual(self.value + other.value, self.slope + other.slope)

    def __sub__(self, other):
        return Dual(self.value - other.value, self.slope - other.slope)

    def __mul__(self, other):
        return Dual(self.value * other.value, self.slope * other.value + self.value * other.slope)

    def __truediv__(self, other):
        quotient = self.value / other.value
        return Dual(quotient, (self.slope - quotient * other.slope) / other.value)

    def __neg__(self):
        return Dual(-self.value, -self.slope)

    def exp(self):
        return Dual(np.exp(self.value), np.exp(self.value) * self.slope)

    def tanh(self):
        return Dual(np.tanh(self.value), self.slope / np.cosh(self.value) ** 2)

    def sigmoid(self):
        value = 1 / (1 + np.exp(-self.value))
        return Dual(value, value * (1 - value) * self.slope)

    def mean(self, axis, keepdims):
        return Dual(self.value.mean(axis, keepdims=keepdims), self.slope.mean(axis, keepdims=keepdims))

    def transpose(self, *axes):
        return Dual(self.value.transpose(*axes), self.slope.transpose(*axes))


SHAPES = [(), (3,), (2, 1), (2, 3)]


class Graphs(RuleBasedStateMachine):
    """Builds a graph of random operations, in minigrad and in dual numbers at once.

    Every leaf moves in a random direction; then d(Σ v y)/dt = Σ over leaves <gradient, direction>. Values stay small:
    products and exponentials are squashed by tanh.
    """

    values = Bundle("values")

    @initialize()
    def start(self):
        self.leaves = []

    @rule(target=values, shape=st.sampled_from(SHAPES), seed=seeds)
    def leaf(self, shape, seed):
        tensor = Tensor(normal(seed, *shape), requires_grad=True)
        direction = normal(seed + 1, *shape)
        self.leaves.append((tensor, direction))
        return tensor, Dual(tensor.data.copy(), direction)

    @rule(target=values, shape=st.sampled_from(SHAPES), seed=seeds)
    def constant(self, shape, seed):
        value = normal(seed, *shape)
        return Tensor(value), Dual(value, np.zeros(shape))

    @rule(target=values, a=values, b=values, name=st.sampled_from(["add", "sub", "mul"]))
    def arithmetic(self, a, b, name):
        combine = getattr(operator, name)
        return combine(a[0], b[0]).tanh(), combine(a[1], b[1]).tanh()

    @rule(target=values, a=values, b=values)
    def divide(self, a, b):
        """By sigmoid(b) + 1, which is not 0."""
        one = Tensor(np.ones(())), Dual(np.ones(()), np.zeros(()))
        return a[0] / (b[0].sigmoid() + one[0]), a[1] / (b[1].sigmoid() + one[1])

    @rule(target=values, a=values)
    def exponential(self, a):
        return (-a[0].tanh()).exp(), (-a[1].tanh()).exp()

    @rule(target=values, a=values)
    def average(self, a):
        axis = 0 if a[0].ndim else None
        return a[0].mean(axis, True) if a[0].ndim else a[0].mean(), a[1].mean(axis, True)

    @rule(target=values, a=values, b=values)
    def products_of_transposes(self, a, b):
        return (a[0].transpose().transpose() * b[0]).tanh(), (a[1].transpose().transpose() * b[1]).tanh()

    @rule(y=values, seed=seeds)
    def differentiate(self, y, seed):
        tensor, dual = y
        assert_allclose(tensor.data, dual.value, rtol=1e-12, atol=1e-14)
        v = normal(seed, *tensor.shape)
        for t, _ in self.leaves:
            t.grad = None
        if tensor.requires_grad:
            try:
                tensor.backward(v)
            except ValueError as error:  # a part of this graph was walked before
                assert "already freed" in str(error)
                return
        total = sum(np.vdot(t.grad, d) for t, d in self.leaves if t.grad is not None)
        assert total == pytest.approx(np.vdot(v, dual.slope), rel=1e-9, abs=1e-9)


Graphs.TestCase.settings = settings(max_examples=40, stateful_step_count=20)
TestRandomGraphs = Graphs.TestCase


def test_bfloat16_becomes_float32_when_asked():
    """NumPy counts bfloat16 among the kinds of data it does not know, so it is easily passed by."""
    half = np.array([1.5, -2.0]).astype(ml_dtypes.bfloat16)
    tensor = Tensor(half, dtype="float32")
    assert tensor.dtype == np.float32
    assert tensor.data.tolist() == [1.5, -2.0]
