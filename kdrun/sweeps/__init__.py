"""Many runs: definition, grouping, processes, SLURM."""
