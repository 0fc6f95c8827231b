"""What a person looks at: plots and the report page."""

import importlib.util
import os


def forget_missing_backend() -> None:
    """Take MPLBACKEND out of the environment where it names a module that is not installed.

    Jupyter and Colab set it, for themselves and for every process that they start, and Matplotlib cannot be imported in
    an environment that lacks the module. These pictures are drawn into files and need none.
    """
    module = os.environ.get("MPLBACKEND", "").removeprefix("module://").partition(".")[0]
    if "module://" in os.environ.get("MPLBACKEND", "") and importlib.util.find_spec(module) is None:
        del os.environ["MPLBACKEND"]


forget_missing_backend()
