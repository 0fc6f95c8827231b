"""The virtual GPU (docs/virtual-gpu.md): its instructions against their definitions, and training on it.

A process has it from the start or not at all, so what needs CuPy runs in processes of its own.
"""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import virtual_gpu
from support import two_ranks
from virtual_gpu import traffic
from virtual_gpu.count import train

ROOT = Path(__file__).resolve().parents[4]
NO_COMPILER, MISSING = virtual_gpu.no_compiler(), virtual_gpu.missing()
needs_compiler = pytest.mark.skipif(NO_COMPILER is not None, reason=str(NO_COMPILER))
needs_cupy = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
if os.environ.get("MINIGRAD_VIRTUAL_GPU") == "1":
    pytest.skip("this process has the virtual GPU already", allow_module_level=True)


# ----- single instructions, without CuPy

HEAD = """
.version 9.0
.target sm_90
.address_size 64
.visible .entry k(.param .u64 k_in, .param .u64 k_out)
{
    .reg .pred %p<9>; .reg .b16 %rs<9>; .reg .b32 %r<40>; .reg .f32 %f<9>; .reg .b64 %rd<9>; .reg .f64 %fd<9>;
    .shared .align 16 .b8 buffer[1024];
    ld.param.u64 %rd1, [k_in]; ld.param.u64 %rd2, [k_out];
    mov.u32 %r1, %tid.x; mul.wide.u32 %rd3, %r1, 4; add.s64 %rd1, %rd1, %rd3; add.s64 %rd2, %rd2, %rd3;
"""


def run(body, values, threads=32, head=HEAD):
    """Run PTX whose thread i starts with %rd1 at values[i] and %rd2 at the result's place i, 4 bytes each."""
    from virtual_gpu.device import Module

    values, out = np.ascontiguousarray(values), np.zeros(threads, np.uint32)
    kernel = Module(head + body + "}\n").kernels["k"]
    kernel.launch((1, 1, 1), (threads, 1, 1), 0, np.array([values.ctypes.data, out.ctypes.data], np.uint64).tobytes())
    return out


LOAD, STORE = "ld.global.u32 %r2, [%rd1];", "st.global.u32 [%rd2], %r3; ret;"
FLOATS = np.array([0, -1.5, 2.5, 3.5, 1e10, -1e10, np.nan, 7.999], np.float32)


@needs_compiler
@pytest.mark.parametrize(
    ("instruction", "expected"),
    [
        ("cvt.rzi.s32.f32 %r3, %f1;", [0, -1, 2, 3, 2**31 - 1, -(2**31), 0, 7]),
        ("cvt.rni.s32.f32 %r3, %f1;", [0, -2, 2, 4, 2**31 - 1, -(2**31), 0, 8]),
        ("cvt.rzi.u32.f32 %r3, %f1;", [0, 0, 2, 3, 2**32 - 1, 0, 0, 7]),
        ("cvt.rmi.f32.f32 %f2, %f1; cvt.rzi.s32.f32 %r3, %f2;", [0, -2, 2, 3, 2**31 - 1, -(2**31), 0, 7]),
        ("setp.lt.f32 %p1, %f1, 0f40200000; selp.b32 %r3, 1, 0, %p1;", [1, 1, 0, 0, 0, 1, 0, 0]),
        ("setp.geu.f32 %p1, %f1, 0f40200000; selp.b32 %r3, 1, 0, %p1;", [0, 0, 1, 1, 1, 0, 1, 1]),
        ("setp.ne.f32 %p1, %f1, %f1; selp.b32 %r3, 1, 0, %p1;", [0] * 8),
        ("setp.neu.f32 %p1, %f1, %f1; selp.b32 %r3, 1, 0, %p1;", [0, 0, 0, 0, 0, 0, 1, 0]),
        ("max.f32 %f2, %f1, 0f3F800000; cvt.rzi.s32.f32 %r3, %f2;", [1, 1, 2, 3, 2**31 - 1, 1, 1, 7]),
    ],
)  # fmt: skip
def test_float_instructions(instruction, expected):
    """Conversions saturate, a NaN becomes 0; a comparison says whether it is true of what has no order."""
    result = run("ld.global.f32 %f1, [%rd1];" + instruction + STORE, FLOATS, 8)
    assert result.astype(np.int64).tolist() == [n % 2**32 for n in expected]


