"""Signatures of model files by elliptic-curve keys, in the format of OpenSSF model signing (sigstore bundles).

The signature is of the file itself. Weights in external data are covered by their SHA-256 in the manifest, which is in
the file. Nothing is fetched and nothing is sent.
"""

import tempfile
from pathlib import Path
from types import ModuleType

from s2ap_defend.errors import ModelFileError, RecipeError
from s2ap_defend.files import check_writable, replace_file
from s2ap_defend.verification import Check

__all__ = ["check_signature", "sign_file", "signature_path"]

_CURVES = "openssl ecparam -name prime256v1 -genkey -noout -out private.pem makes one"
_PUBLIC = "openssl ec -in private.pem -pubout -out public.pem makes it of a private one"


def signature_path(model: Path) -> Path:
    """Where the signature of a file lies if nothing else is said."""
    return model.with_name(f"{model.name}.sig")


def sign_file(model: Path, key: Path, signature: Path) -> None:
    """Sign a model file.

    Args:
        model: A verified file.
        key: PEM file of a private key, of the curve P-256, P-384 or P-521, without a password.
        signature: The file to write.

    Raises:
        RecipeError: If the key cannot be used, the output is the model or the key, or the extra is missing.
        ModelFileError: If the signature cannot be written.
    """
    library = _library()
    _check_file(key, "private key", _CURVES)
    for taken in (model, key):
        if signature.resolve() == taken.resolve():
            raise RecipeError(f"the signature {signature} would overwrite {taken}; name another file")
    check_writable(signature)
    try:
        signer = library.signing.Config().use_elliptic_key_signer(private_key=key)
    except Exception as error:  # the library raises what its libraries do
        raise RecipeError(
            f"{key} is no private key that can be used ({_line(error)}); it must be a file of P-256, P-384 or P-521, "
            f"without a password: {_CURVES}"
        ) from error
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder, "signature")
        signer.sign(model.resolve(), made)
        try:
            replace_file(signature, made.read_bytes())
        except OSError as error:
            raise ModelFileError(f"{signature} cannot be written: {error.strerror or error}") from error


def check_signature(model: Path, key: Path, signature: Path) -> Check:
    """Whether a file is the one that the owner of a key signed.

    Args:
        model: The file.
        key: PEM file of the public key.
        signature: The signature.

    Raises:
        RecipeError: If the key cannot be used, the signature is not there, or the extra is missing.
    """
    library = _library()
    _check_file(key, "public key", _PUBLIC)
    _check_file(signature, "signature", "name it with --signature, or sign the file with s2ap-defend sign")
    try:
        verifier = library.verifying.Config().use_elliptic_key_verifier(public_key=key)
    except Exception as error:  # likewise
        raise RecipeError(f"{key} is no public key that can be used ({_line(error)}); {_PUBLIC}") from error
    try:
        verifier.verify(model.resolve(), signature)
    except Exception as error:  # the library raises what its libraries do
        other = str(error).startswith("Signature mismatch")
        what = (
            f"{model} is not the file that was signed" if other else f"{signature} is no signature by the key of {key}"
        )
        return Check("signature", "failed", f"{what}; do not use the file, and ask its maker for another")
    return Check("signature", "passed", f"the file that the owner of {key} signed")


def _library() -> ModuleType:
    try:
        import model_signing
    except ModuleNotFoundError as error:
        raise RecipeError(
            f"signatures need {error.name}, of the extra [signing]; pip install '.[signing]' in a checkout"
        ) from error
    return model_signing


def _check_file(path: Path, what: str, cure: str) -> None:
    if not path.is_file():
        raise RecipeError(f"the {what} {path} {'is a folder' if path.is_dir() else 'does not exist'}; {cure}")


def _line(error: Exception) -> str:
    if isinstance(error, AttributeError):  # of a curve
        return "it is of no elliptic curve"
    return (str(error).strip().splitlines() or [type(error).__name__])[0].split(" See ")[0].rstrip(".")
