"""fakedet: detect AI-generated images by the natural traces that real photographs share.

>>> import fakedet
>>> detector = fakedet.load("demo")
>>> detector.predict("photo.jpg").verdict
'real'
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fakedet.detector import Detector, Prediction, load
    from fakedet.errors import UserError

__version__ = "0.1.0"

__all__ = ["Detector", "Prediction", "UserError", "__version__", "load"]

# Imported when first used: PyTorch takes seconds that `fakedet --help` need not.
_HOMES = {
    "Detector": "fakedet.detector",
    "Prediction": "fakedet.detector",
    "UserError": "fakedet.errors",
    "load": "fakedet.detector",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fakedet' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
