"""How many processes run the suite, and how many threads each of them takes (used by tests/conftest.py)."""

import os


def share_cores():
    """Give a worker of pytest-xdist, and each process that a test starts there, its share of the cores.

    Two workers on two cores must not run four threads. And a test that compares a command's numbers with those of its
    own process needs as many BLAS threads in both, for another number adds in another order. OpenBLAS reads the
    variable when NumPy is loaded, so this comes before the first import of NumPy.
    """
    if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        for variable in ("MINIGRAD_THREADS", "OMP_NUM_THREADS"):
            os.environ.setdefault(variable, str(max(1, cores // int(workers))))


def use_all_cores(config):
    """Run the whole suite or a folder of it as if `-n auto --dist worksteal` had been said.

    One process runs what is named by file or test, for starting others would take longer; what a marker such as `cuda`
    chooses, for there is one GPU; and everything where pytest-xdist is missing. Whoever says `-n` has it his way.
    A worker reads the same conftest.py, and must not start workers of its own.
    """
    options = config.option
    named = [arg for arg in config.args if arg.partition("::")[0].endswith(".py")]
    many = not named and options.markexpr in ("", "not slow") and not hasattr(config, "workerinput")
    if many and getattr(options, "numprocesses", 0) is None:
        options.numprocesses = "auto"
        options.dist = "worksteal" if options.dist == "no" else options.dist
