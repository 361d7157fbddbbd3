"""Create the folders of a deployment: the server's with one per site, and the keys that are made at a site."""

from __future__ import annotations

import sys
from importlib.metadata import distribution
from pathlib import Path

from fedprompt.deploy.certificates import make_authority, make_server_certificate, make_site_key
from fedprompt.deploy.settings import DEPLOYMENT, SITE, Deployment, SiteFile, load_site, save
from fedprompt.errors import UserError
from fedprompt.records.run_folder import write_atomic
from fedprompt.runtimes.flower import commands

# The reverse proxy passes only the sites' messages: calls that start runs are possible on the server's loopback alone.
NGINX = """# Include this inside nginx's http block, e.g. as /etc/nginx/conf.d/fedprompt.conf
server {{
  listen {port} ssl;
  ssl_certificate {folder}/certificates/server.pem;
  ssl_certificate_key {folder}/certificates/server.key;
  ssl_protocols TLSv1.2 TLSv1.3;
  client_max_body_size 16m;  # Flower sends chunks of 5 MB
  location /v1/fleet/ {{
    proxy_pass https://127.0.0.1:{local_port};
    proxy_ssl_verify on;
    proxy_ssl_trusted_certificate {folder}/certificates/ca.crt;
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
ExecStart={python} -m fedprompt {command} {folder}
WorkingDirectory={folder}
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
    hosts = (deployment.address, "localhost", "127.0.0.1")
    make_server_certificate(certificates, certificates / "ca.key", authority, hosts=hosts)
    proxy = NGINX.format(port=deployment.port, local_port=deployment.local_port, folder=folder)
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
        save(own / SITE, SiteFile(name=site, superlink=f"{deployment.address}:{deployment.port}", port=port))
    save(folder / DEPLOYMENT, deployment)


def init_site(folder: Path) -> Path:
    """Create a site's key pair and service file; returns the public key, which goes to the server's operator."""
    folder = folder.resolve()
    site = load_site(folder)
    private, public = site_key(folder), folder / f"{site.name}.pub"
    if not private.exists():
        make_site_key(private, public)
    write_atomic(folder / "fedprompt-site.service", service(f"fedprompt site {site.name}", "site up", folder))
    return public


def site_key(folder: Path) -> Path:
    """The file of a site's private key."""
    return folder / "site.key"


def service(what: str, command: str, folder: Path) -> str:
    """A systemd unit that keeps a fedprompt command running."""
    return SERVICE.format(what=what, python=sys.executable, command=command, folder=folder)


def tls_of(folder: Path) -> commands.Tls:
    """The certificate files of a server's folder."""
    own = folder / "certificates"
    return commands.Tls(own / "ca.crt", own / "server.pem", own / "server.key")


def _licence() -> str:
    found = [file for file in distribution("fedprompt").files or () if file.name == "LICENSE"]
    return found[0].read_text() if found else "Apache License, Version 2.0"
