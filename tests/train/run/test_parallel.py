"""Several ranks train one network (train/run/parallel.py). Needs mpi4py and mpiexec, which the extra `mpi` brings."""

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from support import tiny

from train import scaling
from train.run import checkpoint, parallel
from train.run.checkpoint import LAST

# `pip install mpi4py mpich` puts mpiexec beside the interpreter, which need not be on the PATH.
MPIEXEC = shutil.which("mpiexec", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
needs_mpi = pytest.mark.skipif(
    MPIEXEC is None or importlib.util.find_spec("mpi4py") is None,
    reason="mpi4py or mpiexec is missing: pip install mpi4py mpich",
)
# Open MPI refuses root unless it is told twice that this is meant.
ENVIRONMENT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}


def start(ranks, *options, module="support.undecorated"):
    """Start a run of several ranks."""
    return tiny.start(*tiny.OPTIONS, *options, mpi=(MPIEXEC, "-n", str(ranks)), module=module, env=ENVIRONMENT)


def train(ranks, *options, **how):
    """A run of several ranks; return the exit code and what it printed."""
    process = start(ranks, *options, **how)
    printed, error = process.communicate(timeout=300)
    return process.returncode, printed, error


# ---- without MPI ----------------------------------------------------------------------------------------------------


def test_shares_deal_a_batch_out():
    batch = np.arange(10)
    ranks = [parallel.Ranks() for _ in range(4)]
    for i, r in enumerate(ranks):
        r.rank, r.size = i, 4
    assert_array_equal(np.sort(np.concatenate([r.part(batch) for r in ranks])), batch)
    assert [r.count(10) for r in ranks] == [3, 3, 2, 2] == [len(r.part(batch)) for r in ranks]
    # A batch smaller than the number of ranks: a rank without an image computes with the first, and it counts nothing.
    assert [r.count(2) for r in ranks] == [1, 1, 0, 0]
    assert [r.part(batch[:2]).tolist() for r in ranks] == [[0], [1], [0], [0]]


def test_one_process_is_a_rank_like_any_other():
    alone = parallel.ALONE
    assert alone.add(1.5, 2) == (1.5, 2)
    assert alone.maximum(3) == (3,)
    assert alone.agree(5)
    assert alone.broadcast("x") == "x"
    assert alone.in_turn(lambda: 7) == 7
    assert alone.device("cuda:1") == "cuda:1"
    assert alone.threads() is None


def test_without_mpi4py_s_runner_the_command_is_refused(monkeypatch):
    assert parallel.start() is parallel.ALONE
    for variable in ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE"):
        with monkeypatch.context() as patch:
            patch.setenv(variable, "1")
            assert parallel.start() is parallel.ALONE
            patch.setenv(variable, "2")
            with pytest.raises(ValueError, match=r"python -m mpi4py -m train\.cifar"):
                parallel.start()


def test_ranks_that_were_started_differently_are_told_by_what_differs(monkeypatch):
    ranks = parallel.Ranks()
    ranks.rank = 1
    monkeypatch.setattr(ranks, "broadcast", lambda facts: {"--lr": 0.1, "training images:": "22 of 10 classes"})
    ranks.compare({"--lr": 0.1, "training images:": "22 of 10 classes"})
    with pytest.raises(ValueError, match=r"rank 1 has --lr 0.2 where rank 0 has 0.1"):
        ranks.compare({"--lr": 0.2, "training images:": "22 of 10 classes"})


def test_rank_0_has_patience_with_ranks_that_have_stopped_while_it_read_the_data(monkeypatch):
    """They had nothing to do but to wait for it; it may have had much to download."""
    ranks = object.__new__(parallel.MPIRanks)
    ranks.rank, ranks.comm = 0, SimpleNamespace(Ibarrier=lambda: "nobody comes")
    ranks.MPI = SimpleNamespace(Request=SimpleNamespace(Testall=lambda requests: False))
    monkeypatch.setattr(parallel, "PATIENCE", 0.01)
    with pytest.raises(parallel.Deserted, match="rank 0 has waited 0 s for the other ranks"):
        ranks.in_turn(lambda: "the images")


def test_where_the_system_has_no_affinity_the_ranks_divide_all_cores(monkeypatch):
    """As macOS."""
    ranks = object.__new__(parallel.MPIRanks)
    ranks.local, ranks.local_size, ranks.MPI = SimpleNamespace(), 2, SimpleNamespace(MAX=None)
    ranks.local.Iallreduce = lambda mine, some, op: np.copyto(some, mine)
    monkeypatch.setattr(ranks, "_complete", lambda request, patience: None)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 10)
    assert ranks.threads() == 5


# ---- the model of many GPUs -----------------------------------------------------------------------------------------


