"""The mean over the ranks in buckets (train/run/buckets.py): what travels when, without another rank."""

import os
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from support.engine import only

import minigrad
from minigrad import Tensor, nn, optim
from minigrad.fast import cuda
from train.run import buckets, loop, parallel


class Journal(buckets.Bucketed):
    """Adds up over two ranks of which the other has twice this one's gradients; notes what happens."""

    def __init__(self, buffers, fraction, log):
        super().__init__(buffers, fraction)
        self.log, self.flats = log, []

    def pack(self, arrays, places, flat):
        for a, place in zip(arrays, places, strict=True):
            np.multiply(a, self.fraction, out=place)

    def send(self, flat):
        self.log.append(f"send {flat.nbytes}")
        self.flats.append(flat)

    def wait(self):
        self.log.append("wait")
        for flat in self.flats:
            flat *= 3


def test_a_bucket_sets_out_when_it_is_full(monkeypatch):
    """Arrays in the order in which they come, of one dtype in a bucket; the rest when all have come."""
    monkeypatch.setattr(buckets, "BUCKET_BYTES", 100)
    log, buffers = [], buckets.SendBuffers()
    shapes = [((n,), np.float32) for n in (3, 20, 4, 2)] + [((n,), np.float64) for n in (40, 1)]
    rng = np.random.default_rng(0)
    places = []
    for _ in range(2):
        mean, arrays = Journal(buffers, 0.25, log), [rng.standard_normal(s).astype(d) for s, d in shapes]
        kept = [a.copy() for a in arrays]
        for a in arrays:
            mean.add(a)
            log.append(f"add {a.size}")
        for a, before, found in zip(arrays, kept, mean.results(), strict=True):
            assert found.shape == a.shape and found.dtype == a.dtype
            assert_allclose(found, 0.75 * before, rtol=1e-6)
            assert_array_equal(a, before)
        places.append([m.ctypes.data for m in mean.means])
        rest = ["send 32", "wait"]
        assert log == ["add 3", "add 20", "send 112", "add 4", "add 2", "send 16", "send 320", "add 40", "add 1", *rest]
        log.clear()
    assert places[0] == places[1]  # the buckets' memory is made once
    starts = [flat.ctypes.data for flat in buffers.buckets.values()]
    assert all(any((at - start) % 16 == 0 for start in starts) for at in places[0])


def test_one_process_alone_has_the_mean_already():
    mean, arrays = parallel.ALONE.mean(1.0), [np.ones(2), np.zeros(3)]
    for a in arrays:
        mean.add(a)
    assert all(a is b for a, b in zip(mean.results(), arrays, strict=True))


def test_gradients_travel_while_the_backward_pass_makes_others(monkeypatch):
    """Three layers, the last first: two buckets are on their way before the first layer's gradient is there."""
    log = []

    class Noted(minigrad.Function):
        """Its input, and a note when its gradient is computed."""

        def forward(self, x):
            return x.copy()

        def backward(self, dy):
            log.append("backward")
            return dy

    minigrad.manual_seed(0)
    first, middle, last = (nn.Linear(n, k, bias=False) for n, k in ((8, 5), (5, 6), (6, 3)))
    norm = nn.BatchNorm2d(2)
    parts = {"first": first, "middle": middle, "last": last, "norm": norm}
    model = SimpleNamespace(named_tensors=lambda: [(n, t) for m in parts.values() for n, t in m.named_tensors()])
    x = Tensor(np.random.default_rng(0).standard_normal((2, 8)).astype(np.float32))
    loss = last(Noted.apply(middle(Noted.apply(first(x))))).sum()
    journal = Journal(buckets.SendBuffers(), np.float32(0.5), log)
    monkeypatch.setattr(buckets, "BUCKET_BYTES", 72)  # the last layer's 18 numbers
    ranks = SimpleNamespace(mean=lambda fraction: journal)
    expected = {}
    last(middle(first(x))).sum().backward(after_leaf=lambda p: expected.update({id(p): 1.5 * p.grad}))
    for layer in (first, middle, last):
        layer.weight.grad = None
    loop.backward_over_ranks(SimpleNamespace(ranks=ranks, model=model), loss, 0.5)
    assert log == ["send 80", "backward", "send 128", "backward", "send 160", "send 32", "wait"]
    for layer in (first, middle, last):
        assert_allclose(layer.weight.grad, expected[id(layer.weight)], rtol=1e-6)
    assert_allclose(norm.running_var.data, 1.5)  # 1 on each rank, of which the other has twice as much
    assert norm.num_batches_tracked.data == 0


class OnGPU(np.ndarray):
    """A host array with an address where CuPy's arrays have one."""

    @property
    def data(self):
        return SimpleNamespace(ptr=self.ctypes.data)


