"""Run a module as `python -m` would, with the virtual GPU in place: python -m tests.virtual_gpu train.cifar --help"""

import runpy
import sys

from . import install, missing

if len(sys.argv) < 2:
    sys.exit("usage: python -m tests.virtual_gpu MODULE [ARGUMENTS]")
if reason := missing():
    sys.exit(reason)
install()
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
