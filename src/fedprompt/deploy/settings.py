"""Settings of a federation: deployment.toml at the server, and site.toml with the site's policy at each site."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeVar

import tomli_w
from pydantic import Field, field_validator

from fedprompt.config.recipe import checked
from fedprompt.config.recipe_tables import ACTIVATIONS, DEVICES, PRECISIONS, Table
from fedprompt.deploy.identity import NAME, public_key
from fedprompt.errors import UserError
from fedprompt.records.atomic_files import write_atomic
from fedprompt.runtimes.remote import RemoteSettings
from fedprompt.runtimes.tensor_codec import Upload
from fedprompt.text_files import LARGEST_TOML, load_toml, read_unicode

DEPLOYMENT, SITE = "deployment.toml", "site.toml"
ADMITTED = "admitted"  # in the server's folder: a file `<site>-<hash>` per key, with the node id that Flower assigned
LINK = "superlink.pid"  # in the server's folder: the process id of the SuperLink
DATABASE = "state.db"  # of the SuperLink, in a deployment's folder
PROCESS = "server.pid"  # in a run's folder: the process id of the run
WAITING = "waiting.json"  # in a run's folder: the sites that have not answered yet, and the time of the request
HOME = "FEDPROMPT_DEPLOYMENT"  # environment variable: the folder of the deployment that a SuperLink serves
YEAR = 366 * 86_400.0  # seconds; a longer time could only be a slip
MOST_DELTA = 1e-3
MORE_SCORES = 20  # of a trial beyond two per round: at its end, and after a resume
METRICS_PORT = Field(
    None, ge=1, le=65535, description="port of the metrics for Prometheus, on loopback only; if absent, there are none"
)
Model = TypeVar("Model", bound=Table)
Scores = Literal["exact", "rounded", "withheld"]


class Deployment(Table):
    """deployment.toml: the settings of the server's operator."""

    name: str = Field(pattern=NAME)
    address: str = Field(pattern=r"^[A-Za-z0-9.-]+$", description="host name or IP address that sites connect to")
    port: int = Field(8443, ge=1, le=65535, description="port of the reverse proxy, the only one the network reaches")
    local_port: int = Field(8000, ge=1, le=65535, description="port of the SuperLink, on loopback only")
    sites: tuple[str, ...] = Field(min_length=1, description="all sites that may take part")
    quorum: int = Field(1, ge=1, description="least number of updates for a round to count")
    deadline: float = Field(600.0, gt=0, le=YEAR, description="seconds that a site has for a round")
    connect_timeout: float = Field(120.0, ge=0, le=YEAR, description="seconds to wait for sites before the first round")
    upload: Upload = Field("float32", description="data type of updates on the wire; narrower types send differences")
    clock_skew: float = Field(60.0, gt=0, le=YEAR, description="seconds by which a site's clock may differ")
    metrics_port: int | None = METRICS_PORT

    @field_validator("sites")
    @classmethod
    def _distinct(cls, sites: tuple[str, ...]) -> tuple[str, ...]:
        for site in sites:
            if not re.match(NAME, site):
                raise ValueError(f"{site!r} is not a valid site name; use letters, digits, - and _")
        if len(set(sites)) < len(sites):
            raise ValueError("two sites have the same name")
        return tuple(sorted(sites))  # the order of clients

    def remote_settings(self, sites: tuple[str, ...]) -> RemoteSettings:
        """The settings of the transport for the sites of one run."""
        return RemoteSettings(sites, min(self.quorum, len(sites)), self.deadline, self.upload)


class Roster(Table):
    """Whom a site knows, by keys that were exchanged outside the federation; no message changes it."""

    server: str = Field("", description="fingerprint of the certificate authority in ca.crt; empty: not compared")
    sites: dict[str, str] = Field({}, description="public identity key of each other site, as a line of OpenSSH")

    @field_validator("sites")
    @classmethod
    def _keys(cls, sites: dict[str, str]) -> dict[str, str]:
        for name, line in sites.items():
            try:
                public_key(line)
            except ValueError as error:
                raise ValueError(f"the key of {name} is no public identity key; add it anew") from error
        if len({public_key(line) for line in sites.values()}) < len(sites):
            raise ValueError("two sites have the same key")
        return sites


