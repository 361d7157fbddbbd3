"""The two files a federation is described by: deployment.toml at the server, site.toml with its policy at each site."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import TypeVar

import tomli_w
from pydantic import Field, field_validator

from fedprompt.config.recipe import checked
from fedprompt.config.tables import Table
from fedprompt.errors import UserError
from fedprompt.records.run_folder import write_atomic
from fedprompt.runtimes.remote import RemoteSettings
from fedprompt.runtimes.tensor_codec import Upload

DEPLOYMENT, SITE = "deployment.toml", "site.toml"
ADMITTED = "admitted"  # in the server's folder: for each key `<site>-<hash>`, the number Flower knows it by
LINK = "superlink.pid"  # in the server's folder: the process number of the SuperLink
PROCESS, STOPPED = "server.pid", "stopped.txt"  # in a run's folder: who conducts it, and why nobody does
WAITING = "waiting.json"  # in a run's folder: the sites that have not answered yet, and since when they are asked
HOME = "FEDPROMPT_DEPLOYMENT"  # environment variable: the folder of the deployment that a SuperLink serves
NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$"  # of a deployment or a site: it becomes file names and flags
Model = TypeVar("Model", bound=Table)


class Deployment(Table):
    """What the server's operator decides."""

    name: str = Field(pattern=NAME)
    address: str = Field(pattern=r"^[A-Za-z0-9.-]+$", description="host name or IP address that sites connect to")
    port: int = Field(8443, ge=1, le=65535, description="port of the reverse proxy, the only one the network reaches")
    local_port: int = Field(8000, ge=1, le=65535, description="port of the SuperLink, on loopback only")
    sites: tuple[str, ...] = Field(min_length=1, description="every site that may ever take part")
    quorum: int = Field(1, ge=1, description="answers without which a round changes nothing")
    deadline: float = Field(600.0, gt=0, description="seconds a site has for a round")
    patience: float = Field(120.0, ge=0, description="seconds to wait for sites before the first round")
    upload: Upload = Field("float32", description="what updates travel as; narrower types send differences")
    clock_skew: float = Field(60.0, gt=0, description="seconds a site's clock may be wrong by")

    @field_validator("sites")
    @classmethod
    def _distinct(cls, sites: tuple[str, ...]) -> tuple[str, ...]:
        for site in sites:
            if not re.match(NAME, site):
                raise ValueError(f"{site!r} is no name for a site; use letters, digits, - and _")
        if len(set(sites)) < len(sites):
            raise ValueError("two sites have one name")
        return tuple(sorted(sites))  # the order of clients

    def remote_settings(self, sites: tuple[str, ...]) -> RemoteSettings:
        """What the transport must know, for the sites of one run."""
        return RemoteSettings(sites, min(self.quorum, len(sites)), self.deadline, self.upload)


class Policy(Table):
    """What a site allows; a job that asks for more is refused with the name of the rule."""

    methods: tuple[str, ...] = Field((), description="methods that may be trained; empty: those of fedprompt itself")
    minimum_images: int = Field(1, ge=1, description="training pictures below which the site does not take part")
    maximum_rounds: int = Field(1000, ge=1, description="rounds a job may have")
    backbones: tuple[str, ...] = Field((), description="fingerprints, or their first digits, that may be used")
    secure_aggregation: bool = Field(default=False, description="refuse jobs without secure aggregation")
    epsilon: float | None = Field(None, gt=0, description="refuse jobs without an accounted epsilon of at most this")
    smallest_count: int = Field(5, ge=1, description="counts below this leave the site as 'few'")


class SiteFile(Table):
    """What a site's administrator decides."""

    name: str = Field(pattern=NAME)
    superlink: str = Field(pattern=r"^[A-Za-z0-9.-]+:[0-9]+$", description="host:port of the server")
    data: str = Field("", description="folder with one folder of pictures a class; empty: the recipe's own data")
    backbone: str = Field("", description="where this site keeps the CLIP; empty: what the recipe names")
    device: str = Field("auto", description='"cpu", "cuda" or "auto"')
    memory_gb: float = Field(2.0, ge=0, description="memory for frozen features")
    worker: bool = Field(default=True, description="keep the backbone in memory between rounds")
    port: int = Field(9094, ge=1, le=65535, description="port of the SuperNode, on loopback only")
    policy: Policy = Policy()


def load_deployment(folder: Path) -> Deployment:
    """The deployment of a folder that `fedprompt deploy init` made."""
    return _load(Deployment, folder / DEPLOYMENT, "make one with: fedprompt deploy init")


def load_site(folder: Path) -> SiteFile:
    """The site of a folder that the server's operator handed out."""
    return _load(SiteFile, folder / SITE, "ask the server's operator for the folder of your site")


def save(path: Path, table: Table) -> None:
    """Write a settings file."""
    write_atomic(path, tomli_w.dumps(table.model_dump(mode="json", exclude_none=True)))


def _load(model: type[Model], path: Path, cure: str) -> Model:
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"There is no {path} ({error.strerror}); {cure}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid TOML ({error}); correct that line.") from error
    return checked(model, tables, origin=path.name)
