"""Identities of sites: Ed25519 keys made at the site, public keys exchanged as files, fingerprints to read aloud."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fedprompt.deploy.certificates import make_site_key, write_private
from fedprompt.errors import UserError
from fedprompt.federated.secure.session import Identity
from fedprompt.records.atomic_files import write_atomic
from fedprompt.text_files import read_unicode

NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$"  # of a deployment or a site: used in file names and command lines
# The private keys in a site's folder: with the first it signs, with the second it connects to the server.
IDENTITY, NODE = "identity.key", "site.key"
KIND = "ssh-ed25519"


def make_site_keys(folder: Path, name: str) -> Path:
    """Make the two key pairs of a site, as far as they are missing, and write the public keys to `NAME.pub`."""
    public = folder / f"{name}.pub"
    if not (folder / NODE).exists():
        make_site_key(folder / NODE)
    if not (folder / IDENTITY).exists():
        write_private(folder / IDENTITY, _pem(Ed25519PrivateKey.generate()))
    node = serialization.load_ssh_private_key((folder / NODE).read_bytes(), password=None).public_key()
    line = node.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()
    write_atomic(public, f"{line} {name}\n{public_line(load_identity(folder).public, name)}\n")
    return public


def rotate_site_keys(folder: Path, name: str) -> Path:
    """Replace both key pairs of a site; the old ones are deleted."""
    for file in (folder / NODE, folder / IDENTITY):
        file.unlink(missing_ok=True)
    return make_site_keys(folder, name)


def load_identity(folder: Path) -> Identity:
    """A site's identity key. Raises UserError if there is none, or if others than its owner can read it."""
    path = folder / IDENTITY
    if not path.exists():
        raise UserError(f"There is no {path}; make it with: fedprompt site init {folder}")
    if os.name == "posix" and path.stat().st_mode & 0o077:
        raise UserError(f"Others can read the private key {path}; protect it with: chmod 600 {path}")
    try:
        key = serialization.load_ssh_private_key(path.read_bytes(), password=None)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UserError(f"{path} is no private key; restore it or make new ones with: fedprompt site rotate") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise UserError(f"{path} is no Ed25519 key; make new ones with: fedprompt site rotate {folder}")
    return Identity(key.private_bytes_raw())


def public_line(public: bytes, name: str) -> str:
    """A public identity key as a line of OpenSSH."""
    key = Ed25519PublicKey.from_public_bytes(public)
    line = key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return f"{line.decode()} {name}"


def public_key(line: str) -> bytes:
    """The 32 bytes of a public identity key; ValueError for a line that is none."""
    try:
        key = serialization.load_ssh_public_key(line.encode())
    except UnsupportedAlgorithm as error:
        raise ValueError("unknown kind of key") from error
    if not isinstance(key, Ed25519PublicKey):
        raise ValueError("not an Ed25519 key")
    return key.public_bytes_raw()


def read_identities(path: Path) -> dict[str, str]:
    """The identity keys in a file of public keys: name -> line. Raises UserError for a malformed file."""
    found: dict[str, str] = {}
    for number, line in enumerate(read_unicode(path).splitlines(), start=1):
        kind, _, rest = line.strip().partition(" ")
        if kind != KIND:
            continue
        name = rest.partition(" ")[2].strip()
        try:
            public_key(line)
        except ValueError as error:
            raise UserError(f"{path}, line {number}: this is no public key; ask for the file again.") from error
        if not re.match(NAME, name) or found.setdefault(name, line.strip()) != line.strip():
            raise UserError(f"{path}, line {number}: the key has no name of a site, or one that another key has.")
    return found


def identities_of(deployment: Path) -> Mapping[str, bytes]:
    """The identity keys that sites have sent to the server's operator, by name of the file."""
    found = {}
    for path in sorted((deployment / "keys").glob("*.pub")):
        line = read_identities(path).get(path.stem)
        if line is not None:
            found[path.stem] = public_key(line)
    return found


def _pem(key: Ed25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