class Policy(Table):
    """The jobs that a site accepts; any other job is refused with the name of the rule."""

    methods: tuple[str, ...] = Field((), description="methods that may be trained; empty: those of fedprompt itself")
    recipes: tuple[str, ...] = Field((), description="SHA-256 of allowed recipes, or first digits; empty: any recipe")
    minimum_images: int = Field(1, ge=1, description="least number of training images with which the site takes part")
    maximum_rounds: int = Field(1000, ge=1, description="most rounds of a job")
    maximum_epochs: int = Field(100, ge=1, description="most local epochs of a job, each over all training images")
    backbones: tuple[str, ...] = Field((), description="fingerprints of allowed backbones, or their first digits")
    secure_aggregation: bool = Field(default=False, description="refuse jobs without secure aggregation")
    epsilon: float | None = Field(
        None, gt=0, description="privacy budget of all runs on the site's images; jobs without noise here are refused"
    )
    delta: float | None = Field(
        None, gt=0, le=MOST_DELTA, description="delta of that budget; if absent, 1 / images and at most 1e-3"
    )
    minimum_noise: float = Field(0.0, ge=0, description="least noise multiplier of what is added at the site")
    maximum_repeats: int = Field(
        3, ge=1, description="most answers with the same images to the same round of a recipe in secure sums, over runs"
    )
    minimum: int = Field(3, ge=2, description="least number of sites in a secure sum, this one included")
    colluders: int = Field(
        0, ge=0, description="number of sites that may work with the server against this one; raises the threshold"
    )
    smallest_count: int = Field(5, ge=1, description="counts below this are withheld from the server")
    scores: Scores | None = Field(
        None,
        description='what leaves of scores, losses and counts per class: "exact", "rounded" (scores in steps of '
        'smallest_count images) or "withheld"; if absent, rounded, and withheld with epsilon',
    )
    maximum_scores: int | None = Field(
        None,
        ge=0,
        description="most scores that leave in a run, of all trials together; if absent, each has twice its rounds "
        "and 20",
    )

    @property
    def released(self) -> Scores:
        """What leaves of scores, losses and counts."""
        return self.scores or ("rounded" if self.epsilon is None else "withheld")

    def allows_score(self, before: Mapping[str, int], trial: str, *, rounds: int) -> bool:
        """Whether one more score of a trial with so many rounds may leave; `before` counts a run's scores by trial."""
        if self.maximum_scores is not None:
            return sum(before.values()) < self.maximum_scores
        return before.get(trial, 0) < 2 * rounds + MORE_SCORES

    def delta_for(self, images: int) -> float:
        """The site's delta for so many training images; no job sets it."""
        return self.delta or min(1 / max(images, 1), MOST_DELTA)


class OwnImagesTable(Table):
    """How a site reads and splits its images; no job changes any of it, so that an image keeps its part in all runs."""

    test_fraction: float = Field(
        0.25, ge=0, lt=1, description="share of the images drawn for testing, if the folder has no test part"
    )
    validation_fraction: float = Field(
        0.2,
        ge=0,
        lt=1,
        description="share of the training images held out where a job asks for it, if the folder has no validation "
        "part",
    )
    seed: int = Field(0, ge=0, description="seed of both draws; another one moves images between the parts")
    window: tuple[float, float] | Literal["minmax"] | None = Field(
        None, description="grey values of black and white, as in a recipe; jobs with another one are refused"
    )
    links: bool = Field(default=False, description="follow links that lead out of the folder")
    unreadable: float = Field(0.05, ge=0, le=1, description="share of the images that may be unreadable and left out")
    decoders: int = Field(0, ge=0, le=1024, description="processes that decode images; 0 decodes in the worker")


class SiteFile(Table):
    """site.toml: the settings of a site's administrator."""

    name: str = Field(pattern=NAME)
    superlink: str = Field(pattern=r"^[A-Za-z0-9.-]+:[0-9]+$", description="host:port of the server")
    data: str = Field("", description="folder with one folder of images per class; empty: the recipe's own data")
    backbone: str = Field("", description="folder of the CLIP at this site; empty: the recipe's backbone")
    device: str = Field("auto", description=DEVICES)
    precision: Literal["float32", "bfloat16", "float16"] = Field("float32", description=PRECISIONS)
    activations_gb: float = Field(0.0, ge=0, description=ACTIVATIONS)
    memory_gb: float = Field(2.0, ge=0, description="memory of the feature cache in GB")
    batch: int = Field(
        1, ge=1, le=65_536, description="images or texts per frozen forward pass; 32 is faster on a GPU, not exact"
    )
    worker: bool = Field(default=True, description="keep the backbone in memory between rounds")
    port: int = Field(9094, ge=1, le=65535, description="port of the SuperNode, on loopback only")
    metrics_port: int | None = METRICS_PORT
    images: OwnImagesTable = OwnImagesTable()
    roster: Roster = Roster()
    policy: Policy = Policy()


def load_deployment(folder: Path) -> Deployment:
    """The deployment of a folder that `fedprompt deploy init` made."""
    return _load(Deployment, folder / DEPLOYMENT, "make one with: fedprompt deploy init")


def load_site(folder: Path) -> SiteFile:
    """The settings in a site's folder, which the server's operator made."""
    return _load(SiteFile, folder / SITE, "ask the server's operator for the folder of your site")


def save(path: Path, table: Table) -> None:
    """Write a settings file."""
    write_atomic(path, tomli_w.dumps(table.model_dump(mode="json", exclude_none=True)))


def _load(model: type[Model], path: Path, fix: str) -> Model:
    if not os.path.lexists(path):
        raise UserError(f"There is no {path}; {fix}.")
    try:
        tables = load_toml(read_unicode(path, most=LARGEST_TOML))
    except ValueError as error:
        raise UserError(f"{path} is not valid TOML ({error}); correct that line.") from error
    return checked(model, tables, origin=path.name)
