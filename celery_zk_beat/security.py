"""Credentials, TLS and ACLs: how this process logs in to ZooKeeper, which servers it trusts, and
what others may do with its znodes.

A secret (a password) has one of four forms, which are the same everywhere::

    "user:password"                     text
    {"env": "ZOOKEEPER_AUTH"}           an environment variable
    {"file": "/run/secrets/zookeeper"}  a file; a line break at its end does not count
    read_it                             a function without arguments that returns it

All but the first are read again at each attempt to connect. So are the files of certificates. The
function may be called on any thread, and should not take long.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Callable, NamedTuple, Union

from .errors import SettingsError

__all__ = ["Access", "Grant", "Sasl", "Secret", "Tls"]

_SECRET_FORMS = 'text, {"env": NAME}, {"file": PATH} or a function that returns it'
_DIGEST, _KERBEROS = "DIGEST-MD5", "GSSAPI"
#: The letters that ZooKeeper's own tools use for rights, and the bits of its protocol.
_RIGHTS = {"c": 4, "d": 8, "r": 1, "w": 2, "a": 16}
_ALL = sum(_RIGHTS.values())
#: What a beat does with its znodes: everything but changing their ACLs.
_NEEDED = _ALL - _RIGHTS["a"]

Source = Union[str, Mapping[str, str], Callable[[], str]]


class Secret:
    """A text that is never shown: its str and repr are ``***``.

    Raises:
        SettingsError: it has none of the forms above.
    """

    __slots__ = ("_source",)

    def __init__(self, source: Source) -> None:
        if isinstance(source, Mapping):
            form = list(source.items())
            good = len(form) == 1 and form[0][0] in ("env", "file")
            good = good and isinstance(form[0][1], (str, os.PathLike)) and bool(form[0][1])
        else:
            good = callable(source) or (isinstance(source, str) and bool(source))
        if not good:
            raise SettingsError(f"(hidden): expected {_SECRET_FORMS}")
        self._source = source

    def read(self) -> str:
        """Returns the text as it is now.

        Raises:
            SettingsError: it cannot be read. The message says from where.
        """
        source = self._source
        if isinstance(source, str):
            return source
        if isinstance(source, Mapping):
            return _from_file(source["file"]) if "file" in source else _from_env(source["env"])
        name = getattr(source, "__qualname__", type(source).__name__)
        try:
            text = source()
        except Exception as exc:  # its text may contain the secret
            raise SettingsError(f"{name}() raised {type(exc).__name__}") from None
        if not isinstance(text, str) or not text:
            raise SettingsError(f"{name}() returned no text, but {type(text).__name__}")
        return text

    @property
    def is_text(self) -> bool:
        """True if the configuration itself contains it."""
        return isinstance(self._source, str)

    def __repr__(self) -> str:
        return "***"

    def __reduce__(self) -> Any:
        raise TypeError("a secret must not be pickled")


def _from_file(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except OSError as exc:
        raise SettingsError(f"file {str(path)!r}: {exc.strerror}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"file {str(path)!r}: not UTF-8") from None
    text = text[:-1] if text.endswith("\n") else text
    text = text[:-1] if text.endswith("\r") else text
    if not text:
        raise SettingsError(f"file {str(path)!r}: empty")
    return text


def _from_env(name: str) -> str:
    text = os.environ.get(name)
    if not text:
        raise SettingsError(
            f"environment variable {name!r}: {'empty' if text == '' else 'not set'}"
        )
    return text


class Grant(NamedTuple):
    """One entry of an ACL: the user that `scheme` calls `id` has these rights, a sum of bits."""

    scheme: str
    id: str
    rights: int

    def __str__(self) -> str:
        rights = "".join(letter for letter, bit in _RIGHTS.items() if self.rights & bit)
        return f"{self.scheme}:{self.id}:{rights}"


_CREATOR = Grant("auth", "", _ALL)
_WORLD = Grant("world", "anyone", _ALL)


@dataclass(frozen=True)
class Sasl:
    """The attributes are the keys of ``zk_beat_sasl``."""

    mechanism: str
    service: str
    username: str | None = None
    password: Secret | None = None
    principal: str | None = None

    def options(self) -> dict[str, str]:
        """Returns the options for kazoo, with the password.

        Raises:
            SettingsError: the password cannot be read.
        """
        options = {"mechanism": self.mechanism, "service": self.service}
        for name in ("username", "principal"):
            if getattr(self, name) is not None:
                options[name] = getattr(self, name)
        if self.password is not None:
            try:
                options["password"] = self.password.read()
            except SettingsError as exc:
                raise SettingsError(f"password: {exc}") from None
        return options


@dataclass(frozen=True)
class Tls:
    """The attributes are the keys of ``zk_beat_tls``."""

    ca: str | None = None
    certificate: str | None = None
    key: str | None = None
    key_password: Secret | None = None
    verify: bool = True
    check_hostname: bool = True

    def context(self) -> ssl.SSLContext:
        """Makes a context from the files as they are now.

        Raises:
            SettingsError: a file, or the key's password, cannot be read.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.check_hostname = self.verify and self.check_hostname
        context.verify_mode = ssl.CERT_REQUIRED if self.verify else ssl.CERT_NONE
        if self.ca is not None:
            # Instead of the system's CAs: a user with a CA of their own trusts no other.
            _load("ca", self.ca, lambda: context.load_verify_locations(self.ca))
        elif self.verify:
            context.load_default_certs(ssl.Purpose.SERVER_AUTH)
        if self.certificate is not None:
            self._load_certificate(context, self.certificate)
        return context

    def _load_certificate(self, context: ssl.SSLContext, certificate: str) -> None:
        key = self.key or certificate
        _load("certificate", certificate, lambda: open(certificate, "rb").close())
        try:
            password = "" if self.key_password is None else self.key_password.read()
        except SettingsError as exc:
            raise SettingsError(f"key_password: {exc}") from None
        # Always give a password: without one OpenSSL asks the terminal.
        _load("key", key, lambda: context.load_cert_chain(certificate, key, lambda: password))


