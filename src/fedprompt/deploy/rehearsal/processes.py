"""A federation on one machine: server, proxy and three sites as real processes, with their keys and images."""

from __future__ import annotations

import contextlib
import http.client
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from fedprompt.config.recipe import Recipe, find_recipe, load_recipe
from fedprompt.data.dataset import Dataset
from fedprompt.deploy.daemons import Process, kill_orphans, stoppable, wait_for_port
from fedprompt.deploy.init import init_deployment, init_site, nginx_word
from fedprompt.deploy.roster import ROSTER, accept, proposed, write_roster
from fedprompt.deploy.settings import SITE, Deployment, Roster, SiteFile, load_site, save
from fedprompt.deploy.submit import sites_of
from fedprompt.errors import UserError
from fedprompt.experiments.plan import resolve
from fedprompt.runtimes.flower import commands

SITES = ("east", "north", "south")
SHOTS, TESTS = 8, 5  # images per class at a site
RECIPE = "rehearsal"
PROXY = "nginx"
Say = Callable[[str], None]


@dataclass
class LocalFederation:
    """A local federation: its folders, and its processes by name."""

    folder: Path
    deployment: Deployment
    recipe: Recipe
    proxied: bool
    processes: dict[str, Process] = field(default_factory=dict)

    def site(self, name: str) -> Path:
        """A site's folder, which a real deployment has on another machine."""
        return self.folder / "machines" / name

    @property
    def server(self) -> Path:
        """The server's folder."""
        return self.folder / "machines" / "server"

    def start_server(self) -> None:
        """Start `fedprompt server up` and wait until it listens."""
        self._start("server", ["server", "up", str(self.server)], self.server)
        wait_for_port(self.deployment.local_port, alive=lambda: self.processes["server"].ended is None)

    def start_site(self, name: str) -> None:
        """Start `fedprompt site up`."""
        data = self.site(name) / "images"
        self._start(name, ["site", "up", str(self.site(name)), "--data", str(data)], self.site(name))

    def start_proxy(self) -> None:
        """Start nginx with the file that `fedprompt deploy init` made."""
        place = self.folder / "machines" / "proxy"
        place.mkdir(exist_ok=True)
        for part in ("temp", "logs"):
            (place / part).mkdir(exist_ok=True)
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        paths = "".join(f"{kind}_temp_path {nginx_word(place / 'temp' / kind)};\n" for kind in kinds)
        pid, log, requests = (nginx_word(place / name) for name in ("nginx.pid", "logs/error.log", "logs/access.log"))
        (place / "nginx.conf").write_text(
            f"daemon off; pid {pid}; error_log {log};\nevents {{}}\n"
            f"http {{ access_log {requests};\n{paths}include {nginx_word(self.server / 'nginx.conf')}; }}\n",
            encoding="utf-8",
        )
        command = [nginx() or PROXY, "-c", str(place / "nginx.conf"), "-p", str(place)]
        self._begin("proxy", command, place)
        wait_for_port(self.deployment.port, alive=lambda: self.processes["proxy"].ended is None)

    def wait_for_sites(self, seconds: float = 300.0) -> float:
        """Wait until all sites are online; returns the seconds. UserError if one does not connect in time."""
        return self._wait(seconds, "Not all sites are online", set())

    def wait_until_offline(self, name: str, seconds: float = 300.0) -> float:
        """Wait until the server knows that a killed site is gone; before that it lists it as online and refuses it.

        Returns the seconds.
        """
        return self._wait(seconds, f"{name} is not seen to be gone", {name})

    def _wait(self, seconds: float, otherwise: str, offline: Set[str]) -> float:
        """Wait until all sites but these are online, and these are not."""
        begun = time.monotonic()
        while time.monotonic() - begun < seconds:
            with contextlib.suppress(UserError):
                if all((site.status == "online") != (site.name in offline) for site in sites_of(self.server)):
                    return time.monotonic() - begun
            time.sleep(1)
        raise UserError(f"{otherwise} within {seconds:.0f} s; see the logs in {self.folder}/machines.")

    def stop(self, name: str, how: signal.Signals = signal.SIGTERM) -> None:
        """Stop one process and all it started."""
        if name in self.processes:
            self.processes.pop(name).stop(how)
        kill_orphans(self.folder / "machines" / name)  # a power failure would end them too

    def _start(self, name: str, arguments: list[str], place: Path) -> None:
        self._begin(name, [sys.executable, "-m", "fedprompt", *arguments], place)

    def _begin(self, name: str, command: list[str], place: Path) -> None:
        environment = commands.environment(place / "flower")
        self.processes[name] = Process(command, folder=place, log=f"{name}.log", environment=environment)


