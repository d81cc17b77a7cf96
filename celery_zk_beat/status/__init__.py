"""A read-only look at an election, and how it looks as JSON and in a terminal."""