def _load(name: str, path: str, load: Callable[[], object]) -> None:
    try:
        load()
    except ssl.SSLError:
        hint = ": is key_password right, and is it the certificate's?" if name == "key" else ""
        raise SettingsError(f"{name} {path!r}: cannot be understood{hint}") from None
    except OSError as exc:
        raise SettingsError(f"{name} {path!r}: {exc.strerror}") from None
    except ValueError as exc:  # a password that is too long, a path with a NUL
        raise SettingsError(f"{name} {path!r}: {exc}") from None


@dataclass(frozen=True, repr=False)
class Identity:
    """Credentials as ZooKeeper gets them, in plain text. Use and forget them.

    Attributes:
        user: ``user:password`` of the digest scheme.
        sasl: the options for kazoo.
        certificate: the content of the file.
    """

    user: str | None
    sasl: dict[str, str] | None
    certificate: bytes

    def fingerprint(self) -> bytes:
        """Returns a digest that later shows whether the credentials have changed."""
        sasl = sorted((self.sasl or {}).items())
        return hashlib.sha256(repr((self.user, sasl, self.certificate)).encode()).digest()


@dataclass(frozen=True)
class Access:
    """The credentials, TLS and ACL of one client. Immutable; its repr shows no secret.

    Attributes:
        auth: ``user:password`` of ZooKeeper's digest scheme.
        sasl, tls: see :class:`Sasl` and :class:`Tls`.
        acl: the rights on each znode that we create. None: all rights for its creator alone, or, if
            there are no credentials, for everybody.
        prefix: the prefix that the names of these four settings have.
    """

    auth: Secret | None = None
    sasl: Sasl | None = None
    tls: Tls | None = None
    acl: tuple[Grant, ...] | None = None
    prefix: str = field(default="", repr=False)

    @classmethod
    def checked(cls, auth: object, sasl: object, tls: object, acl: object) -> Access:
        """Makes an Access from the values that users give.

        Raises:
            SettingsError: one of them cannot work.
        """
        values: dict[str, Any] = {}
        for name, value, check in (
            ("auth", auth, check_auth),
            ("sasl", sasl, check_sasl),
            ("tls", tls, check_tls),
            ("acl", acl, check_acl),
        ):
            try:
                values[name] = check(value)
            except SettingsError as exc:
                raise SettingsError(f"{name} = {exc}") from None
        access = cls(**values)
        access.check()
        return access

    def check(self) -> None:
        """Checks what needs more than one setting.

        Raises:
            SettingsError: the ACL has the scheme auth, but there are no credentials.
        """
        self.check_acl("acl", self.acl)

    def check_acl(self, setting: str, acl: tuple[Grant, ...] | None) -> None:
        """Does the same for the ACL of another setting."""
        if acl and not self.identified and any(grant.scheme == "auth" for grant in acl):
            raise SettingsError(
                f"{self.name(setting)} = {str(acl[0])!r}: its scheme auth stands for the user "
                f"that this process is to ZooKeeper: set {self.credentials('or')}"
            )

    def name(self, setting: str) -> str:
        """Returns the name under which users know ``auth``, ``sasl``, ``tls`` or ``acl``."""
        return self.prefix + (setting.upper() if self.prefix.isupper() else setting)

    @property
    def identified(self) -> bool:
        """True if this process has credentials."""
        certificate = self.tls is not None and self.tls.certificate is not None
        return self.auth is not None or self.sasl is not None or certificate

    @property
    def authenticates(self) -> bool:
        """True if credentials must be sent after the connection is made and before it is used."""
        return self.auth is not None or self.sasl is not None

    def credentials(self, word: str) -> str:
        """Returns the names of the settings that hold credentials, joined by `word`. If there are
        no credentials: of all settings that could hold some."""
        names = [
            self.name(name)
            for name in ("auth", "sasl")
            if getattr(self, name) is not None or not self.identified
        ]
        if not self.identified:
            names.append(f"a certificate in {self.name('tls')}")
        elif self.tls is not None and self.tls.certificate is not None:
            names.append(f"the certificate of {self.name('tls')}")
        return f" {word} ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)

    @property
    def grants(self) -> tuple[Grant, ...]:
        """The ACL of each znode that we create."""
        return self.acl or ((_CREATOR,) if self.identified else (_WORLD,))

    @property
    def open_by_default(self) -> bool:
        """True if everybody may do everything, and no setting asks for that."""
        return self.acl is None and not self.identified

    def excess(self, found: Iterable[Grant]) -> list[Grant]:
        """Returns the entries of a znode's ACL that give everybody, or an address, more than
        :attr:`grants` does. Users with a name do not count: somebody gave them their rights on
        purpose."""
        meant = {(grant.scheme, grant.id): grant.rights for grant in self.grants}
        return [
            grant
            for grant in found
            if grant.scheme in ("world", "ip")
            and grant.rights & ~meant.get((grant.scheme, grant.id), 0)
        ]

    def identity(self) -> Identity:
        """Reads the credentials as they are now.

        Raises:
            SettingsError: a secret cannot be read, or is not what it should be.
        """
        user, sasl, certificate = None, None, b""
        if self.auth is not None:
            try:
                user = self.auth.read()
                _check_user_and_password(user)
            except SettingsError as exc:
                raise SettingsError(f"{self.name('auth')}: {exc}") from None
        if self.sasl is not None:
            try:
                sasl = self.sasl.options()
            except SettingsError as exc:
                raise SettingsError(f"{self.name('sasl')}: {exc}") from None
        if self.tls is not None and self.tls.certificate is not None:
            with contextlib.suppress(OSError), open(self.tls.certificate, "rb") as file:
                certificate = file.read()
        return Identity(user, sasl, certificate)

    def tls_context(self) -> ssl.SSLContext:
        """Makes a TLS context from the files as they are now. Raises as :meth:`identity`."""
        assert self.tls is not None
        try:
            return self.tls.context()
        except SettingsError as exc:
            raise SettingsError(f"{self.name('tls')}: {exc}") from None


