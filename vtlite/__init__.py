"""vtlite: visual tuning from scratch, one file per method, in the order of the survey (arXiv
2305.06061)."""

from vtlite.backbones import create_backbone, load_backbone, save_backbone
from vtlite.data.tasks import TASKS, load_task
from vtlite.method import Tuned, count_parameters
from vtlite.methods import METHODS, Method, find_method
from vtlite.storage import VTError
from vtlite.task import Task
from vtlite.training import evaluate, extract_features, fit
from vtlite.tuning import load_delta, merge, save_delta, tune
from vtlite.version import __version__

__all__ = [
    "METHODS",
    "TASKS",
    "Method",
    "Task",
    "Tuned",
    "VTError",
    "__version__",
    "count_parameters",
    "create_backbone",
    "evaluate",
    "extract_features",
    "find_method",
    "fit",
    "load_backbone",
    "load_delta",
    "load_task",
    "merge",
    "save_backbone",
    "save_delta",
    "tune",
]
