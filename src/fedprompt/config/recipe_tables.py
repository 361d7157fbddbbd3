"""The tables of a recipe as pydantic models: every key with its type, range, default and meaning."""

from __future__ import annotations

from typing import Any, Literal, get_args

from pydantic import ConfigDict, Field

from fedprompt.config.values import Settings

Toml = dict[str, Any]
RuntimeName = Literal["simulator", "ray"]
RUNTIME_NAMES: tuple[str, ...] = get_args(RuntimeName)
NORM_LIMIT = 100.0  # default of [train.server] norm_limit: far above what clients with more images than others reach


DEVICES = '"cpu", "cuda", "cuda:1" (the second GPU), "mps", or "auto": an NVIDIA GPU if there is one, else the CPU'
PRECISIONS = "what the frozen towers compute in and cached features are kept in; trained tensors are always float32"
ACTIVATIONS = (
    "memory for the activations of the image tower in a training step; blocks that do not fit are computed again for "
    "the gradient, which takes up to a third longer and changes no result; 0 is no limit"
)


class Table(Settings):
    """A table without unknown keys."""


class NamedBlock(Settings):
    """A table that names a building block; its other keys are the block's options, checked against its signature."""

    model_config = ConfigDict(extra="allow")

    @property
    def options(self) -> Toml:
        """The keys that are options of the named block."""
        return dict(self.model_extra or {})


class ServerBlock(NamedBlock):
    """A part of [train.server] that names a building block by `name`."""

    name: str


class BackboneTable(Table):
    """The frozen CLIP backbone, and the cache of its features."""

    path: str = Field("demo", description='"demo" (embedded), a Hugging Face folder, a checkpoint, or a Hub id')
    batch: int = Field(
        1,
        ge=1,
        le=65_536,
        description="images or texts per frozen forward pass; only 1 is exact to the last bit, a GPU is faster with 32",
    )
    workers: int = Field(0, ge=0, le=1024, description="processes that decode images; 0 decodes in the main process")
    memory_gb: float = Field(2.0, ge=0, description="memory of the feature cache; 0 switches it off")
    memory_on: Literal["cpu", "device"] = Field(
        "cpu", description='whose memory that is: "device" keeps features on the GPU, which spares copies'
    )
    disk: str | None = Field(None, description="folder of the feature cache on disk, which outlives the process")
    device: str = Field("auto", description=DEVICES)
    precision: Literal["float32", "bfloat16", "float16"] = Field("float32", description=PRECISIONS)
    activations_gb: float = Field(0.0, ge=0, description=ACTIVATIONS)


class DataTable(NamedBlock):
    """The data set: a source and its options."""

    source: str = Field(description="name of a source, or package.module:function")
    unreadable: float = Field(
        0.05,
        ge=0,
        le=1,
        description="share of a client's or a data set's images that may be unreadable and are then left out; one "
        "always may, unless this is 0",
    )


class PartitionTable(NamedBlock):
    """The partition of the training images over the clients: a rule and its options."""

    rule: str = Field(description="name of a partition rule, or package.module:function")


class AnnotationTable(Table):
    """Incomplete annotation: labels that are missing from training images (multi-label data only)."""

    missing: float = Field(0.0, ge=0, lt=1, description="share of the labels that are missing, drawn once")
    form: Literal["drop_positive", "unknown"] = Field(
        "drop_positive", description="missing positive labels become negative, or missing labels become unknown"
    )


class DescriptionsTable(Table):
    """The text that describes the classes.

    Empty values keep the data set's own; where a published data set has none, methods that read them get the bundled.
    """

    attributes: str = Field(
        "",
        description='a descriptions file, the name of a bundled one, "bundled" to find each class in any of them, or '
        '"none"',
    )
    conditions: str | tuple[str, ...] = Field(
        "", description='a descriptions file, the name of a bundled one, "none", or a list of phrases'
    )
    missing: Literal["refuse", "empty"] = Field(
        "refuse", description="what to do about classes that the named descriptions lack: refuse, or none for them"
    )
    shuffled: bool = Field(default=False, description="control experiment: give every class another class's attributes")
    foreign: str = Field(
        "",
        description="control experiment: give every class attributes of classes that the data set does not have, with "
        'no word of its own ones; a descriptions file with such classes, the name of a bundled one, or "bundled"',
    )


class ClientTraining(Table):
    """Local training, with the defaults of FedMVP (for ViT-B/16, 8 shots, 20 classes per client)."""

    rounds: int = Field(100, ge=1, description="communication rounds")
    local_epochs: int = Field(1, ge=1, description="epochs per client and round")
    batch_size: int = Field(128, ge=1, description="images per training step")
    lr: float = Field(3e-3, gt=0, description="learning rate of the clients in the first round")
    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="optimiser of the clients; it lives for one round")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of SGD")
    weight_decay: float = Field(1e-5, ge=0, description="weight decay of the clients' optimiser")
    schedule: Literal["cosine", "constant"] = Field("cosine", description="learning rate over the rounds")
    proximal: float = Field(
        0.0, ge=0, description="FedProx (Li et al., 2020): mu of the term mu / 2 |w - w_received|^2 in the loss"
    )


class SecureTable(Table):
    """Secure aggregation: the server sees only sums of updates, so it can only take the mean."""

    share: float = Field(2 / 3, gt=0.5, le=1, description="share of a round's clients that must stay until its end")
    clip: float = Field(100.0, ge=1e-9, le=1e9, description="L2 norm to which clients clip their updates")
    most_examples: int = Field(
        10_000,
        ge=1,
        description="largest weight of a client, if weighting is by examples; one with more counts as much",
    )


