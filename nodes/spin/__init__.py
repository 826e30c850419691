"""SPIN's nodes: data set, opponent, options, the two trainers, checkpoints, curves."""
