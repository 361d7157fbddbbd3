"""Create the folders of a deployment: the server's with one per site, and the keys that are made at a site."""

from __future__ import annotations

import getpass
import sys
from importlib.metadata import distribution
from pathlib import Path

from fedprompt.deploy.certificates import (
    DAYS,
    authority_fingerprint,
    days_left,
    make_authority,
    make_server_certificate,
)
from fedprompt.deploy.identity import NODE, make_site_keys
from fedprompt.deploy.settings import DEPLOYMENT, SITE, Deployment, Roster, SiteFile, load_deployment, load_site, save
from fedprompt.errors import UserError, series
from fedprompt.file_system import entries
from fedprompt.records.atomic_files import write_atomic
from fedprompt.runtimes.flower import commands
from fedprompt.text_files import json_text

WARN_DAYS = 60  # before a certificate expires
SENT = (SITE, "ca.crt")  # what a site gets from the server's operator

# The reverse proxy passes only the sites' messages: calls that start runs are possible on the server's loopback alone.
NGINX = """# Include this inside nginx's http block, e.g. as /etc/nginx/conf.d/fedprompt.conf
server {{
  listen {port} ssl;
  ssl_certificate {certificate};
  ssl_certificate_key {key};
  ssl_protocols TLSv1.2 TLSv1.3;
  client_max_body_size 16m;  # Flower sends chunks of 5 MB
  location /v1/fleet/ {{
    proxy_pass https://127.0.0.1:{local_port};
    proxy_ssl_verify on;
    proxy_ssl_trusted_certificate {authority};
    proxy_ssl_name localhost;
    proxy_read_timeout 300s;
  }}
  location / {{ return 403; }}
}}
"""
SERVICE = """[Unit]
Description={what}
After=network-online.target
Wants=network-online.target

[Service]
User={user}
ExecStart={python} -P -m fedprompt {command} {folder}
WorkingDirectory={place}
Restart=always
RestartSec=5
KillMode=control-group

[Install]
WantedBy=multi-user.target
"""


def init_deployment(folder: Path, deployment: Deployment) -> None:
    """Create the server's folder: authority, certificate, proxy and service files, the app, and a folder per site.

    Raises UserError if the folder already holds a deployment, whose keys must not be replaced.
    """
    folder = folder.resolve()
    if (folder / DEPLOYMENT).exists():
        raise UserError(f"{folder} already holds a deployment; edit its {DEPLOYMENT} or choose another folder.")
    certificates = folder / "certificates"
    for part in (certificates, folder / "keys", folder / "runs"):
        part.mkdir(parents=True, exist_ok=True)
    authority = certificates / "ca.crt"
    make_authority(certificates / "ca.key", authority, name=deployment.name)
    make_server_certificate(certificates, certificates / "ca.key", authority, hosts=_hosts(deployment))
    files = {"certificate": "server.pem", "key": "server.key", "authority": "ca.crt"}
    paths = {name: nginx_word(certificates / file) for name, file in files.items()}
    proxy = NGINX.format(port=deployment.port, local_port=deployment.local_port, **paths)
    write_atomic(folder / "nginx.conf", proxy)
    write_atomic(folder / "fedprompt-server.service", service("fedprompt server", "server up", folder))
    write_atomic(folder / "flower" / "config.toml", commands.connections(deployment.local_port, authority))
    for name, content in commands.app_files(_licence()).items():
        write_atomic(folder / "app" / name, content)
    for number, site in enumerate(deployment.sites):
        own = folder / "sites" / site
        own.mkdir(parents=True)
        write_atomic(own / "ca.crt", authority.read_bytes())
        port = SiteFile.model_fields["port"].default + number  # a rehearsal runs several sites on one machine
        roster = Roster(server=authority_fingerprint(authority))
        address = f"{deployment.address}:{deployment.port}"
        save(own / SITE, SiteFile(name=site, superlink=address, port=port, roster=roster))
    save(folder / DEPLOYMENT, deployment)


def init_site(folder: Path) -> Path:
    """Create a site's keys and service file; returns the public keys' file, which goes to the server's operator.

    Raises UserError if the folder holds more than the server's operator has to send. Whoever has made keys or records
    in it knows them, and peers in the roster are those whose fingerprints this site has compared.
    """
    folder = folder.resolve()
    site = load_site(folder)
    if more := sorted(entry.name for entry in entries(folder) if entry.name not in SENT):
        raise UserError(
            f"{folder} holds more than {series(SENT)}: {', '.join(more[:8])}. If keys were made here before, the "
            "site has them (new ones: fedprompt site rotate). Delete all that was sent to you."
        )
    if peers := ", ".join(sorted(site.roster.sites)):
        raise UserError(
            f"{folder / SITE} was sent with peers in [roster.sites] ({peers}); delete that table. "
            "Peers are added with `fedprompt site roster add` when their fingerprints were compared."
        )
    public = make_site_keys(folder, site.name)
    write_atomic(folder / "fedprompt-site.service", service(f"fedprompt site {site.name}", "site up", folder))
    return public