@contextmanager
def local_federation(
    folder: Path, *, say: Say, settings: Sequence[str] = (), deadline: float = 120.0
) -> Iterator[LocalFederation]:
    """Start all processes, and stop them at the end; `settings` override keys of the recipe."""
    folder = _empty(folder)
    proxied = nginx() is not None
    port, local_port, *site_ports = free_ports(2 + len(SITES))
    deployment = Deployment(
        name=RECIPE,
        address="localhost",
        port=port if proxied else local_port,
        local_port=local_port,
        sites=SITES,
        quorum=2,
        deadline=deadline,
    )
    recipe = resolve(load_recipe(find_recipe(RECIPE), settings)).recipe
    federation = LocalFederation(folder, deployment, recipe, proxied)
    with stoppable(), ExitStack() as stack:
        for name in ("proxy", *SITES, "server"):
            stack.callback(federation.stop, name)
        _prepare(federation, dict(zip(SITES, site_ports, strict=True)), say)
        yield federation


def _prepare(federation: LocalFederation, ports: Mapping[str, int], say: Say) -> None:
    make_folders(federation, ports)
    say(f"Made keys, certificates and the images of {len(SITES)} sites in {federation.folder}.")
    federation.start_server()
    if federation.proxied:
        federation.start_proxy()
    for name in ports:
        federation.start_site(name)
    say(f"All sites are connected after {federation.wait_for_sites():.0f} s.")


def make_folders(federation: LocalFederation, ports: Mapping[str, int]) -> None:
    """Make the folders of server and sites with keys, rosters and images; `ports` are those of the sites' nodes."""
    init_deployment(federation.server, federation.deployment)
    dataset = resolve(load_recipe(find_recipe("demo"), ["data.seed=0"])).source()
    for name, port in ports.items():
        own, handed = federation.site(name), federation.server / "sites" / name
        shutil.copytree(handed, own, dirs_exist_ok=True)
        shutil.rmtree(handed)
        site = load_site(own)
        save(own / SITE, SiteFile(**site.model_dump() | {"port": port, "device": "cpu"}))
        shutil.copy(init_site(own), federation.server / "keys")
        _write_images(dataset, federation.recipe, SITES.index(name), own / "images")
    write_roster(federation.server)
    for name in ports:
        own = federation.site(name)
        accept(own, proposed(own, [federation.server / ROSTER]))


def prepare_containers(folder: Path, *, address: str) -> None:
    """Make the folders of a rehearsal whose processes run in a container each, the server's under this host name."""
    folder = _empty(folder)
    deployment = Deployment(name=RECIPE, address=address, sites=SITES, quorum=2, deadline=120.0)
    recipe = resolve(load_recipe(find_recipe(RECIPE))).recipe
    make_folders(
        LocalFederation(folder, deployment, recipe, proxied=True),
        dict.fromkeys(SITES, SiteFile.model_fields["port"].default),
    )


def _write_images(dataset: Dataset, recipe: Recipe, number: int, folder: Path) -> None:
    """Write the images of a site's share of the classes as files."""
    classes = list(recipe.data.options["classes"])
    size = -(-len(classes) // len(SITES))
    for name in classes[number * size : (number + 1) * size]:
        label = dataset.space.names.index(name)
        for split, count in (("train", SHOTS), ("test", TESTS)):
            place = folder / split / name
            place.mkdir(parents=True)
            for row in dataset.rows(split=split, classes=(label,)).tolist()[:count]:
                dataset.source.open(row).save(place / f"{row}.png")


def _empty(folder: Path) -> Path:
    folder = folder.resolve()
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"The folder {folder} is not empty; choose another one for the rehearsal.")
    return folder


def nginx() -> str | None:
    """The path of nginx; None if it is not installed."""
    return shutil.which(PROXY) or shutil.which(PROXY, path="/usr/sbin:/sbin")


def free_ports(count: int) -> list[int]:
    """Unused ports of loopback."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]


def proxy_connection(federation: LocalFederation) -> http.client.HTTPSConnection:
    """A connection to the proxy that trusts the deployment's certificate authority."""
    context = ssl.create_default_context(cafile=str(federation.server / "certificates" / "ca.crt"))
    return http.client.HTTPSConnection("localhost", federation.deployment.port, context=context, timeout=10)


def control_status(federation: LocalFederation) -> int:
    """The HTTP status of a control call (which could start a run) sent to the proxy."""
    connection = proxy_connection(federation)
    connection.request("POST", "/v1/control/start-run", body=b"")
    return connection.getresponse().status


def intruder_is_refused(federation: LocalFederation, *, authority: bool, seconds: float = 30.0) -> bool:
    """Whether a site with an unregistered key, or without TLS, is refused."""
    place = federation.folder / "machines" / "intruder"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    own = federation.site(SITES[0])
    save(place / SITE, load_site(own).model_copy(update={"roster": Roster()}))
    init_site(place)
    command = commands.supernode(
        address=f"localhost:{federation.deployment.port}",
        port=free_ports(1)[0],
        folder=place,
        authority=own / "ca.crt" if authority else None,
        key=place / "site.key" if authority else None,
    )
    process = Process(
        [*command, "--max-retries", "1"], folder=place, log="supernode.log", environment=commands.environment(place)
    )
    try:
        return process.popen.wait(seconds) != 0
    except subprocess.TimeoutExpired:
        return False
    finally:
        process.stop()