class Stream:
    """A stream that notes what it is given."""

    def __init__(self, name, ptr, log):
        self.name, self.ptr, self.log = name, ptr, log

    def record(self, event):
        assert event == {"disable_timing": True}
        self.log.append(f"{self.name} records")
        return self.name

    def wait_event(self, event):
        self.log.append(f"{self.name} waits for {event}")


def test_a_bucket_is_scaled_in_one_launch_and_sums_run_beside(monkeypatch):
    """99 small arrays, two launches of 64 at most, then a large one: each bucket is packed before it is added up."""
    pytest.importorskip("ml_dtypes", reason="the kernels' bfloat16 arrays need ml_dtypes")
    from support import host_gpu

    log = []
    launches = host_gpu.install(monkeypatch)
    computes, adds = Stream("compute", 76, log), Stream("add", 77, log)
    cupy = SimpleNamespace(cuda=SimpleNamespace(get_current_stream=lambda: computes, Event=lambda **how: how))
    nccl = SimpleNamespace(NCCL_FLOAT32=7, NCCL_FLOAT64=8, NCCL_SUM=0)
    communicator = SimpleNamespace(allReduce=lambda *a: log.append(a))
    monkeypatch.setattr(buckets, "cupy", lambda: cupy)
    monkeypatch.setattr(buckets, "array_module", lambda a: SimpleNamespace(zeros=lambda *k: np.zeros(*k).view(OnGPU)))
    update_all = optim.update_all
    monkeypatch.setattr(optim, "update_all", lambda *a: log.append("pack") or update_all(*a))
    rng, buffers = np.random.default_rng(0), buckets.SendBuffers()
    arrays = [rng.standard_normal((i % 7 + 1, 3)).astype(np.float32) for i in range(99)]
    arrays.append(rng.standard_normal(1000).astype(np.float32))
    monkeypatch.setattr(buckets, "BUCKET_BYTES", sum(a.nbytes for a in arrays[:99]))
    with only(cuda.register):
        for fraction in (0.25, 0.75):  # the second time in memory that holds the first time's numbers
            launches.clear()
            log.clear()
            mean = buckets.NCCLMean(buffers, fraction, nccl, communicator, adds)
            for a in arrays:
                mean.add(a)
            means = mean.results()
            assert launches == ["sgd", "sgd", "sgd"]
            for mine, found in zip(arrays, means, strict=True):
                assert_allclose(found, np.float32(fraction) * mine, rtol=1e-6)
            steps = []
            for flat in buffers.buckets.values():
                at = flat.ctypes.data
                steps += ["pack", "compute records", "add waits for compute", (at, at, flat.size, 7, 0, 77)]
            assert len(steps) == 8 and log == [*steps, "add records", "compute waits for add"]


@pytest.mark.cuda
def test_a_step_whose_gradients_travel_is_captured_on_the_gpu():
    """One rank's sum is what it has: eager and captured, the weights are those of a step that sends nothing.

    NCCL takes the calls and launches nothing for one rank (`ncclLaunchOneRank`): what it does for two is for
    test_ranks_on_gpus.py.
    """
    if os.environ.get("MINIGRAD_VIRTUAL_GPU") == "1":
        pytest.importorskip("mpi4py", reason="the virtual GPU adds through MPI")
    try:
        cp = minigrad.backend.cupy()
        nccl = parallel.load_nccl()
    except (minigrad.backend.DeviceError, ValueError) as error:
        pytest.skip(str(error))
    communicator = nccl.NcclCommunicator(1, nccl.get_unique_id(), 0)
    ranks = parallel.Ranks()
    buffers, stream = buckets.SendBuffers(), cp.cuda.Stream(non_blocking=True)
    ranks.mean = lambda fraction: buckets.NCCLMean(buffers, fraction, nccl, communicator, stream)
    x = Tensor(np.random.default_rng(0).standard_normal((8, 3, 8, 8)).astype(np.float32)).to("cuda")

    def trained(backward, wrap):
        minigrad.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))
        network.to("cuda")
        optimizer = optim.SGD(network.parameters(), 0.01, momentum=0.9)

        def step(one):
            optimizer.zero_grad()
            y = network(x)
            loss = (y * y).mean()
            backward(SimpleNamespace(ranks=ranks, model=network), loss, one)
            optimizer.step()
            return (loss.data,)

        call = wrap(step)
        losses = [float(call(cp.ones((), np.float32))[0]) for _ in range(7)]
        return losses, {name: t.numpy().tobytes() for name, t in network.named_tensors() if t.dtype.kind == "f"}

    plain = trained(lambda run, loss, one: loss.backward(), lambda step: step)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(buckets, "BUCKET_BYTES", 1000)  # two for the layers, one for what is left
        for wrap in (lambda step: step, cuda.graph.CudaGraph):
            assert trained(loop.backward_over_ranks, wrap) == plain
    assert len(buffers.buckets) > 1