# What users give ----------------------------------------------------------------------------------


def check_auth(value: Any) -> Secret | None:
    """Checks a secret of the form ``user:password``.

    Raises:
        SettingsError: it is anything else. The error does not show the value.
    """
    if value is None:
        return None
    secret = value if isinstance(value, Secret) else Secret(value)
    if secret.is_text:
        try:
            _check_user_and_password(secret.read())
        except SettingsError as exc:
            raise SettingsError(f"(hidden): {exc}") from None
    return secret


def _check_user_and_password(text: str) -> None:
    user, colon, password = text.partition(":")
    if not (user and colon and password):
        raise SettingsError("expected 'user:password'")


def check_sasl(value: Any) -> Sasl | None:
    """Checks a dict with ``mechanism`` and, if it is not ``"zookeeper"``, ``service``. The
    mechanism ``"DIGEST-MD5"`` needs ``username`` and ``password``. ``"GSSAPI"`` may have a
    ``principal``, and takes the ticket from the cache of the process.

    Raises:
        SettingsError: it is anything else, or a library is missing.
    """
    if value is None:
        return None
    options = _options(value, ("mechanism", "service", "username", "password", "principal"))
    mechanism = options.get("mechanism", _DIGEST)
    if mechanism not in (_DIGEST, _KERBEROS):
        raise SettingsError(f"mechanism {mechanism!r}: expected {_DIGEST!r} or {_KERBEROS!r}")
    password = options.pop("password", None)
    for name, each in options.items():
        if not isinstance(each, str) or not each:
            raise SettingsError(f"{name} {each!r}: expected a text")
    options = {"mechanism": mechanism, "service": "zookeeper", **options}
    needed, wrong = {"username", "password"}, {"principal"}
    if mechanism == _KERBEROS:
        needed, wrong = set(), needed
    given = {*options, *(["password"] if password is not None else [])}
    if given & wrong or needed - given:
        what = "username and password" if needed else "no username and no password"
        raise SettingsError(f"(hidden): {mechanism} takes {what}")
    module = "puresasl" if mechanism == _DIGEST else "kerberos"
    for library in ("puresasl", module):
        if importlib.util.find_spec(library) is None:
            extra = "sasl" if library == "puresasl" else "kerberos"
            raise SettingsError(
                f"(hidden): {mechanism} needs a library: pip install 'celery-zk-beat[{extra}]'"
            )
    return Sasl(**options, password=_secret("password", password))