def test_a_ring_of_ranks_takes_the_time_of_its_messages():
    """The formula against a ring walked message by message: all links are busy at once, each step as slow as one."""
    cluster = scaling.Cluster(gpus=4, inside=1e9, between=1e8, latency=1e-3)
    for n in (1, 2, 4, 5, 64):
        bandwidth = 1e9 if n <= 4 else 1e8
        messages = 0.0
        for _ in range(2 * (n - 1)):
            messages += 1e-3 + 6e6 / n / bandwidth
        assert_allclose(scaling.reduce_seconds(n, 6e6, cluster), messages)


def test_the_scaling_command(capsys):
    command = "--model resnext29_8x64d --step-ms 20 --batch-size 128 --gpus 8 --inside 100 --between 25 --latency 5"
    assert scaling.main([*command.split(), "--ranks", "1", "8"]) == 0
    first, _, one, eight = capsys.readouterr().out.splitlines()
    # 34,426,698 weights and twice as many running statistics as batch norm has channels, four bytes each.
    assert first == "resnext29_8x64d: 137.9 MB a step"
    assert [float(word) for word in re.findall(r"[\d.]+", one)] == [1, 0, 20, 6400, 100, 20, 6400, 100]
    reduce = 2 * 7 / 8 * 137.9 / 100 + 14 * 0.005
    found = [float(word) for word in re.findall(r"[\d.]+", eight)]
    weak, strong = 20 + reduce, 20 / 8 + reduce
    expected = [8, reduce, weak, 8 * 128e3 / weak, 2000 / weak, strong, 128e3 / strong, 250 / strong]
    assert_allclose(found, expected, rtol=2e-3)


@pytest.mark.parametrize("change", [("--model", "resnext"), ("--step-ms", "0"), ("--latency", "-1"), ("--ranks", "0")])
def test_the_scaling_command_refuses_bad_numbers(capsys, change):
    command = "--model resnext29_8x64d --step-ms 20 --batch-size 128 --gpus 8 --inside 100 --between 25 --latency 5"
    with pytest.raises(SystemExit) as stop:
        scaling.main([*command.split(), *change])
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


# ---- with MPI -------------------------------------------------------------------------------------------------------


STEPS = """
import sys
import numpy as np
from support import tiny
from train.data import load
from train.run import config as configuration, loop, parallel

# Three steps in float64 with frozen batch norm: with running statistics that are not those of the batch.
ranks = parallel.start()
config = configuration.configure(configuration.parser().parse_args([*tiny.OPTIONS, "--dtype", "float64"]))
train_set, test_set = load("shapes", ".", limit_train=24, limit_test=2)
run = loop.Run.start(config, train_set, test_set, ranks)
run.model.eval()
for step in range(3):
    indices = np.arange(8 * step, 8 * step + 7)  # an odd number: shares of four and three images
    labels = ranks.part(train_set.labels[indices])
    loop.train_step(run, loop.prepare(run, indices, step), labels, 0.02, ranks.count(7) / 7)
np.savez(f"{sys.argv[1]}-{ranks.rank}.npz", **run.model.state_dict())
"""


@needs_mpi
@pytest.mark.parametrize("size", [2, 3])
def test_ranks_with_their_shares_equal_one_rank_with_the_whole(tmp_path, size):
    script = tmp_path / "steps.py"
    script.write_text(STEPS)
    path = os.pathsep.join([str(tiny.ROOT), str(tiny.ROOT / "tests")])
    environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"}
    subprocess.run([sys.executable, script, tmp_path / "one"], env=environment, check=True, timeout=300)
    together = [MPIEXEC, "-n", str(size), sys.executable, "-m", "mpi4py", script, tmp_path / "many"]
    subprocess.run(together, env=environment, check=True, timeout=300)
    one = np.load(tmp_path / "one-0.npz")
    many = [np.load(tmp_path / f"many-{rank}.npz") for rank in range(size)]
    for name in one:
        assert_allclose(many[0][name], one[name], rtol=1e-10, atol=1e-14, err_msg=name)
        for other in many[1:]:
            assert_array_equal(other[name], many[0][name])


@needs_mpi
def test_two_ranks_train_and_rank_0_alone_speaks(tmp_path):
    code, printed, error = train(
        2, "--limit-test", "600", "--epochs", "2", "--out", tmp_path / "two", module="train.cifar"
    )
    assert (code, error) == (0, "")
    epochs = [line[:11] for line in printed.splitlines() if line.startswith("epoch")]
    assert epochs == ["epoch   1/2", "epoch   2/2"]
    line = tiny.log(tmp_path / "two")[-1]
    # Evaluation is sharded and exact: every image counts once, however many processes share them. The loss is the same
    # but for rounding, for which it matters how many rows a product has.
    for mpi in ((), (MPIEXEC, "-n", "3")):
        done = tiny.start("--evaluate", tmp_path / "two" / LAST, mpi=mpi, env=ENVIRONMENT)
        _, found_error, _, found_loss = done.communicate(timeout=300)[0].split()
        assert float(found_error) == line["test_error"]
        assert float(found_loss) == pytest.approx(line["test_loss"], rel=1e-6)


