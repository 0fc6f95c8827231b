"""A training step as a CUDA graph, on a stand-in for CUDA; and how cuBLAS is asked for a product."""

from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
from support import host_gpu
from support.cuda_cases import (
    BF16,
    F32,
)

import minigrad
from minigrad import optim
from minigrad.fast.cuda import cublas
from minigrad.fast.cuda.graph import CAPTURE, EAGER, REPLAY, CudaGraph
from resnext.model import cifar
from train.run import loop as training


def test_a_training_step_is_the_same_through_a_graph():
    """train.cifar hands a graph arrays instead of numbers; here the graph is a plain call."""
    results = []
    for through_graph in (False, True):
        minigrad.manual_seed(0)
        network = cifar(11, cardinality=2, width=4)
        run = SimpleNamespace(
            config=SimpleNamespace(device="cpu", recipe=SimpleNamespace(label_smoothing=0.1, average=0.0)),
            model=network,
            optimizer=optim.SGD(network.parameters(), 1.0, momentum=0.9),
            ranks=SimpleNamespace(size=1),
            averaged={},
            steps_done=lambda: 0,
            cuda_graph=None,
        )
        if through_graph:
            run.cuda_graph = lambda *arrays, run=run: training.update_from(run, *arrays)
        rng = np.random.default_rng(16)
        batches = [(rng.standard_normal((4, 3, 8, 8)).astype(F32), rng.integers(0, 10, 4)) for _ in range(2)]
        steps = [
            training.outcome(*training.train_step(run, *batch, lr), batch[1])
            for batch, lr in zip(batches, (0.1, 0.05), strict=True)
        ]
        results.append((steps, [p.numpy().tobytes() for p in network.parameters()]))
    assert results[0] == results[1]


def test_sums_of_bfloat16_have_float32_digits():
    """In bfloat16 256 + 1 is 256: a running sum of ones would stop there."""
    ones = np.ones((4, 1000), BF16)
    assert (minigrad.backend.total(ones, 1).astype(float) == 1000).all()
    assert minigrad.backend.total(ones, (0, 1), keepdims=True).shape == (1, 1)
    assert minigrad.tensor.unbroadcast(ones, (1000,)).dtype == BF16


def test_cublas_is_asked_for_row_major_products():
    """The translation to column-major, checked on memory with gaps: (A or Aᵀ) times (B or Bᵀ), a batch of three."""
    rng = np.random.default_rng(11)
    M, N, K = 3, 4, 5
    for flip_a in (False, True):
        for flip_b in (False, True):
            a, b = (
                rng.standard_normal((3, *((K, M) if flip_a else (M, K)))),
                rng.standard_normal((3, *((N, K) if flip_b else (K, N)))),
            )
            wide = [
                np.full((3, m.shape[1], m.shape[2] + pad), np.nan, F32)
                for m, pad in ((a, 2), (b, 1), (np.empty((3, M, N)), 3))
            ]
            wide[0][:, :, : a.shape[2]], wide[1][:, :, : b.shape[2]] = a, b
            start = wide[2][:, :, :N] = rng.standard_normal((3, M, N))
            matrices = [
                cublas.Matrix(m.ctypes.data, "float32", m.shape[2], m[0].size, flip)
                for m, flip in zip(wide, (flip_a, flip_b, False), strict=True)
            ]
            host_gpu.gemm_strided_batched(*cublas.product_arguments(M, N, K, *matrices, 3, True))
            expected = start + (a.swapaxes(1, 2) if flip_a else a) @ (b.swapaxes(1, 2) if flip_b else b)
            np.testing.assert_allclose(wide[2][:, :, :N], expected, rtol=1e-5, atol=1e-5)
            assert np.isnan(wide[2][:, :, N:]).all(), "nothing is written between the rows"


class FakeCuda:
    """The few parts of CuPy that Graph touches, on NumPy arrays: a captured step runs when its graph is launched."""

    def __init__(self):
        self.log = []
        self.recording = None
        self.cuda = SimpleNamespace(
            Stream=lambda non_blocking: self.Stream(self),
            MemoryPool=lambda allocate: SimpleNamespace(malloc=allocate),
            MemoryPointer=lambda memory, offset: memory,
            Memory=bytearray,
            using_allocator=self.using,
            get_current_stream=lambda: self.Stream(self),
        )
        self.array, self.asarray = np.array, np.asarray
        self.allocator = None

    @contextmanager
    def using(self, allocator):
        self.allocator, before = allocator, self.allocator
        yield
        self.allocator = before

    class Stream:
        def __init__(self, owner):
            self.owner = owner

        def __enter__(self):
            return self

        def __exit__(self, *error):
            return False

        def record(self):
            return "event"

        def wait_event(self, event):
            self.owner.log.append("wait")

        def begin_capture(self):
            self.owner.recording = []

        def end_capture(self):
            recorded, self.owner.recording = self.owner.recording, None
            return SimpleNamespace(launch=lambda stream: [work() for work in recorded])


