"""The certificate by which clients know the server, and its private key: files that are read again when they change."""

import datetime as dt
import logging
import ssl
import time
from pathlib import Path

from s2ap_defend.errors import RecipeError

__all__ = ["Certificate", "expiry_of"]

logger = logging.getLogger(__name__)

SOON_S = 14 * 24 * 3600.0
BEGIN, END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
UTC_TIME = 0x17  # of ASN.1, two digits of the year; GeneralizedTime has four
CONTEXT_0 = 0xA0


class Certificate:
    """A certificate with its chain and key, as it is in use.

    Args:
        chain: PEM file of the certificate, and of those that lead to a root, if there are any.
        key: PEM file of its private key, not encrypted.

    Attributes:
        context: For new connections over HTTP.
        pem: Key and chain for those over gRPC.
        expires_s: When it ends, in seconds since 1970.

    Raises:
        RecipeError: If a file cannot be read or used, or they do not belong together.
    """

    def __init__(self, chain: Path, key: Path) -> None:
        self.paths = (chain, key)
        self.read()

    def read(self) -> None:
        """Read the files, and use what is in them from now on; from any thread.

        Raises:
            RecipeError: If a file cannot be read or used, or they do not belong together; nothing has changed then.
        """
        chain_path, key_path = self.paths
        chain, key = _read(chain_path, "certificate"), _read(key_path, "private key")
        if BEGIN.encode() not in chain:
            raise RecipeError(f"the certificate file {chain_path} has no certificate in PEM ({BEGIN})")
        if b"PRIVATE KEY-----" not in key:
            raise RecipeError(
                f"the private key file {key_path} has no private key in PEM (-----BEGIN PRIVATE KEY-----)"
            )
        if b"ENCRYPTED" in key:
            raise RecipeError(
                f"the private key file {key_path} is encrypted, and there is nobody to ask for its password; decrypt "
                "it with `openssl pkey -in FILE -out FILE`"
            )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        try:
            context.load_cert_chain(chain_path, key_path)
            expires_s = expiry_of(chain.decode("ascii"))
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                raise RecipeError(
                    f"the private key of {key_path} is not that of the certificate of {chain_path}; give the two that "
                    "belong together, the server's own certificate first in its file"
                ) from error
            raise RecipeError(f"cannot use {chain_path} with {key_path}: {error.reason or error}") from error
        except (OSError, ValueError) as error:
            raise RecipeError(f"cannot use {chain_path} with {key_path}: {error}") from error
        self.context, self.pem, self.expires_s = context, (key, chain), expires_s

    def renew(self) -> None:
        """Read the files again, and log how long what is in them is valid.

        Raises:
            RecipeError: If a file cannot be read or used, or they do not belong together; nothing has changed then.
        """
        self.read()
        self.log()

    def log(self) -> None:
        """Log how long it is valid."""
        left_s = self.expires_s - time.time()
        end = dt.datetime.fromtimestamp(self.expires_s, tz=dt.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        if left_s <= 0:
            logger.warning("the certificate of %s has expired, on %s: clients refuse it", self.paths[0], end)
        elif left_s < SOON_S:
            logger.warning("the certificate of %s expires in %.1f days, on %s", self.paths[0], left_s / 86400, end)
        else:
            logger.info("the certificate of %s is valid until %s", self.paths[0], end)


def expiry_of(chain: str) -> float:
    """When the first certificate of a PEM text ends, in seconds since 1970.

    Python's ssl shows the dates of a certificate only after a handshake that accepts it, so they are read here. A
    certificate begins SEQUENCE, SEQUENCE, [0] version, serial number, algorithm, issuer, validity (RFC 5280, 4.1).

    Raises:
        ValueError: If it is no certificate.
    """
    try:
        der = ssl.PEM_cert_to_DER_cert(chain[chain.index(BEGIN) : chain.index(END) + len(END)])
        at, _ = _content(der, _content(der, 0)[0])
        if der[at] == CONTEXT_0:
            at = _content(der, at)[1]
        for _ in range(3):  # serial number, algorithm, issuer
            at = _content(der, at)[1]
        not_before, _ = _content(der, at)
        not_after = _content(der, not_before)[1]
        start, stop = _content(der, not_after)
        text = der[start:stop].decode("ascii")
        if der[not_after] == UTC_TIME:
            text = ("20" if int(text[:2]) < 50 else "19") + text
        end = dt.datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=dt.UTC)
    except (IndexError, ValueError) as error:
        raise ValueError("the first certificate of the file is none") from error
    return end.timestamp()


def _content(der: bytes, at: int) -> tuple[int, int]:
    """Where the content of the value at `at` begins, and where it ends."""
    length, start = der[at + 1], at + 2
    if length >= 0x80:
        digits = length - 0x80
        length, start = int.from_bytes(der[start : start + digits], "big"), start + digits
    return start, start + length


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RecipeError(f"cannot read the {what} file {path}: {error.strerror or error}") from error
