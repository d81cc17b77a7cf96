"""The servers of a connection string: where they are, and why we are connected to none."""

from __future__ import annotations

import random
import socket
import ssl
from collections.abc import Iterable

from kazoo.exceptions import AuthFailedError, ConnectionDropped, SASLException, ZookeeperError

from ..errors import SettingsError
from ..security import Access

#: Most servers that are named in a line.
_MOST_NAMED = 5


class Servers:
    """What one client knows of its servers. kazoo's thread writes it, any thread reads it.
    `timeout` is the session time-out that we ask for, in seconds."""

    def __init__(self, timeout: float, access: Access) -> None:
        self._access = access
        #: Seconds for which a server may be silent before the next one is tried.
        self.patience = timeout
        #: Address and port of each server to its name in the setting.
        self._names: dict[tuple[str, ...], str] = {}
        #: What the last attempt to connect to each address met, if there was an answer; and names
        #: that have no address.
        self._unreachable: dict[tuple[str, ...], str] = {}
        #: Why each server was left again, while we are connected to none: credentials,
        #: certificates.
        self._refusals: dict[tuple[str, ...], str] = {}
        #: The same, if the cause may also be something else.
        self._suspicion: str | None = None

    @property
    def refusal(self) -> str | None:
        """Why there is no connection, in one line, if the cause is a setting or a certificate; else
        None. We keep trying."""
        return next(iter(self._refusals.values()), self._suspicion)

    @property
    def all_refuse(self) -> bool:
        """True if each server that can be reached has given such a reason."""
        refusals, rest = self._refusals, self._names.keys() - self._unreachable.keys()
        return bool(refusals) and all(key in refusals for key in rest)

    @property
    def trouble(self) -> str:
        """The end of a log line: which servers have no address, or gave an error when we
        tried to connect, and which setting names them. Empty if all are silent."""
        found = list(dict.fromkeys(self._unreachable.copy().values()))
        if not found:
            return ""
        more = f" and {len(found) - _MOST_NAMED} more" if found[_MOST_NAMED:] else ""
        said = ", ".join(found[:_MOST_NAMED])
        return f" ({said}{more}: is {self._access.name('hosts')} right?)"

    @property
    def known(self) -> list[tuple[str, str, int]]:
        """Name, address and port of each server, as they were last looked up."""
        return [(name, ip, int(port)) for (ip, port), name in self._names.items()]

    def addresses(
        self, hosts: Iterable[tuple[str, int]], timeout: float
    ) -> list[tuple[str, str, int]]:
        """Looks up name, address and port of all servers. Call it before each round of attempts.

        A name may stand for several servers. Each of them gets its share of the session time-out
        (`timeout`, seconds), as if it had a name of its own. So all are tried within one session
        time-out, as ZooKeeper's Java client does."""
        found: dict[tuple[str, str, int], None] = {}
        unreachable: dict[tuple[str, ...], str] = {}
        for host, port in hosts:
            try:
                known = socket.getaddrinfo(host, port, 0, 0, socket.IPPROTO_TCP)
            except (OSError, UnicodeError) as exc:
                why = getattr(exc, "strerror", None) or exc
                unreachable[(host,)] = f"{host} does not resolve: {why}"
            else:
                found.update({(host, str(each[4][0]), port): None for each in known})
        names: dict[tuple[str, ...], str] = {(ip, str(port)): host for host, ip, port in found}
        old = self._unreachable
        unreachable.update({key: old[key] for key in names if key in old})
        self._names, self._unreachable = names, unreachable
        self._refusals = {key: why for key, why in self._refusals.items() if key in names}
        self.patience = timeout / max(1, len(found))
        addresses = list(found)
        random.shuffle(addresses)
        return addresses

    def note_unreachable(self, ip: str, port: int, exc: Exception) -> None:
        key = ip, str(port)
        self._unreachable.pop(key, None)
        name = self._names.get(key, ip)
        server = f"{name}:{port}" if name == ip else f"{name}:{port} ({ip})"
        if isinstance(exc, ConnectionRefusedError):
            self._unreachable[key] = f"{server} refuses connections"
        elif not isinstance(exc, (TimeoutError, socket.timeout)) and isinstance(exc, OSError):
            self._unreachable[key] = f"{server}: {(exc.strerror or str(exc)).lower()}"

    def note_answer(self) -> None:
        """Forgets who was unreachable: a server has answered, even if it refused us."""
        self._unreachable = {}

    def note_success(self) -> None:
        """Forgets who refused us: a server has accepted us."""
        self._refusals.clear()
        self._suspicion = None

    def note_failure(
        self, exc: Exception, host: str, address: tuple[str, str], connected: bool
    ) -> None:
        """Remembers why a server was left again, if a setting is the cause. If the server had
        accepted the session (`connected`), the connection may just be lost."""
        self._suspicion = None
        self._refusals.pop(address, None)
        why = self._why(exc, f"{host}:{address[1]}", connected)
        if why is not None:
            self._refusals[address] = why

    def _why(self, exc: Exception, server: str, connected: bool) -> str | None:
        """Finds out from the error that ended an attempt what is wrong with a setting. None:
        nothing."""
        access = self._access
        if isinstance(exc, SettingsError):
            return str(exc)
        if isinstance(exc, TlsError):
            if exc.certain:
                return str(exc)
            self._suspicion = str(exc)
            return None
        failure = _sasl_failure(exc)
        if failure is not None:
            return f"{access.name('sasl')}: {failure}"
        if isinstance(exc, ZookeeperError):
            names = [access.name(name) for name in ("auth", "sasl") if getattr(access, name)]
            return f"ZooKeeper at {server} refuses {' or '.join(names)}"
        if not connected and access.tls is not None and isinstance(exc, ConnectionDropped):
            return self._why_hung_up(exc, server)
        return None

    def _why_hung_up(self, exc: Exception, server: str) -> str | None:
        alert = exc.__context__
        if isinstance(alert, ssl.SSLError):
            return tls_refusal(self._access, server, alert)
        self._suspicion = (
            f"ZooKeeper at {server} hangs up after the TLS handshake: it has no quorum, or "
            f"wants another certificate in {self._access.name('tls')}"
        )
        return None


