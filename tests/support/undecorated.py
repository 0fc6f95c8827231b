"""`python -m support.undecorated` is `python -m train.cifar` without pictures and report, see tiny.py."""

import sys

from train import cifar

from . import tiny

if __name__ == "__main__":
    with tiny.undecorated():
        sys.exit(cifar.main())
