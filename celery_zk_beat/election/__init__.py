"""Elects one master among any number of processes, through ZooKeeper. Needs no Celery.

First, what this does not promise: an election is not a fence. A process that was paused (a
suspended machine, SIGSTOP) may believe for an instant after it wakes that it is still master. If
something must never be done twice, send :attr:`MasterElection.epoch` with it, and refuse it where
it takes effect if a higher epoch was seen there.

The protocol: the candidate that creates the ephemeral znode ``master`` is master. In the same
transaction it writes the znode ``epoch``, whose new version is the number of this term. The others
watch ``master`` and try again when it is gone. After each reconnect, and after each request without
an answer, a candidate does one thing: it reads ``master`` and ``epoch``, and believes them::

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
          `master`, writes `epoch`        asks it to look again

A candidate that resigned does not contend for RESIGN_PAUSE. One that was useless as master waits
longer, if another may be of use. A master that resigns to a successor does not delete ``master``
but writes the successor's id into it. The successor deletes and creates it in one transaction; if
it does not, the master goes on after RESIGN_PAUSE.

The modules: :mod:`.public` is what users call, :mod:`.candidate` decides, :mod:`.restraint` says
when not to contend, :mod:`.root`, :mod:`.membership` and :mod:`.terms` keep the znodes beside
``master``, :mod:`.complaints` logs what the candidate waits for.
"""
