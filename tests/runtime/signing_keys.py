"""Keys that files are signed with."""

from pathlib import Path


def write_key(folder: Path, name: str, *, password: bytes = b"", other: bool = False) -> tuple[Path, Path]:
    """A private key NAME.pem of the curve P-256, or of Ed25519, and its public one, NAME.public.pem."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

    private = ed25519.Ed25519PrivateKey.generate() if other else ec.generate_private_key(ec.SECP256R1())
    cipher = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    paths = folder / f"{name}.pem", folder / f"{name}.public.pem"
    paths[0].write_bytes(private.private_bytes(pem, form, cipher))
    paths[1].write_bytes(private.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    return paths
