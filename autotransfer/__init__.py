"""autotransfer: which pretrained model to transfer to your labelled data, how much of it, and how.

    import autotransfer

    recommendation = autotransfer.recommend("photos/", budget="10m")
    recommendation.predict(["new.jpg"])

Everything here is imported on first use, so `import autotransfer` costs next to nothing.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = ["AutotransferError", "Recommendation", "__version__", "load", "recommend", "score"]

if TYPE_CHECKING:
    from autotransfer.errors import AutotransferError
    from autotransfer.recommendation import Recommendation, recommend
    from autotransfer.search.scoring import score
    from autotransfer.transfer.model import load_model as load

_HOMES = {
    "AutotransferError": "autotransfer.errors",
    "Recommendation": "autotransfer.recommendation",
    "load": "autotransfer.transfer.model:load_model",
    "recommend": "autotransfer.recommendation",
    "score": "autotransfer.search.scoring",
}


def __getattr__(name: str) -> Any:
    """Import the public names when they are first asked for (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'autotransfer' has no attribute {name!r}")
    from importlib import import_module

    module, _, attribute = _HOMES[name].partition(":")
    value = getattr(import_module(module), attribute or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, imported or not."""
    return sorted(__all__)