@needs_compiler
@pytest.mark.parametrize(
    ("instruction", "expected"),
    [
        ("shl.b32 %r3, %r2, 33;", lambda a: 0),
        ("shr.s32 %r3, %r2, 40;", lambda a: -(a >> 31)),
        ("div.u32 %r3, 100, %r2;", lambda a: 100 // a if a else -1),
        ("mul.hi.u32 %r3, %r2, %r2;", lambda a: a * a >> 32),
        ("bfe.u32 %r3, %r2, 4, 8;", lambda a: a >> 4 & 255),
        ("bfi.b32 %r3, %r2, 0, 8, 4;", lambda a: (a & 15) << 8),
        ("prmt.b32 %r3, %r2, 0, 0x0123;", lambda a: int.from_bytes(a.to_bytes(4, "little"), "big")),
        ("lop3.b32 %r3, %r2, 255, 15, 0x96;", lambda a: a ^ 255 ^ 15),
        ("shf.l.wrap.b32 %r3, %r2, %r2, 8;", lambda a: a << 8 | a >> 24),
        ("popc.b32 %r3, %r2;", lambda a: a.bit_count()),
        ("clz.b32 %r3, %r2;", lambda a: 32 - a.bit_length()),
        ("mov.b32 {%rs1, %rs2}, %r2; mov.b32 %r3, {%rs2, %rs1};", lambda a: a << 16 | a >> 16),
    ],
)
def test_integer_instructions(instruction, expected):
    values = np.array([0, 1, 7, 0x12345678, 2**31 - 1, 2**31, 0xDEADBEEF, 2**32 - 1], np.uint32)
    result = run(LOAD + instruction + STORE, values, 8)
    assert result.astype(np.int64).tolist() == [expected(int(a)) % 2**32 for a in values]


@needs_compiler
def test_bfloat16_is_rounded_to_nearest_even():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    values = np.concatenate([np.random.default_rng(0).standard_normal(60), [1 + 2**-8, 1 + 3 * 2**-8, np.inf, 0]])
    values = values.astype(np.float32)
    result = run("ld.global.f32 %f1, [%rd1]; cvt.rn.bf16.f32 %rs1, %f1; cvt.u32.u16 %r3, %rs1;" + STORE, values, 64)
    assert result.tolist() == values.astype(ml_dtypes.bfloat16).view(np.uint16).tolist()


@needs_compiler
@pytest.mark.parametrize(
    ("operands", "source"),
    [
        ("bfly.b32 %r3, %r2, 5, 31", lambda i: i ^ 5),
        ("down.b32 %r3, %r2, 3, 31", lambda i: i + 3 if i + 3 < 32 else i),
        ("up.b32 %r3, %r2, 4, 0", lambda i: i - 4 if i >= 4 else i),
        ("idx.b32 %r3, %r2, 9, 31", lambda i: 9),
        ("down.b32 %r3, %r2, 1, 6175", lambda i: i + 1 if i % 8 < 7 else i),  # segments of 8: (32 - 8) << 8 | 31
    ],
)
def test_shuffles(operands, source):
    values = np.arange(32, dtype=np.uint32) * 7
    result = run(LOAD + f"shfl.sync.{operands}, 0xffffffff;" + STORE, values)
    assert result.tolist() == [7 * source(i) for i in range(32)]


@needs_compiler
def test_threads_meet_at_a_barrier():
    """Each thread reads what another, of another warp, wrote before the barrier."""
    body = (
        LOAD + "shl.b32 %r4, %r1, 2; mov.u32 %r5, buffer; add.u32 %r6, %r5, %r4; st.shared.u32 [%r6], %r2; bar.sync 0;"
        "xor.b32 %r7, %r4, 508; add.u32 %r8, %r5, %r7; ld.shared.u32 %r3, [%r8];" + STORE
    )
    assert run(body, np.arange(128, dtype=np.uint32), 128).tolist() == list(range(127, -1, -1))


@needs_compiler
def test_a_product_on_tensor_cores():
    """mma's fragments as the PTX ISA lays them out, against a matrix product."""
    rng = np.random.default_rng(1)
    a, b = rng.integers(-8, 9, (16, 16)), rng.integers(-8, 9, (16, 8))
    bits = [(m.astype(np.float32).view(np.uint32) >> 16).astype(np.uint32) for m in (a, b)]
    lanes = np.zeros((32, 6), np.uint32)
    for lane in range(32):
        group, pair = lane // 4, lane % 4 * 2
        places = [(0, group, pair), (0, group + 8, pair), (0, group, pair + 8), (0, group + 8, pair + 8)]
        for i, (m, row, column) in enumerate(places):
            lanes[lane, i] = bits[m][row, column] | bits[m][row, column + 1] << 16
        for i, row in enumerate((pair, pair + 8)):
            lanes[lane, 4 + i] = bits[1][row, group] | bits[1][row + 1, group] << 16
    body = "ld.param.u64 %rd1, [k_in]; mul.wide.u32 %rd4, %r1, 24; add.s64 %rd1, %rd1, %rd4;"
    body += "".join(f"ld.global.u32 %r{10 + i}, [%rd1+{4 * i}];" for i in range(6))
    body += "mov.b32 %r20, 0; mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%r21, %r22, %r23, %r24},"
    body += "{%r10, %r11, %r12, %r13}, {%r14, %r15}, {%r20, %r20, %r20, %r20};"
    for i, (row, column) in enumerate(((0, 0), (0, 1), (8, 0), (8, 1))):
        result = run(body + f"mov.b32 %r3, %r{21 + i};" + STORE, lanes).view(np.float32).reshape(8, 4)
        assert (result == (a @ b)[row : row + 8, column::2]).all()


@needs_compiler
def test_atomic_additions_of_all_threads():
    body = "ld.param.u64 %rd4, [k_in]; red.global.add.u32 [%rd4], 2; bar.sync 0; ld.global.u32 %r3, [%rd4];" + STORE
    assert run(body, np.zeros(1, np.uint32), 100).tolist() == [200] * 100


@needs_compiler
def test_what_is_unknown_says_so():
    from virtual_gpu.operands import UnknownInstruction

    with pytest.raises(UnknownInstruction, match="tex"):
        run("tex.2d.v4.f32.f32 {%f1, %f2, %f3, %f4}, [%rd1, {%f1, %f2}];", np.zeros(1))
    with pytest.raises(UnknownInstruction, match="mma"):
        run("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%fd1, %fd2}, {%fd3}, {%fd4}, {%fd1, %fd2};", np.zeros(1))


@needs_compiler
@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("setp.eq.u32 %p1, %r1, 3; @%p1 bra L; bar.warp.sync 0xffffffff; L: bar.sync 0; ret;", "never comes"),
        (
            "setp.eq.u32 %p1, %r1, 3; @%p1 bra L; bar.warp.sync -1; L: vote.sync.any.pred %p2, %p1, -1; ret;",
            "different",
        ),
        ("mov.u32 %r2, 1024; ld.shared.u32 %r3, [%r2]; ret;", "outside of shared memory"),
        ("ld.global.u32 %r3, [%rd1+2]; ret;", "misaligned"),
    ],
)
def test_a_faulty_kernel_ends_the_process(body, message):
    code = f"from tests.minigrad.fast.cuda.test_virtual_gpu import *\nrun({body!r}, np.zeros(32, np.uint32))"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)
    assert result.returncode < 0 and message in result.stderr


