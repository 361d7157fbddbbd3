from .api.adapters import Adapter, load_adapter
from .api.backbones import load_clip
from .api.callbacks import Callback
from .api.datasets import check, load_dataset, partition
from .api.predictions import Predictions
from .api.published import published, reproduce
from .api.results import Run, compare, read_run
from .api.training import resume, run, train
from .api.tuning import Tuning, tune
from .clip.model import Clip
from .config.recipe import Recipe
from .data.dataset import Dataset, Examples
from .data.images import Images
from .data.labels import LabelSpace
from .data.partition.base import Partition, Shard
from .errors import UserError
from .experiments.clients import Clients
from .federated.client import Client, TrainSettings
from .federated.evaluate import Score, evaluate
from .federated.rounds import Round, Transport, federate
from .federated.server import Server
from .methods.base import Classifier, Method
from .runtimes.simulator import Simulator
from .updates import Update

__version__: str

__all__ = [
    "Adapter",
    "Callback",
    "Classifier",
    "Client",
    "Clients",
    "Clip",
    "Dataset",
    "Examples",
    "Images",
    "LabelSpace",
    "Method",
    "Partition",
    "Predictions",
    "Recipe",
    "Round",
    "Run",
    "Score",
    "Server",
    "Shard",
    "Simulator",
    "TrainSettings",
    "Transport",
    "Tuning",
    "Update",
    "UserError",
    "check",
    "compare",
    "evaluate",
    "federate",
    "load_adapter",
    "load_clip",
    "load_dataset",
    "partition",
    "published",
    "read_run",
    "reproduce",
    "resume",
    "run",
    "train",
    "tune",
]
