"""Several GPUs (train/run/parallel.py) without one: CuPy, NCCL and the other ranks are stand-ins."""

import warnings
import weakref
from types import SimpleNamespace

import numpy as np
import pytest

from minigrad import backend, diagnosis
from minigrad.backend import DeviceError
from train.run import config as configuration
from train.run import parallel

A, B, C = "0000:3B:00.0", "0000:5E:00.0", "0000:AF:00.0"


@pytest.mark.parametrize(
    ("seen", "chosen"),
    [
        ([[A, B], [A, B]], [0, 1]),  # mpiexec: all ranks see all GPUs
        ([[A, B, C], [A, B, C]], [0, 1]),  # more GPUs than ranks
        ([[A], [B], [C]], [0, 0, 0]),  # SLURM with one GPU a task: each rank sees its own as number 0
        ([[A, B], [C]], [0, 0]),
        ([[A, B], [A]], [1, 0]),  # who has no choice comes first
    ],
)
def test_no_two_ranks_have_the_same_gpu(seen, chosen):
    assert parallel.deal_gpus(seen) == chosen


@pytest.mark.parametrize(
    ("seen", "sentence"),
    [
        ([[A, B]] * 3, r"started 3 ranks on a machine where they see 2 GPU\(s\): .* \(ranks 0 and 2 .* share 0000:3B"),
        ([[A], [A]], r"2 ranks on a machine where they see 1 GPU\(s\): start one for each"),
        ([[A, B], [B], [B]], r"ranks 1 and 2 of the machine would share 0000:5E:00.0"),
    ],
)
def test_more_ranks_than_gpus_are_refused(seen, sentence):
    with pytest.raises(ValueError, match=sentence):
        parallel.deal_gpus(seen)


class Machine:
    """CuPy on a machine with these GPUs, as one of its processes sees it; notes which GPU is made the current one."""

    __version__ = "14.2.0"

    def __init__(self, *seen, capability=("90", "90", "90"), version=13020, nccl=True):
        self.used, self.communicators = [], []
        self.bfloat16 = np.float16  # ml_dtypes's, which not everybody has
        capabilities = dict(zip((A, B, C), capability, strict=True))
        runtime = SimpleNamespace(
            runtimeGetVersion=lambda: version, driverGetVersion=lambda: version,
            getDeviceCount=lambda: len(seen), deviceGetPCIBusId=lambda i: seen[i],
        )  # fmt: skip

        def device(i):
            return SimpleNamespace(compute_capability=capabilities[seen[i]], use=lambda: self.used.append(i))

        def communicator(*arguments):
            self.communicators.append(arguments)
            return "communicator"

        self.cuda = SimpleNamespace(runtime=runtime, Device=device, Stream=lambda **how: how)
        self.nccl = SimpleNamespace(available=nccl, get_unique_id=lambda: b"identity", NcclCommunicator=communicator)


def started(monkeypatch, machine, rank, all_seen):
    """The rank of this number among ranks that see these GPUs, on the machine."""
    ranks = object.__new__(parallel.MPIRanks)
    ranks.rank = ranks.local_rank = rank
    ranks.size = ranks.local_size = len(all_seen)
    ranks.nccl = None
    ranks.local = SimpleNamespace(allgather=lambda mine: [mine if r == rank else s for r, s in enumerate(all_seen)])
    monkeypatch.setattr(ranks, "broadcast", lambda value: b"identity")
    monkeypatch.setattr(backend, "import_optional", lambda *arguments: machine)

    def load(name):
        assert name == "cupy.cuda.nccl"
        if not machine.nccl.available:
            warnings.warn("nccl library could not be loaded.", stacklevel=1)  # as CuPy does
        return machine.nccl

    monkeypatch.setattr(parallel, "import_module", load)
    return ranks


@pytest.mark.parametrize(
    ("seen", "rank", "expected"),
    [([[A, B], [A, B]], 0, "cuda"), ([[A, B], [A, B]], 1, "cuda:1"), ([[A], [B]], 1, "cuda")],
)
def test_a_rank_looks_for_its_gpu_before_it_takes_any(monkeypatch, seen, rank, expected):
    """A process has a context, hundreds of MiB, on every GPU that was once its current one."""
    machine = Machine(*seen[rank])
    ranks = started(monkeypatch, machine, rank, seen)
    args = configuration.parser().parse_args(["--device", "cuda"])
    config = configuration.configure(args, None, ranks.device)
    assert (config.device, config.dtype, machine.used) == (expected, "bfloat16", [])
    ranks.connect(config.device)
    assert machine.used == [int(expected.partition(":")[2] or 0)]
    assert machine.communicators == [(2, b"identity", rank)] and ranks.nccl == "communicator"
    assert ranks.stream == {"non_blocking": True}  # sums wait for what they need, and for nothing else