# ----- with CuPy and NVRTC

# Four images a step are so few that at the usual rate the loss triples, and rounding is all that would be compared.
STEPS = 8
OPTIONS = ("--model", "resnext11_2x32d", "--lr", "0.0002")


def virtually(*command):
    """Run a module of this checkout in a process with the virtual GPU; return its standard output."""
    return said("-m", *command)


def said(*arguments):
    """Run Python in this checkout; return its standard output."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment, cwd=ROOT, timeout=600
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@cache
def counted(*options):
    """The report of tests.virtual_gpu.count."""
    return json.loads(virtually("tests.virtual_gpu.count", "--json", "--steps", str(STEPS), *OPTIONS, *options))


@needs_cupy
@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 2e-3)])
def test_eight_steps_have_the_cpus_losses(dtype, tolerance):
    """Three steps run eagerly, the fourth is captured, the others are replays."""
    expected = train(["--device", "cpu", "--dtype", "float64", *OPTIONS], STEPS, eager=True)
    untrained = train(["--device", "cpu", "--dtype", "float64", *OPTIONS, "--lr", "1e-9"], STEPS, eager=True)
    assert max(abs(1 - b / a) for a, b in zip(expected, untrained, strict=True)) > 10 * tolerance, "nothing is learnt"
    report = counted("--dtype", dtype)
    assert report["work"]["graph"] == 1
    np.testing.assert_allclose(report["losses"], expected, rtol=tolerance)


@needs_cupy
@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_captured_and_eager_steps_are_the_same_to_the_bit(dtype):
    eager, captured = counted("--dtype", dtype, "--eager"), counted("--dtype", dtype)
    assert eager["losses"] == captured["losses"]
    assert "graph" not in eager["work"]
    assert sum(k["mma"] for k in captured["kernels"].values()) == (0 if dtype == "float32" else 331776)


@needs_cupy
def test_instructions_that_are_computed_are_those_that_are_counted():
    """tests.virtual_gpu.traffic computes tensor-core instructions from a launch's arguments and runs none of them."""
    options = ("--card", "H100", "--model", "resnext11_2x32d", "--batch-size", "4", "--json")
    (found,) = json.loads(virtually("tests.virtual_gpu.traffic", *options))
    assert found["mma of our kernels"] == 331776
    assert 1 < found["bytes"] / traffic.floor_bytes("resnext11_2x32d", 4, 2) < 3  # few images, so weights count most


