"""Training: where images come from, how a batch is augmented, and the commands that train, measure and predict."""
