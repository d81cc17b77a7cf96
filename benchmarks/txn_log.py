"""Reads ZooKeeper's transaction log. Each server writes each byte of it to its disk.

A file has a header and then records: checksum, length, a transaction of that length, `B`. The rest
of a file is zeros, because ZooKeeper allocates it in advance. See org.apache.zookeeper.server
.persistence.FileTxnLog and src/main/resources/zookeeper.jute of ZooKeeper.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_HEADER = struct.Struct(">4siq")
_FRAME = struct.Struct(">qi")
_TXN = struct.Struct(">qiqqi")
_INT = struct.Struct(">i")
#: Operations, by their numbers in ZooDefs.OpCode.
_CREATE, _SET_DATA, _MULTI, _CREATE_2 = 1, 5, 14, 15


@dataclass(frozen=True)
class Write:
    """A znode that was created or written."""

    path: str
    data: bytes


@dataclass(frozen=True)
class Transaction:
    """One record.

    Attributes:
        at: when ZooKeeper accepted it, seconds since 1970.
        size: bytes in the log, with its frame.
        is_multi: True if it has several operations, as all have that a beat writes.
    """

    at: float
    size: int
    is_multi: bool
    writes: list[Write]


def read_log(data_dir: Path, since: float) -> Iterator[Transaction]:
    """Yields all transactions since then, in order. `data_dir` is ZooKeeper's dataDir."""
    files = (data_dir / "version-2").glob("log.*")
    for path in sorted(files, key=lambda file: int(file.suffix[1:], 16)):
        with path.open("rb") as file:
            magic, version, _ = _HEADER.unpack(file.read(_HEADER.size))
            if (magic, version) != (b"ZKLG", 2):
                raise ValueError(f"{path}: not a transaction log of ZooKeeper")
            while len(frame := file.read(_FRAME.size)) == _FRAME.size:
                _, length = _FRAME.unpack(frame)
                if length == 0:
                    break  # space that is allocated in advance
                record, end = file.read(length), file.read(1)
                if end != b"B":
                    raise ValueError(f"{path}: a record does not end where it should")
                _, _, _, at, kind = _TXN.unpack_from(record)
                if at / 1000 >= since:
                    writes = _writes(kind, record[_TXN.size :])
                    size = len(frame) + length + len(end)
                    yield Transaction(at / 1000, size, kind == _MULTI, writes)


def _writes(kind: int, body: bytes) -> list[Write]:
    if kind in (_CREATE, _CREATE_2, _SET_DATA):
        path, rest = _buffer(body, 0)
        return [Write(path.decode(), _buffer(body, rest)[0])]
    writes = []
    if kind == _MULTI:
        (count,) = _INT.unpack_from(body)
        at = _INT.size
        for _ in range(count):
            (part,) = _INT.unpack_from(body, at)
            data, at = _buffer(body, at + _INT.size)
            writes += _writes(part, data)
    return writes


def _buffer(body: bytes, at: int) -> tuple[bytes, int]:
    """Returns the bytes that follow their length (-1: none), and where they end."""
    (length,) = _INT.unpack_from(body, at)
    begin = at + _INT.size
    end = begin + max(0, length)
    return body[begin:end], end
