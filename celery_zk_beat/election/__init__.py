"""Electing one master among any number of processes, through ZooKeeper; no Celery in sight.

What this does not promise, first: an election is not a fence. A process that was paused (a
suspended machine, SIGSTOP) may believe for an instant after it wakes that it is still master.
Whatever must never be done twice has to carry :attr:`MasterElection.epoch` to the place where it
takes effect, and be refused there when a higher one has been seen.

The protocol: whoever creates the ephemeral znode ``master`` is master. In the same transaction the
znode ``epoch`` is written, and its new version numbers this term. The others watch ``master`` and
try again when it goes. After every reconnect, and after every request without an answer, there is
one way on: read ``master`` and ``epoch``, and believe what they say::

                  start; the connection is lost, in whatever state
                                      |
                                      v
                                 UNCONNECTED
                                      | connected: the root is ours, and ready
                                      v
        +-------------------->  reads `master`  <----------------------+
        |                 nobody's  another's  this session's, and     |
        |                    |          |      so is `epoch`           |
        |                    v          v             v                |
        |                 VACANT     STANDBY <----- MASTER             |
        |                    |          |   resigns    |               |
        +--------------------+          +--------------+---------------+
          contends: creates               a watch fires, or somebody
          `master`, writes `epoch`        has it look again

Who resigned does not contend for RESIGN_PAUSE; who was useless as master, for longer, if another
may be of use. A master that resigns to a successor names it in ``master``, instead of deleting it;
the successor deletes and makes it in one transaction, or the master goes on after RESIGN_PAUSE.

The rooms: :mod:`.public` is what users call, :mod:`.candidate` decides, :mod:`.restraint` says
when not to contend, :mod:`.root`, :mod:`.membership` and :mod:`.terms` keep the znodes beside
``master``, :mod:`.complaints` says what it waits for.
"""
