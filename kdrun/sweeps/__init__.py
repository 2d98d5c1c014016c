"""Sweeps: definition, grouping into lanes, processes, SLURM."""
