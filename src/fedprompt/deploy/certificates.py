"""A private certificate authority, the server's certificate and the sites' key pairs, by the `cryptography` library."""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import os
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedprompt.errors import UserError
from fedprompt.records.atomic_files import write_atomic

DAYS = 730  # validity of a server certificate
Key = ec.EllipticCurvePrivateKey


def make_authority(key_file: Path, certificate_file: Path, *, name: str) -> None:
    """Write a certificate authority: its key stays with the server's operator, its certificate goes to every site.

    With an existing key the certificate is renewed: whoever trusts the old one accepts what this key signs.
    """
    if not key_file.exists():
        write_private(key_file, _pem(ec.generate_private_key(ec.SECP256R1())))
    key = _private_key(key_file)
    subject = _name(f"{name} authority")
    usage = x509.KeyUsage(
        key_cert_sign=True,
        crl_sign=True,
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    builder = (
        _builder(subject, subject, key.public_key(), days=5 * DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
    )
    _write_certificate(certificate_file, builder, key)


def days_left(certificate: Path) -> int:
    """Whole days until a certificate expires, negative afterwards; UserError for a file that is none."""
    return (_certificate(certificate).not_valid_after_utc - _now()).days


def authority_fingerprint(certificate: Path) -> str:
    """The fingerprint of a certificate's public key, which stays the same when the certificate is renewed."""
    public = _certificate(certificate).public_key()
    encoded = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return fingerprint(encoded)


def fingerprint(public: bytes) -> str:
    """Thirty digits in groups of five that stand for a public key, from its SHA-256 hash, to be read aloud."""
    digits = f"{int.from_bytes(hashlib.sha256(public).digest(), 'big') % 10**30:030d}"
    return " ".join(digits[start : start + 5] for start in range(0, 30, 5))


def make_server_certificate(folder: Path, authority_key: Path, authority: Path, *, hosts: Sequence[str]) -> None:
    """Write `server.key`, unless it exists, and `server.pem` for these host names and IP addresses."""
    signer, issuer = _private_key(authority_key), x509.load_pem_x509_certificate(authority.read_bytes())
    private = folder / "server.key"
    if not private.exists():
        write_private(private, _pem(ec.generate_private_key(ec.SECP256R1())))
    key = _private_key(private)
    builder = (
        _builder(_name(hosts[0]), issuer.subject, key.public_key(), days=DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([_host(host) for host in dict.fromkeys(hosts)]), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    _write_certificate(folder / "server.pem", builder, signer)


def make_site_key(private_file: Path) -> None:
    """Write the private key (P-384, OpenSSH) with which a site connects."""
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    write_private(private_file, private)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, *, days: int
) -> x509.CertificateBuilder:
    now = _now()
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))  # the sites' clocks may differ
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no certificate; restore it, or renew it at the server.") from error


def _private_key(path: Path) -> Key:
    """An elliptic-curve key that this module wrote."""
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} is no private key; give the file of the key that was made with it.") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise UserError(f"{path} is no elliptic-curve key; give the file that `fedprompt deploy init` made.")
    return key


def _write_certificate(path: Path, builder: x509.CertificateBuilder, signer: Key) -> None:
    write_atomic(path, builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common[:64])])


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(key: Key) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def write_private(path: Path, content: bytes) -> None:
    """Write a file that only its owner can read from the first moment; an existing file is never overwritten."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
