"""What became of runs: workers report it, the master notes it."""
