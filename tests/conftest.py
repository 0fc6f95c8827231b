"""What all tests share: how many processes run them, how thorough hypothesis is, and the devices that they run on.

`HYPOTHESIS_PROFILE` chooses the profile: "ci" (the default) draws the same examples on every run, "dev" draws new ones,
"thorough" draws many.
"""

import os

import pytest
from hypothesis import HealthCheck, settings

# With pytest-xdist each worker, and each process that a test starts, takes its share of the cores. A test that compares
# a command's numbers with its own process's needs the same number of BLAS threads in both: another number adds in
# another order. OpenBLAS reads the variable when NumPy is loaded, so it comes before the first import of NumPy.
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for variable in ("MINIGRAD_THREADS", "OMP_NUM_THREADS"):
        os.environ.setdefault(variable, str(max(1, cores // int(workers))))

import minigrad
from minigrad.backend import DeviceError, cupy

# A slow machine is no reason to fail, and a blob lets a failure from somewhere else be replayed here.
settings.register_profile("dev", deadline=None, print_blob=True, max_examples=25)
settings.register_profile("ci", settings.get_profile("dev"), derandomize=True, database=None)
settings.register_profile(
    "thorough", settings.get_profile("dev"), max_examples=1000, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """Use all cores for the whole suite or a folder of it, as if `-n auto --dist worksteal` had been said.

    One process runs what is named by file or test, for starting others would take longer; what is marked `cuda`, for
    there is one GPU; and everything where pytest-xdist is missing. Whoever says `-n` has it his way.
    """
    options = config.option
    named = [arg for arg in config.args if arg.partition("::")[0].endswith(".py")]
    many = not named and options.markexpr in ("", "not slow") and not hasattr(config, "workerinput")
    if many and getattr(options, "numprocesses", 0) is None:
        options.numprocesses = "auto"
        options.dist = "worksteal" if options.dist == "no" else options.dist


@pytest.fixture(scope="session", params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request):
    """Every device: the same test runs on the CPU and, where there is one, on a GPU."""
    if request.param == "cuda":
        try:
            cupy()
        except DeviceError as error:
            pytest.skip(str(error))
    return request.param


@pytest.fixture(autouse=True)
def seed():
    """Start the random numbers of initialisation and dropout anew for every test."""
    minigrad.manual_seed(0)
