"""fakedet: detect AI-generated images by the natural traces that real photographs share.

>>> import fakedet
>>> detector = fakedet.load()
>>> detector.predict("photo.jpg").verdict
'real'
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fakedet.api import Evaluation, compose, evaluate, train
    from fakedet.detector import Detector, Prediction, load
    from fakedet.errors import UserError
    from fakedet.metrics.per_generator import AveragePrecision, average_precision
    from fakedet.training.train import TrainedRun

__version__ = "0.2.0"

__all__ = [
    "AveragePrecision",
    "Detector",
    "Evaluation",
    "Prediction",
    "TrainedRun",
    "UserError",
    "__version__",
    "average_precision",
    "compose",
    "evaluate",
    "load",
    "train",
]

# Where each name is defined. Imported when first used: PyTorch takes seconds that `fakedet --help` need not.
_MODULES = {
    "AveragePrecision": "fakedet.metrics.per_generator",
    "Detector": "fakedet.detector",
    "Evaluation": "fakedet.api",
    "Prediction": "fakedet.detector",
    "TrainedRun": "fakedet.training.train",
    "UserError": "fakedet.errors",
    "average_precision": "fakedet.metrics.per_generator",
    "compose": "fakedet.api",
    "evaluate": "fakedet.api",
    "load": "fakedet.detector",
    "train": "fakedet.api",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'fakedet' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
