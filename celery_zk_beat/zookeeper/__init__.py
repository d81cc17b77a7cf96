"""The wall round kazoo, which is imported nowhere else. Re-exports nothing: what is read and
written (operations.py) is known without kazoo."""
