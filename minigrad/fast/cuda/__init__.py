"""The GPU's fast operations; the kernels are in kernels/."""