REFUSALS = """
from tests.virtual_gpu import install
install()
import cupy as cp

kernel = cp.RawKernel('extern "C" __global__ void f(int* x) { *x = 1; }', "f")
x = cp.zeros(1, "i4")
stream = cp.cuda.Stream(non_blocking=True)


def refused(action):
    try:
        action()
    except Exception as error:
        return type(error).__name__
    return "allowed"


print(refused(lambda: kernel((1,), (2048,), (x,))), refused(lambda: kernel((1,), (1,), (x,), shared_mem=49153)))
with stream:
    stream.begin_capture()
    kernel((1,), (1,), (x,))
    print(refused(lambda: cp.cuda.runtime.streamSynchronize(stream.ptr)), refused(stream.end_capture))
    print(int(x.get(stream=cp.cuda.Stream.null)[0]))
    stream.begin_capture()
    kernel((1,), (1,), (x,))
    graph = stream.end_capture()
print(int(x[0]))
graph.launch(stream)
print(int(x[0]), refused(lambda: cp.cuda.runtime.free(12345)))
"""


@needs_cupy
def test_what_cuda_refuses_is_refused():
    """Too many threads, too much shared memory, a wait in a capture; and a captured launch runs when it is launched."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", REFUSALS]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=120)
    assert result.returncode == 0, result.stderr
    driver, runtime = "CUDADriverError", "CUDARuntimeError"
    assert result.stdout.split() == [driver, driver, runtime, runtime, "0", "0", "1", runtime]


@needs_cupy
@pytest.mark.skipif(two_ranks.MISSING, reason="mpi4py or mpiexec is missing: pip install mpi4py mpich")
def test_two_gpus_replay_their_step_together(tmp_path):
    """The sum over the ranks is in the graph (the stand-in for NCCL refuses one that is there on one rank alone)."""
    eager_steps, eager = two_ranks.trained(tmp_path, "eager", "virtual")
    graph_steps, graph = two_ranks.trained(tmp_path, "graph", "virtual")
    assert eager_steps == [14, 14]
    assert graph_steps == [7, 7]  # three eager, two captures, two smaller batches; 7 replays
    for name, a in eager.items():
        np.testing.assert_array_equal(a, graph[name])


@needs_cupy
def test_the_command_trains(tmp_path):
    """train.cifar itself: three epochs with a smaller last batch, a test after each, a checkpoint."""
    options = ("--model", "resnext11_2x4d_w8", "--data", "shapes", "--limit-train", "22", "--limit-test", "12")
    recipe = ("--recipe", "paper", "--batch-size", "8", "--epochs", "2", "--lr", "0.02", "--dtype", "bfloat16")
    virtually("tests.virtual_gpu", "train.cifar", "--device", "cuda", *options, *recipe, "--out", str(tmp_path / "run"))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 2 and all(np.isfinite(line["train_loss"]) for line in lines)


TWO_EPOCHS = """
import sys
from pathlib import Path
from tests.virtual_gpu import install
install()
from tests.virtual_gpu.counters import COUNTERS
from train import data
from train.run import config, evaluation, loop