def test_a_rank_takes_what_its_own_gpu_can_do(monkeypatch):
    """The second GPU is a T4: it computes in float32, and `Ranks.compare` will say that the first one does not."""
    ranks = started(monkeypatch, Machine(A, B, capability=("90", "75", "90")), 1, [[A, B]] * 2)
    args = configuration.parser().parse_args(["--device", "cuda"])
    assert configuration.configure(args, None, ranks.device).dtype == "float32"
    args.dtype = "bfloat16"
    with pytest.raises(ValueError, match=r"needs a GPU of compute capability 8.0 or later .*, cuda:1 has 7.5"):
        configuration.configure(args, None, ranks.device)


@pytest.mark.parametrize(
    ("machine", "name", "sentence"),
    [
        (Machine(A, B), "cuda:1", "under mpiexec each rank takes a GPU of its own: use --device cuda, not cuda:1"),
        (Machine(A, B, nccl=False), "cuda", "through NCCL, which is missing: pip install -U nvidia-nccl-cu13"),
        (Machine(A, B, version=12090, nccl=False), "cuda", "which is missing: pip install -U nvidia-nccl-cu12"),
        (Machine(), "cuda", "no NVIDIA GPU: is CUDA_VISIBLE_DEVICES empty"),
        (Machine(A), "cuda", r"2 ranks on a machine where they see 1 GPU\(s\)"),
        (Machine(A, B, capability=("90", "70", "90")), "cuda", "GPU 1 has compute capability 7.0"),
    ],
)
def test_what_several_gpus_lack_is_said_before_anything_is_done(monkeypatch, machine, name, sentence):
    seen = [machine.cuda.runtime.deviceGetPCIBusId(i) for i in range(machine.cuda.runtime.getDeviceCount())]
    ranks = started(monkeypatch, machine, 1, [seen, seen])
    with pytest.raises((ValueError, DeviceError), match=sentence):
        ranks.device(name)
    assert machine.used == []


def test_a_communicator_is_never_freed(monkeypatch):
    """NCCL would wait for ever: for graphs that hold its sums, and for ranks that have failed."""

    class Communicator:
        pass

    machine = Machine(A, B)
    machine.nccl.NcclCommunicator = lambda *arguments: Communicator()
    ranks = started(monkeypatch, machine, 0, [[A, B]] * 2)
    ranks.connect("cuda")
    communicator = weakref.ref(ranks.nccl)
    ranks.nccl = None
    assert communicator() is not None


def test_one_rank_needs_no_nccl(monkeypatch):
    machine = Machine(A, nccl=False)
    ranks = started(monkeypatch, machine, 0, [[A]])
    ranks.connect(ranks.device("cuda"))
    assert ranks.nccl is None and machine.used == [0]


def test_the_cpu_connects_nothing(monkeypatch):
    ranks = started(monkeypatch, None, 0, [[], []])
    ranks.connect(ranks.device("cpu"))
    assert ranks.nccl is None


def test_an_error_of_nccl_is_one_of_the_gpus(monkeypatch):
    """Where it is loaded, its exception is told in one sentence, like CUDA's own."""

    class NcclError(RuntimeError):
        pass

    class Other(Exception):
        pass

    names = {
        "cupy": (), "cupy.cuda.compiler": ("CompileException",), "cupy_backends.cuda.api.driver": ("CUDADriverError",),
        "cupy_backends.cuda.api.runtime": ("CUDARuntimeError",), "cupy_backends.cuda.libs.cublas": ("CUBLASError",),
        "cupy_backends.cuda.libs.nvrtc": ("NVRTCError",), "cupy.cuda": (), "cupy_backends": (),
        "cupy_backends.cuda": (), "cupy_backends.cuda.api": (), "cupy_backends.cuda.libs": (),
    }  # fmt: skip
    for name, classes in names.items():
        monkeypatch.setitem(diagnosis.sys.modules, name, SimpleNamespace(**dict.fromkeys(classes, Other)))
    monkeypatch.delitem(diagnosis.sys.modules, "cupy_backends.cuda.libs.nccl", raising=False)
    assert NcclError not in diagnosis.errors()
    monkeypatch.setitem(diagnosis.sys.modules, "cupy_backends.cuda.libs.nccl", SimpleNamespace(NcclError=NcclError))
    assert NcclError in diagnosis.errors()