class AttackTable(ServerBlock):
    """An attack by malicious or broken clients, for simulations only."""

    adversaries: int = Field(2, ge=1, description="number of malicious clients; the last ones are taken")


class ServerTable(Table):
    """The server: screening, aggregation rule, server optimiser, privacy, secure aggregation, simulated attack."""

    aggregate: ServerBlock | None = Field(None, description="aggregation rule in place of the method's own")
    optimizer: ServerBlock | None = Field(None, description="server optimiser, which steps towards the rule's result")
    privacy: ServerBlock | None = Field(
        None, description='differential privacy of each "client" or "sample", or of each client by "distributed" noise'
    )
    secure: SecureTable | None = Field(None, description="secure aggregation")
    attack: AttackTable | None = Field(None, description="attack by some of the clients")
    most_examples: int = Field(
        10_000_000, ge=1, description="an update that claims more training images than this is refused"
    )
    norm_limit: float = Field(
        NORM_LIMIT,
        ge=0,
        description="refuse updates longer than this many times the clients' median length, and roll back a round "
        "whose result makes losses not finite or explode; 0 does neither",
    )


class TrainTable(ClientTraining):
    """Federated training: rounds, clients' local training, and the server."""

    fraction: float = Field(1.0, gt=0, le=1, description="share of the clients that take part in a round")
    weighting: Literal["uniform", "examples"] = Field(
        "uniform", description="weights of the clients: equal, or by their numbers of training images"
    )
    server: ServerTable = ServerTable()
    sharing: Literal["federated", "local", "pooled"] = Field(
        "federated",
        description='baselines: "local" trains every client alone, "pooled" trains one client on all images',
    )
    keep: str = Field(
        "last",
        description='the round whose model is tested and saved: "last", or "best:METRIC" by a metric of held-out '
        'images, such as "best:hm"; the same for all methods of a run',
    )
    patience: int = Field(
        0,
        ge=0,
        description="end training after so many scorings of held-out images without a better one; 0 never does",
    )


class MethodTable(NamedBlock):
    """A method, its options, and what it overrides in [train] and [descriptions]."""

    name: str = Field(description="name of a method, or package.module")
    label: str = Field(
        "", pattern=r"^([A-Za-z0-9_+=-][A-Za-z0-9._+=-]*)?$", description="name of the trial; the method's if empty"
    )
    train: Toml = Field(default_factory=dict, description="overrides of [train] for this method")
    tune: bool = Field(
        default=True, description="whether a search for settings varies those of this method; otherwise it keeps them"
    )
    descriptions: Toml = Field(default_factory=dict, description="overrides of [descriptions] for this method")

    @property
    def title(self) -> str:
        """The trial's name in tables, records and folders."""
        return self.label or self.name


class EvaluateTable(Table):
    """When and how models are evaluated."""

    every: int = Field(
        0,
        ge=0,
        description="evaluate every so many rounds: test images for the learning curve, and held-out ones to choose a "
        "round (train.keep); 0 evaluates test images at the end only, and held-out ones up to 20 times",
    )
    batch_size: int = Field(128, ge=1, description="images per batch")
    local: bool = Field(
        default=True, description="also evaluate every client on its own classes; slow for thousands of clients"
    )
    held_out: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of a client's training images held out: to choose a round (train.keep), where the data have "
        "no validation part, and with many labels to fit a decision threshold; 0.2 if a round is chosen",
    )
    test: bool = Field(default=True, description="evaluate on test images; a search for settings leaves them unseen")
    shifted: bool = Field(
        default=True,
        description="also evaluate under distribution shift: unseen domains and data sets, test sets with other "
        "co-occurrence; no search needs it",
    )
    threshold: Literal["best_f1", "near_count"] = Field(
        "best_f1",
        description='multi-label: how the decision threshold is fitted: "best_f1", with the best OF1 on held-out '
        'images, or "near_count", with the best OF1 among those that predict at most 1.25 times as many labels as '
        "there are, also on training images where fewer than 200 are held out; the latter unless `defaults` is "
        '"paper"',
    )
    oracle: bool = Field(
        default=False, description="multi-label: also report the threshold that is best on the test images"
    )
    samples: int = Field(8, ge=0, le=1000, description="test images recorded with their top predictions")


class RuntimeTable(Table):
    """Where simulated clients are trained; no result depends on it, but for the bits of another number of threads."""

    name: RuntimeName = Field(
        "simulator", description='"simulator" trains them one after another in one process, "ray" in several'
    )
    actors: int = Field(0, ge=0, le=4096, description="processes that train clients; 0 is as many as have room")
    cpus: float = Field(
        1.0, gt=0, le=1024, description="cores of an actor, or of a run of a study; also its threads, one at least"
    )
    gpus: float | None = Field(
        None,
        ge=0,
        le=64,
        description="share of a GPU of an actor, or of a run; by default one whole GPU if there are any and "
        "backbone.device lets it be used",
    )
    gpu_memory_gb: float = Field(
        0.0, ge=0, description="memory of a GPU that an actor, or a run, needs, in place of gpus; 0 leaves it to that"
    )

    @property
    def threads(self) -> int:
        """The threads of an actor."""
        return max(1, int(self.cpus))


class TuningTable(Table):
    """The grid search of `fedprompt compare --tune`, the same for every method."""

    seed: int = Field(100, ge=0, description="seed of the search; use one that no comparison uses")
    grid: dict[str, tuple[Any, ...]] = Field(default_factory=dict, description="values to try for keys of [train]")
