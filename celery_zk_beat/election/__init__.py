"""Electing one master among any number of processes, through ZooKeeper; no Celery in sight.

What this does not promise, first: an election is not a fence. A process that was paused (a
suspended machine, SIGSTOP) may believe for an instant after it wakes that it is still master.
Whatever must never be done twice has to carry :attr:`MasterElection.epoch` to the place where it
takes effect, and be refused there when a higher one has been seen.

The protocol: whoever creates the ephemeral znode ``master`` is master. In the same transaction the
znode ``epoch`` is written, and its new version numbers this term. The others watch ``master`` and
try again when it goes. After every reconnect, and after every request without an answer, there is
one way on: read ``master`` and ``epoch``, and believe what they say::

          start, or the connection is lost, from wherever
                             |
                             v
                        UNCONNECTED
                             | connected: the root is ours and made ready, the server caught up
                             v
       +-------------> READ `master` <---------------------------------------+
       |              /      |       \\                                       |
       |        nobody   another's    ours, and so is `epoch`                |
       |            /        |         \\                                     |
       |           v         v          v                                    |
       |        VACANT    STANDBY    MASTER of the term `epoch` --------+    |
       |           |         |          |                               |    |
       |           |         |          | resigns: deletes `master`     |    |
       |           |         |          | resigns to one: names it in   |    |
       |           |         |          | `master`, which it takes over |    |
       |           |         |          v                               |    |
       |           |         |      STANDBY for RESIGN_PAUSE            |    |
       |           |         +----------+-------------------------------+----+
       |           |                a watch fires, or a second look is due
       +-----------+
        contends: creates `master` and writes `epoch`, at the version it read; not before the
        end of RESIGN_PAUSE, and later if it was useless as master and another may be of use

The rooms: :mod:`.public` is what users call, :mod:`.candidate` decides, :mod:`.restraint` says
when not to contend, :mod:`.root`, :mod:`.membership` and :mod:`.terms` keep the znodes beside
``master``, :mod:`.notes` is all that holds for one session.
"""
