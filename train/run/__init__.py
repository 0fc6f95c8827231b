"""A training run: its configuration, the loop, checkpoints, its folder, signals and ranks."""