def check_tls(value: Any) -> Tls | None:
    """Checks True (use the system's CAs), or a dict with some of ``ca``, ``certificate``, ``key``
    (paths of PEM files), ``key_password`` (a secret), ``verify`` and ``check_hostname`` (both True
    by default).

    Raises:
        SettingsError: it is anything else.
    """
    if value is None or value is False:
        return None
    if value is True:
        return Tls()
    options = _options(value, tuple(Tls.__dataclass_fields__))
    for name in ("ca", "certificate", "key"):
        path = options.get(name)
        if path is not None:
            if not isinstance(path, (str, os.PathLike)) or not os.fspath(path):
                raise SettingsError(f"{name} {path!r}: expected the path of a PEM file")
            options[name] = os.fspath(path)
    for name in ("verify", "check_hostname"):
        if not isinstance(options.get(name, True), bool):
            raise SettingsError(f"{name} {options[name]!r}: expected True or False")
    for name, needs in (("key", "certificate"), ("key_password", "certificate")):
        if options.get(name) is not None and options.get(needs) is None:
            raise SettingsError(f"(hidden): {name} has no effect without {needs}")
    options["key_password"] = _secret("key_password", options.get("key_password"))
    return Tls(**options)


def check_acl(value: Any) -> tuple[Grant, ...] | None:
    """Checks a text such as ``setAcl`` of ZooKeeper's own command line takes,
    ``"auth::cdrwa,world:anyone:r"``, or a list of such entries.

    Raises:
        SettingsError: it is anything else, or nobody gets the rights that a beat needs.
    """
    if value is None:
        return None
    wanted = "scheme:id:rights such as 'auth::cdrwa,world:anyone:r'"
    texts = value.split(",") if isinstance(value, str) else value
    if not isinstance(texts, (list, tuple)) or not texts:
        raise SettingsError(f"{value!r}: expected {wanted}")
    grants = []
    for text in texts:
        scheme, colon, rest = text.strip().partition(":") if isinstance(text, str) else ("",) * 3
        id, other, letters = rest.rpartition(":")
        if not (scheme and colon and other and letters and set(letters) <= set(_RIGHTS)):
            raise SettingsError(f"{value!r}: {text!r} is not {wanted}")
        if not id and scheme != "auth":
            raise SettingsError(f"{value!r}: {text!r} is not {wanted}: it names nobody")
        grants.append(Grant(scheme, id, sum(_RIGHTS[letter] for letter in set(letters))))
    if not any(grant.rights & _NEEDED == _NEEDED for grant in grants):
        raise SettingsError(f"{value!r}: a beat needs the rights cdrw, and no entry has them all")
    return tuple(grants)


def _options(value: Any, known: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not value:
        raise SettingsError(f"(hidden): expected a dict with some of {', '.join(known)}")
    for key in value:
        if key not in known:
            raise SettingsError(f"(hidden): {key!r} is none of {', '.join(known)}")
    return dict(value)


def _secret(name: str, value: Any) -> Secret | None:
    if value is None or isinstance(value, Secret):
        return value
    try:
        return Secret(value)
    except SettingsError as exc:
        raise SettingsError(f"{name} {exc}") from None
