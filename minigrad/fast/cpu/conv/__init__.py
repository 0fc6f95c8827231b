"""The CPU's convolution: sizes, sources, and one file for each way to compute it."""
