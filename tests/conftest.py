"""What all tests share: how many processes run them, how thorough hypothesis is, and the devices that they run on.

`HYPOTHESIS_PROFILE` chooses the profile: "ci" (the default) draws the same examples on every run, "dev" draws new ones,
"thorough" draws many.
"""

import os

from support import workers

workers.share_cores()  # before anything imports NumPy

import pytest
from hypothesis import HealthCheck, settings
from support.web import serving

# A GPU imitated on the CPU (docs/virtual-gpu.md) for the tests marked `cuda`, there before CuPy is imported.
if os.environ.get("MINIGRAD_VIRTUAL_GPU") == "1":
    from virtual_gpu import install

    install()

import minigrad
from minigrad import registry
from minigrad.backend import DeviceError, cupy

# What a command of `train` switches when it starts. A test that compares a process with this one, bit by bit, needs
# the same kernels in both, and they can be chosen only as long as there are no other threads.
if registry.fast("cpu"):
    minigrad.fast.process.choose_kernels()

# A slow machine is no reason to fail, and a blob lets a failure from somewhere else be replayed here.
settings.register_profile("dev", deadline=None, print_blob=True, max_examples=25)
settings.register_profile("ci", settings.get_profile("dev"), derandomize=True, database=None)
settings.register_profile(
    "thorough", settings.get_profile("dev"), max_examples=1000, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """Run on all cores where that is faster."""
    workers.use_all_cores(config)


@pytest.hookimpl(tryfirst=True)  # --hypothesis-profile, which hypothesis reads after this, has the last word
def pytest_configure(config):
    """Let `--hypothesis-seed` count, which "ci" would ignore."""
    if config.getoption("--hypothesis-seed", None) is not None and "HYPOTHESIS_PROFILE" not in os.environ:
        settings.load_profile("dev")


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


@pytest.fixture
def server():
    """A server on this machine, see support/web.py."""
    with serving() as server:
        yield server


@pytest.fixture
def other():
    """Another one."""
    with serving() as server:
        yield server