def changed_settings(folder: Path) -> list[str]:
    """The settings of a site's [policy] and [images] that differ from the defaults, as `table.key = value`."""
    site, usual = load_site(folder), SiteFile(name="site", superlink="host:1")
    return [
        f"{table}.{key} = {json_text(value, ascii_only=False)}"
        for table in ("policy", "images")
        for key, value in getattr(site, table).model_dump(mode="json").items()
        if value != getattr(usual, table).model_dump(mode="json")[key]
    ]


def site_key(folder: Path) -> Path:
    """The file of a site's private key."""
    return folder / NODE


def service(what: str, command: str, folder: Path) -> str:
    """A systemd unit that keeps a fedprompt command running, as the user who makes it."""
    return SERVICE.format(
        what=what.replace("%", "%%"),
        user=getpass.getuser(),
        python=_systemd_word(sys.executable),
        command=command,
        folder=_systemd_word(folder),
        place=str(folder).replace("%", "%%"),  # the rest of this line is the path, spaces included
    )


def _systemd_word(path: Path | str) -> str:
    """A path as one word of a command in a unit: quoted, without specifiers and variables."""
    escaped = str(path).replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"'


def nginx_word(path: Path) -> str:
    """A path as one word of nginx's configuration; UserError for a name with a variable, which cannot be escaped."""
    if "$" in str(path):
        raise UserError(f"nginx reads the $ in {path} as a variable; choose a folder without one.")
    escaped = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def tls_of(folder: Path) -> commands.Tls:
    """The certificate files of a server's folder."""
    own = folder / "certificates"
    return commands.Tls(own / "ca.crt", own / "server.pem", own / "server.key")


def renew_certificates(folder: Path, *, authority_key: Path | None) -> list[str]:
    """Renew the server's certificate, and the authority's if it would not outlive it; says what is to be done next.

    Keys stay the same, so sites need nothing new before their copy of the authority's certificate expires.
    """
    folder, deployment = folder.resolve(), load_deployment(folder)
    certificates = folder / "certificates"
    authority, key = certificates / "ca.crt", authority_key or certificates / "ca.key"
    steps = []
    if not key.exists():
        raise UserError(f"There is no {key}; give the authority's key with --authority-key.")
    if days_left(authority) <= DAYS:
        make_authority(key, authority, name=deployment.name)
        steps.append(f"Send the new {authority} to every site, which puts it into its folder.")
    make_server_certificate(certificates, key, authority, hosts=_hosts(deployment))
    return [*steps, "Reload nginx and restart `fedprompt server up`, so that they use the new certificate."]


def expiry_warnings(folder: Path) -> list[str]:
    """What to renew in the folder of a deployment or site, whose certificates expire within WARN_DAYS."""
    at_server = (folder / DEPLOYMENT).exists()
    fix = f"renew it with: fedprompt deploy renew {folder}" if at_server else "ask the server's operator for a new one"
    return [
        f"The certificate {file} {f'expires in {left} days' if left >= 0 else 'has expired'}; {fix}."
        for file, left in certificate_days(folder).items()
        if left < WARN_DAYS
    ]


def certificate_days(folder: Path) -> dict[Path, int]:
    """The days left of each certificate in the folder of a deployment or site; UserError if there is none."""
    own = folder / "certificates" if (folder / DEPLOYMENT).exists() else folder
    files = [file for file in (own / "server.pem", own / "ca.crt") if file.exists()]
    if not files:
        raise UserError(f"There are no certificates in {own}; give the folder of a deployment or of a site.")
    return {file: days_left(file) for file in files}


def remove_site(folder: Path, name: str) -> None:
    """Take a site out of a deployment; the running server disconnects it within a second."""
    folder, deployment = folder.resolve(), load_deployment(folder)
    if name not in deployment.sites:
        raise UserError(f"{name} is not a site of the deployment; it has {', '.join(deployment.sites)}.")
    if len(deployment.sites) == 1:
        raise UserError(f"{name} is the only site of the deployment; delete the deployment's folder instead.")
    (folder / "keys" / f"{name}.pub").unlink(missing_ok=True)
    left = tuple(one for one in deployment.sites if one != name)
    save(folder / DEPLOYMENT, deployment.model_copy(update={"sites": left}))


def _hosts(deployment: Deployment) -> tuple[str, ...]:
    return deployment.address, "localhost", "127.0.0.1"


def _licence() -> str:
    found = [file for file in distribution("fedprompt").files or () if file.name == "LICENSE"]
    return found[0].read_text() if found else "Apache License, Version 2.0"