def test_a_graph_runs_eagerly_then_captures_then_replays(monkeypatch):
    fake = FakeCuda()
    monkeypatch.setattr(minigrad.backend, "cupy", lambda: fake)
    total, python_calls = np.zeros(2), []

    def step(x, scale):
        python_calls.append("captured" if fake.recording is not None else "eager")

        def work():
            total[...] += scale * x

        work() if fake.recording is None else fake.recording.append(work)
        return (total,)

    graph = CudaGraph(step)
    for i in range(1, 7):
        (result,) = graph(np.full(2, float(i)), np.full(1, 10.0))
        assert (result == 10 * sum(range(1, i + 1))).all(), "every call is one step, captured or not"
    assert python_calls == ["eager"] * 3 + ["captured"]
    assert fake.log == ["wait", "wait"] * 6, "inputs and outputs are ordered against the caller's stream"
    (result,) = graph(np.full(1, 2.0), np.full(1, 10.0))  # the last batch of an epoch is smaller
    assert (result == 10 * (sum(range(1, 7)) + 2)).all() and python_calls[-1] == "eager"
    (result,) = graph(np.full(2, 1.0), np.full(1, 10.0))
    assert (result == 10 * (sum(range(1, 7)) + 3)).all() and python_calls[-1] == "eager" and len(python_calls) == 5


def test_a_smaller_batch_has_the_graphs_memory_and_a_pool_that_grew_is_captured_anew(monkeypatch):
    fake = FakeCuda()
    monkeypatch.setattr(minigrad.backend, "cupy", lambda: fake)
    pools, captures = [], []

    def step(x):
        pools.append(fake.allocator)
        if fake.recording is not None:
            captures.append(len(x))
            fake.recording.append(lambda: None)
        elif len(x) == 3:
            fake.allocator(100)  # three images need a block that nobody has asked for before
        return (x,)

    graph = CudaGraph(step)
    for size in (4, 4, 4, 4, 4, 2, 4):
        graph(np.zeros(size))
    assert captures == [4] and len(pools) == 5 and set(pools) == {graph.workspace.allocate}
    graph(np.zeros(3))
    graph(np.zeros(4))
    assert captures == [4, 4], "the pool had to ask for memory, so the recorded addresses may be others'"
    graph(np.zeros(4))
    assert captures == [4, 4]
    with graph.workspace.borrowed():
        assert fake.allocator == graph.workspace.allocate
    assert fake.allocator is None


def test_two_graphs_in_one_workspace_notice_each_others_allocations(monkeypatch):
    """What one allocates may have been taken from what the other's recorded launches take for free."""
    fake = FakeCuda()
    monkeypatch.setattr(minigrad.backend, "cupy", lambda: fake)
    captures = []

    def step(name):
        def run(x):
            if fake.recording is not None:
                captures.append(name)
                fake.recording.append(lambda: None)
            elif name == "tests":
                fake.allocator(100)
            return (x,)

        return run

    training = CudaGraph(step("training"))
    tests = CudaGraph(step("tests"), training.workspace)
    for _ in range(5):
        training(np.zeros(4))
    assert captures == ["training"]
    for _ in range(5):
        tests(np.zeros(2))
    training(np.zeros(4))
    training(np.zeros(4))
    assert captures == ["training", "tests", "training"]
    tests(np.zeros(2))
    assert captures == ["training", "tests", "training"] and tests.workspace is training.workspace


def test_processes_decide_each_call_together(monkeypatch):
    """A sum over GPUs is captured by all processes or by none: each does what one of them has to."""
    fake = FakeCuda()
    monkeypatch.setattr(minigrad.backend, "cupy", lambda: fake)
    did, result = [], np.zeros(1)

    def step(x):
        def work():
            result[...] = 2 * x

        did.append("eager" if fake.recording is None else "captured")
        if fake.recording is None:
            return (2 * x,)
        fake.recording.append(work)
        return (result,)

    captured, failed = 0, 1  # what another says after its capture
    others = iter([EAGER] * 3 + [CAPTURE, captured, REPLAY, EAGER, REPLAY, CAPTURE, captured, CAPTURE, failed, EAGER])
    graph = CudaGraph(step, largest=lambda number: max(number, next(others)))
    for i in range(5):
        assert graph(np.full(1, float(i)))[0] == 2 * i
    assert did == ["eager"] * 3 + ["captured"]  # by all, and replayed by all
    assert graph(np.full(1, 6.0))[0] == 12 and did[-1] == "eager"  # another's batch is smaller
    assert graph(np.full(1, 7.0))[0] == 14 and did[-1] == "eager" and len(did) == 5  # back in the graph
    assert graph(np.full(1, 8.0))[0] == 16 and did[-1] == "captured" and len(did) == 6  # another's pool has grown
    with pytest.warns(RuntimeWarning, match="runs eagerly, .*: another process could not capture it"):
        assert graph(np.full(1, 9.0))[0] == 18
    assert did[-2:] == ["captured", "eager"] and graph.graph is None
    assert graph(np.full(1, 10.0))[0] == 20 and did[-1] == "eager" and not list(others)


@pytest.mark.parametrize("error", [RuntimeError, MemoryError])
def test_a_step_that_cannot_be_captured_goes_on_eagerly(monkeypatch, error):
    fake = FakeCuda()
    monkeypatch.setattr(minigrad.backend, "cupy", lambda: fake)
    calls = []

    def step(x):
        if fake.recording is not None:
            raise error("not allowed while capturing")
        calls.append(x)
        return (x + 1,)

    graph = CudaGraph(step)
    for _ in range(3):
        graph(np.zeros(1))
    if error is MemoryError:
        with pytest.raises(MemoryError):
            graph(np.zeros(1))
        assert fake.recording is None and graph.graph is None
        return
    with pytest.warns(RuntimeWarning, match="runs eagerly.*not allowed while capturing"):
        (result,) = graph(np.zeros(1))
    assert result == 1 and len(calls) == 4 and fake.recording is None
    (result,) = graph(np.ones(1))  # without another try, and without another warning
    assert result == 2 and len(calls) == 5
