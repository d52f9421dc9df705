"""Real certificates: an authority, and certificates of this machine that it signs."""

import datetime as dt
import ipaddress
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

PEM = serialization.Encoding.PEM


class Authority:
    """Signs certificates of 127.0.0.1 and localhost.

    Attributes:
        path: Its own certificate, for clients.
        trust: What a client of Python's ssl trusts.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "authority.pem"
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "an authority of this test")])
        constraints = x509.BasicConstraints(ca=True, path_length=0)
        self._own = self._sign(self._name, self._key, 30.0, (constraints, True))
        self.path.write_bytes(self._own.public_bytes(PEM))
        self.trust = ssl.create_default_context(cafile=str(self.path))

    def issue(self, folder: Path, *, days: float = 20.0) -> tuple[Path, Path]:
        """A new certificate with a new key, in cert.pem and key.pem of a folder, one after the other."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a server of this test")])
        certificate = self._sign(subject, key, days, (x509.SubjectAlternativeName(names), False))
        form = serialization.PrivateFormat.PKCS8
        cert_path, key_path = folder / "cert.pem", folder / "key.pem"
        _replace(cert_path, certificate.public_bytes(PEM) + self._own.public_bytes(PEM))
        _replace(key_path, key.private_bytes(PEM, form, serialization.NoEncryption()))
        return cert_path, key_path

    def _sign(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        days: float,
        extension: tuple[x509.ExtensionType, bool],
    ) -> x509.Certificate:
        now = dt.datetime.now(dt.UTC)
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(self._name).public_key(key.public_key())
        builder = builder.serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(now - dt.timedelta(days=40)).not_valid_after(now + dt.timedelta(days=days))
        return builder.add_extension(extension[0], critical=extension[1]).sign(self._key, hashes.SHA256())


def _replace(path: Path, content: bytes) -> None:
    draft = path.with_suffix(".draft")
    draft.write_bytes(content)
    draft.replace(path)