@needs_mpi
def test_a_signal_to_one_rank_stops_all_after_the_same_step(tmp_path):
    assert train(2, "--epochs", "3", "--out", tmp_path / "once")[0] == 0
    slow_save = tmp_path / "sitecustomize.py"  # rank 1 must not end rank 0 while that writes
    slow_save.write_text(
        "import os, time\nreplace = os.replace\n"
        "def slow(a, b):\n    time.sleep(1.5 if 'last' in str(b) and os.path.exists(b) else 0)\n    replace(a, b)\n"
        "os.replace = slow\n"
    )
    path = os.pathsep.join([str(tmp_path), str(tiny.ROOT)])
    process = tiny.start(
        *(*tiny.OPTIONS, "--epochs", "3", "--out", tmp_path / "twice"),
        mpi=(MPIEXEC, "-n", "2"),
        env={**ENVIRONMENT, "PYTHONPATH": path},
    )
    assert tiny.first_epoch(process).startswith("epoch   1/3")
    os.kill(ranks_of(process)[1], signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "stopped by SIGTERM" in error
    _, state = checkpoint.read(tmp_path / "twice" / LAST)
    assert (state["epoch"], state["step"]) > (1, 0)
    assert state["epoch"] < 3
    assert train(2, "--epochs", "3", "--out", tmp_path / "twice", "--resume")[0] == 0
    assert tiny.differences(tmp_path / "once", tmp_path / "twice") == []


@needs_mpi
@pytest.mark.parametrize("module", ["numpy", "train.show.report", "mpi4py.MPI"])
def test_a_signal_to_one_rank_ends_all_before_they_have_met(tmp_path, module):
    second = "'1' in (os.environ.get('PMI_RANK'), os.environ.get('OMPI_COMM_WORLD_RANK'))"
    tiny.signal_at_import(tmp_path, module, signal.SIGTERM, second)
    path = os.pathsep.join([str(tmp_path), str(tiny.ROOT)])
    command = (*tiny.OPTIONS, "--out", tmp_path / "out")
    process = tiny.start(*command, mpi=(MPIEXEC, "-n", "2"), env={**ENVIRONMENT, "PYTHONPATH": path})
    _, error = process.communicate(timeout=60)
    assert process.returncode != 0
    assert error.count("python -m train.cifar: stopped by SIGTERM") == 1


@needs_mpi
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_dies_ends_all(tmp_path, rank):
    process = start(2, "--epochs", "1000", "--save-every", "1", "--out", tmp_path)
    assert tiny.first_epoch(process).startswith("epoch   1/1000")
    pids = ranks_of(process)
    os.kill(pids[rank], signal.SIGKILL)
    process.communicate(timeout=120)
    assert process.returncode != 0
    assert not any(running(pid) for pid in pids)
    assert checkpoint.read(tmp_path / LAST)[1]["epoch"] >= 1


@needs_mpi
def test_a_rank_that_fails_ends_all(tmp_path):
    """An exception in one rank, in the middle of a step, while the other waits for its gradient."""
    script = tmp_path / "fail.py"
    script.write_text(
        "import sys\nfrom train import cifar\nfrom train.run import loop\ntrain_step = loop.train_step\n"
        "def step(run, *arguments):\n"
        "    if run.ranks.rank == 1 and run.step == 1:\n        raise RuntimeError('a bug')\n"
        "    return train_step(run, *arguments)\n"
        "loop.train_step = step\nsys.exit(cifar.main(sys.argv[1:]))\n"
    )
    environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": str(tiny.ROOT), "OPENBLAS_NUM_THREADS": "1"}
    command = [MPIEXEC, "-n", "2", sys.executable, "-m", "mpi4py", script, *tiny.OPTIONS, "--out", tmp_path / "out"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "RuntimeError: a bug" in done.stderr


@needs_mpi
@pytest.mark.parametrize(
    ("options", "code", "sentence"),
    [
        (("--batch-size", "1"), 2, "--batch-size 1 leaves some of the 2 ranks without an image"),
        (("--model", "resnext"), 2, "there is no network 'resnext'"),
        (("--lr", "1e30"), 1, "try a smaller --lr"),
    ],
)
def test_what_is_wrong_is_said_once(tmp_path, options, code, sentence):
    """However slow rank 0 is: in the minute in which the other one keeps silent here, rank 0's exit ends it."""
    process = tiny.start(
        *(*tiny.OPTIONS, *options, "--out", tmp_path / "out"),
        mpi=(MPIEXEC, "-n", "2"),
        env={**ENVIRONMENT, "MINIGRAD_SILENCE": "60"},
    )
    _, error = process.communicate(timeout=300)
    assert process.returncode == code
    assert error.count(sentence) == 1


MANY = ("--data", "A", "--limit-test", "300")
# Shade of the training and of the test images, test images of a class, classes.
FOLDERS = {
    "A": (0, 0, 1, "ab"),
    "B": (1, 0, 1, "ab"),
    "C": (0, 1, 1, "ab"),
    "D": (0, 0, 150, "ab"),
    "E": (0, 0, 1, "abc"),
}


@needs_mpi
@pytest.mark.parametrize(
    ("first", "second", "sentence"),
    [
        (("--limit-train", "22"), ("--limit-train", "20"), "rank 1 has --limit-train 20 where rank 0 has 22"),
        ((), ("--epochs", "9"), "rank 1 has --epochs 9 where rank 0 has 3"),
        (("--data", "A"), ("--data", "B"), "rank 1 has training images with the checksum"),
        (("--data", "A"), ("--data", "C"), "rank 1 has test images with the checksum"),
        (MANY, ("--data", "D", *MANY[2:]), "rank 1 has test images: 300 of 2 classes where rank 0 has 2 of 2 classes"),
        (("--data", "A"), ("--data", "E"), "rank 1 has training images: 3 of 3 classes where rank 0 has 2 of 2"),
        (("--evaluate", "run"), ("--evaluate", "run", "--limit-test", "5"), "rank 1 has test images: 5 of 10 classes"),
        (("--evaluate", "run"), ("--evaluate", "run", "--seed", "5"), "rank 1 has test images with the checksum"),
    ],
)
def test_ranks_with_other_data_or_options_end_before_the_first_step(tmp_path, undisturbed, first, second, sentence):
    """Also where a sum over the ranks would have another length in each: more test images, more classes."""
    (tmp_path / "run").symlink_to(undisturbed / LAST)
    for folder, (train, test, images, classes) in FOLDERS.items():
        for split, shade in (("train", train), ("test", test)):
            for name in classes:
                (tmp_path / folder / split / name).mkdir(parents=True)
                for i in range(images if split == "test" else 1):
                    Image.new("RGB", (32, 32), (shade, 100, 0)).save(tmp_path / folder / split / name / f"{i}.png")
    command = [sys.executable, "-m", "mpi4py", "-m", "train.cifar", *tiny.OPTIONS, "--out", tmp_path / "out"]
    both = [MPIEXEC, "-n", "1", *command, *first, ":", "-n", "1", *command, *second]
    environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": str(tiny.ROOT), "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(both, env=environment, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode != 0
    assert done.stderr.count(sentence) == 1
    assert not (tmp_path / "out").exists()


@needs_mpi
@pytest.mark.parametrize("number", [None, signal.SIGTERM])
def test_a_rank_that_has_stopped_is_not_waited_for_for_ever(tmp_path, number):
    """It lives, so MPI waits; the other rank's patience has an end, and after a signal an earlier one."""
    patience = {"MINIGRAD_PATIENCE": "2"} if number is None else {"MINIGRAD_GRACE": "1"}
    process = tiny.start(
        *(*tiny.OPTIONS, "--epochs", "100000", "--out", tmp_path),
        mpi=(MPIEXEC, "-n", "2"),
        env={**ENVIRONMENT, **patience},
    )
    tiny.first_epoch(process)
    pids = ranks_of(process)
    os.kill(pids[1], signal.SIGSTOP)
    if number is not None:
        os.kill(pids[0], number)
    _, error = process.communicate(timeout=60)
    assert process.returncode != 0
    if number is None or "stopped by" not in error:  # the signal may have come between two meetings of the ranks
        assert "rank 0 has waited" in error and f"{tmp_path} holds the state after epoch " in error
    tiny.wait_until(lambda: not any(running(pid) for pid in pids))


def ranks_of(process):
    """The process ids of the ranks below mpiexec, in the order of the ranks."""
    below = {}
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            variables = dict(v.split(b"=", 1) for v in path.read_bytes().split(b"\0") if b"=" in v)
            command = (path.parent / "cmdline").read_bytes().split(b"\0")
        except OSError:  # it has just ended, or belongs to somebody else
            continue
        rank = variables.get(b"PMI_RANK", variables.get(b"OMPI_COMM_WORLD_RANK"))
        if rank is not None and b"mpi4py" in command and process.pid in parents(int(path.parent.name)):
            below[int(rank)] = int(path.parent.name)
    assert sorted(below) == list(range(len(below))) != []
    return [below[rank] for rank in sorted(below)]


def parents(pid):
    """The processes above a process."""
    above = []
    while pid > 1:
        pid = int((Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])
        above.append(pid)
    return above


def running(pid):
    """Whether there is such a process that has not ended."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
