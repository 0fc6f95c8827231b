"""How a run is shown: pictures, tables, the report page."""

import contextlib
import os

# Matplotlib looks at MPLBACKEND when it is imported. Jupyter sets that to a module which not every environment has, and
# where it has not, the import fails. Pictures are drawn into files here: no backend is wanted. Whoever imports pyplot
# later, in a notebook, gets the one that the variable names.
_backend = os.environ.pop("MPLBACKEND", None)
try:
    import matplotlib
finally:
    if _backend is not None:
        os.environ["MPLBACKEND"] = _backend
if _backend:
    with contextlib.suppress(ValueError):
        matplotlib.rcParams["backend"] = _backend