data.Dataset.at_once = 4
options = "--device cuda --model resnext11_2x4d_w8 --data shapes --recipe paper --lr 0.02 --average 0.9 --batch-size 4"
settings = config.configure(config.parser().parse_args([*options.split(), "--limit-train", "22"]))
if "eager" in sys.argv:
    loop.as_cuda_graph = evaluation.as_cuda_graph = lambda *arguments, **options: None
run = loop.Run.start(settings, *data.load("shapes", Path("."), limit_train=22, limit_test=26))
for run.epoch in range(2):
    run.step, run.totals = 0, dict.fromkeys(run.totals, 0.0)
    loop.train_epoch(run, lambda run: None)
    COUNTERS.reset()
    print(run.totals["loss"], *(evaluation.evaluate_run(run).loss for _ in range(2)), COUNTERS.done["graph"])
"""


@needs_cupy
@pytest.mark.slow
def test_training_and_evaluation_are_graphs_in_the_same_memory():
    """Eager and captured, two epochs have the same losses to the bit, of training and of the averaged weights."""
    captured, eager = ([line.split() for line in said("-c", TWO_EPOCHS, *how).splitlines()] for how in ((), ("eager",)))
    assert [line[:3] for line in captured] == [line[:3] for line in eager]
    assert all(line[1] == line[2] for line in captured), "evaluation changes nothing"
    # Six whole batches in each evaluation: the first three run eagerly.
    assert [line[3] for line in captured] == ["9", "12"] and [line[3] for line in eager] == ["0", "0"]


@needs_cupy
@pytest.mark.slow
def test_the_gpus_tests_pass():
    """What runs where there is a GPU runs here: pytest -m cuda, but for large layers and long runs."""
    environment = {**os.environ, "MINIGRAD_VIRTUAL_GPU": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-m", "cuda", "-k", "not stage and not captured_step"]
    elsewhere = (__file__, Path(__file__).with_name("test_check_on_gpu.py"))  # these start processes of their own
    others = ("minigrad/test_diagnosis", "minigrad/test_tensor", "train/data/test_augment", "train/run/test_buckets")
    command += ["tests/minigrad/fast", *(f"tests/{f}.py" for f in others), *(f"--ignore={f}" for f in elsewhere)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=900)
    assert result.returncode == 0, result.stdout + result.stderr
    assert " passed" in result.stdout and "skipped" not in result.stdout
