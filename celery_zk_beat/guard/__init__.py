"""A small process beside the beat, which ends its ZooKeeper session when the beat is dead.

So nobody waits for the end of the session, and another beat is elected at once. That a beat is dead
is known of the kernel (pidfd_open(2)) and never guessed: a live master may publish without asking
for two thirds of its session time-out, because nobody can replace it sooner.

:mod:`.keeper` is the beat's side, :mod:`.program` all that the guard itself runs.
"""
