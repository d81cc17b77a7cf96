"""Entries that are changed while beat runs: they lie in ZooKeeper, as data."""
