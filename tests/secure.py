"""ZooKeeper servers that know users, and certificates for them and for us."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from example_project.servers import LOOPBACK, ZooKeeper, free_port

TICK_TIME = 200
#: The users that SASL knows unless a test names others.
BEAT = {"username": "beat", "password": "sesame"}
PROVIDER = "org.apache.zookeeper.server.auth"


@dataclass
class Authority:
    """A CA. Its files are in `folder`."""

    folder: Path

    def __post_init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name("CA")
        now = datetime.now(timezone.utc)
        certificate = _builder("CA", self._name, self._key.public_key(), now, 1)
        certificate = certificate.add_extension(x509.BasicConstraints(True, None), critical=True)
        self.ca = self.folder / "ca.pem"
        self.ca.write_bytes(_pem(certificate.sign(self._key, hashes.SHA256())))

    def issue(self, name: str, *, days: float = 1, password: str = "") -> Path:
        """A PEM file with a key, encrypted if there is a password, and its certificate, which is
        one of 127.0.0.1; expired where `days` is below 0."""
        key = ec.generate_private_key(ec.SECP256R1())
        began = datetime.now(timezone.utc) - timedelta(days=10)
        certificate = _builder(name, self._name, key.public_key(), began, 10 + days)
        names = [x509.IPAddress(ipaddress.ip_address(LOOPBACK))]
        certificate = certificate.add_extension(x509.SubjectAlternativeName(names), critical=False)
        secret = (
            serialization.BestAvailableEncryption(password.encode())
            if password
            else serialization.NoEncryption()
        )
        path = self.folder / f"{name}.pem"
        path.write_bytes(
            key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, secret)
            + _pem(certificate.sign(self._key, hashes.SHA256()))
        )
        return path


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _builder(
    subject: str,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    began: datetime,
    days: float,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(began)
        .not_valid_after(began + timedelta(days=days))
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


class SecureZooKeeper(ZooKeeper):
    """A server that knows digest users, a SASL user with a password, and certificates.

    Attributes:
        secure_port: the port with TLS.
        users: the users of SASL DIGEST-MD5: password by name. The server reads them when it starts.

    Args:
        certificate: the server's PEM file with certificate and key.
        client_certificate: ``want`` or ``need``.
    """

    def __init__(
        self,
        folder: Path,
        authority: Authority,
        certificate: Path,
        *,
        client_certificate: str = "want",
        users: dict[str, str] | None = None,
    ) -> None:
        self.secure_port = free_port()
        self.users = users or {BEAT["username"]: BEAT["password"]}
        self._jaas = folder / "jaas.conf"
        super().__init__(
            folder,
            tick_time=TICK_TIME,
            config={
                "secureClientPort": self.secure_port,
                "secureClientPortAddress": LOOPBACK,
                "serverCnxnFactory": "org.apache.zookeeper.server.NettyServerCnxnFactory",
                "ssl.keyStore.location": certificate,
                "ssl.keyStore.type": "PEM",
                "ssl.trustStore.location": authority.ca,
                "ssl.trustStore.type": "PEM",
                "ssl.clientAuth": client_certificate,
            },
            java=[
                f"-Djava.security.auth.login.config={self._jaas}",
                f"-Dzookeeper.authProvider.sasl={PROVIDER}.SASLAuthenticationProvider",
                f"-Dzookeeper.authProvider.x509={PROVIDER}.X509AuthenticationProvider",
            ],
        )

    @property
    def secure_hosts(self) -> str:
        return f"{LOOPBACK}:{self.secure_port}"

    def start(self, *, wait: bool = True) -> SecureZooKeeper:
        users = " ".join(f'user_{name}="{password}"' for name, password in self.users.items())
        module = f"org.apache.zookeeper.server.auth.DigestLoginModule required {users};"
        self._jaas.write_text(f"Server {{ {module} }};\n")
        super().start(wait=wait)
        return self