class TlsError(Exception):
    """A failure of TLS. Not an OSError: kazoo would keep too little of that.

    Attributes:
        certain: False if the cause may also be a failure of the network or the server.
    """

    def __init__(self, message: str, certain: bool) -> None:
        super().__init__(message)
        self.certain = certain


def tls_refusal(access: Access, server: str, exc: Exception) -> str:
    """Returns one line that says what went wrong with TLS."""
    name = access.name("tls")
    if isinstance(exc, ssl.SSLCertVerificationError):
        why = exc.verify_message.rstrip(".")
        return f"{name}: the certificate of ZooKeeper at {server} is not accepted: {why}"
    reason = exc.reason if isinstance(exc, ssl.SSLError) else None
    why = (reason or getattr(exc, "strerror", None) or str(exc)).lower().replace("_", " ")
    if " alert " in why:
        ours = f"the certificate of {name}" if access.tls and access.tls.certificate else name
        return f"ZooKeeper at {server} refuses {ours}: {why}"
    return f"{name}: no TLS with ZooKeeper at {server} ({why}): is that its secureClientPort?"


def _sasl_failure(exc: Exception) -> str | None:
    """Returns what went wrong on our side of SASL, without any secret. None: nothing did."""
    cause = exc.__cause__
    # kazoo passes the error on if the look-up of a principal's ticket fails.
    for each in (exc, cause):
        if each is not None and type(each).__module__ == "kerberos":
            # Pairs of a text and a code; the general error comes first; code 0 is no error.
            said = [pair[0] for pair in each.args if isinstance(pair, tuple) and pair[-1]]
            return f"Kerberos: {said[-1] if said else type(each).__name__}"
    in_library = cause is not None and not isinstance(cause, ConnectionDropped)
    if in_library and isinstance(exc, (SASLException, AuthFailedError)):
        return f"{type(cause).__name__} in the SASL library"
    return None
