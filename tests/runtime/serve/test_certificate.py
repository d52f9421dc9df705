"""Certificates and their keys as files: when they end, what cannot be used, where they are needed."""

import logging
import time

import httpx
import pytest
from cryptography.hazmat.primitives import serialization
from tests.runtime.serve.certificates import Authority
from tests.runtime.serve.key_files import Ring
from tests.runtime.serve.live import live

from s2ap_defend.commands.main import run
from s2ap_defend.errors import RecipeError
from s2ap_defend.serve import ServerConfig
from s2ap_defend.serve.certificate import Certificate


def test_when_it_ends_is_in_the_metrics_and_in_the_log(classifier, authority, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    for days, said in ((20.0, "is valid until 20"), (3.0, "expires in 3.0 days, on 20"), (-1.0, "has expired, on 20")):
        certificate = Certificate(*authority.issue(tmp_path, days=days))
        certificate.log()
        assert f"the certificate of {tmp_path / 'cert.pem'} {said}" in caplog.text
        assert certificate.expires_s == pytest.approx(time.time() + 86400 * days, abs=60)
    files = authority.issue(tmp_path)
    with (
        live(classifier, tls_cert=files[0], tls_key=files[1]) as server,
        httpx.Client(base_url=server.url, verify=authority.trust) as client,
    ):
        (line,) = [one for one in client.get("/metrics").text.splitlines() if one.startswith("s2ap_tls_certificate_ex")]
        assert float(line.split()[1]) == pytest.approx(time.time() + 86400 * 20, abs=60)


def swapped(cert, key):
    return key, cert


def of_another(cert, key):
    other = key.parent / "other"
    other.mkdir()
    return cert, Authority(other).issue(other)[1]


def encrypted(cert, key):
    private = serialization.load_pem_private_key(key.read_bytes(), None)
    cipher = serialization.BestAvailableEncryption(b"secret")
    form = serialization.PrivateFormat.PKCS8
    key.write_bytes(private.private_bytes(serialization.Encoding.PEM, form, cipher))
    return cert, key


def missing(cert, key):
    key.unlink()
    return cert, key


def broken(cert, key):
    cert.write_text(cert.read_text().replace("MII", "!!!", 1))
    return cert, key


def without_a_key(cert, key):
    return cert, None


def without_a_certificate(cert, key):
    return None, key


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (swapped, "has no certificate in PEM (-----BEGIN CERTIFICATE-----)"),
        (of_another, "is not that of the certificate of"),
        (encrypted, "is encrypted, and there is nobody to ask for its password; decrypt it with `openssl pkey"),
        (missing, "cannot read the private key file"),
        (broken, "cannot use"),
        (without_a_key, "--tls-cert needs --tls-key; give both"),
        (without_a_certificate, "--tls-key needs --tls-cert; give both"),
    ],
)
def test_files_that_cannot_be_used_are_one_line(files, tiny_model_path, capsys, spoil, said):
    cert, key = spoil(*files)
    options = [f"--tls-cert={cert}"] * (cert is not None) + [f"--tls-key={key}"] * (key is not None)
    assert run(["serve", str(tiny_model_path), *options]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_public_address_is_safe_with_keys_and_tls_and_says_what_is_missing(files, tmp_path):
    ring = Ring(tmp_path)
    keys, tls = {"keys": ring.path}, {"tls_cert": files[0], "tls_key": files[1]}
    public = {"model": tmp_path / "model.onnx", "host": "0.0.0.0"}  # noqa: S104
    assert not ServerConfig(**public, **keys, **tls).insecure
    for given, lacks in (
        ({}, "no authentication and no encryption"),
        (keys, "no encryption"),
        (tls, "no authentication"),
    ):
        with pytest.raises(RecipeError, match=f"and this server has {lacks}; give --keys, --tls-cert and --tls-key"):
            ServerConfig(**public, **given)
        assert ServerConfig(**public, **given, insecure=True).lacks() == lacks
