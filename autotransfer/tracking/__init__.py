"""Tracking: every study and trial in MLflow.

`MlflowTracker` is imported on first use: a logged model imports this package where only its own
requirements are installed.
"""

from typing import TYPE_CHECKING, Any

__all__ = ["MlflowTracker"]

if TYPE_CHECKING:
    from autotransfer.tracking.mlflow_tracker import MlflowTracker


def __getattr__(name: str) -> Any:
    """Import the tracker when it is first asked for (PEP 562)."""
    if name != "MlflowTracker":
        raise AttributeError(f"module 'autotransfer.tracking' has no attribute {name!r}")
    from autotransfer.tracking.mlflow_tracker import MlflowTracker

    return MlflowTracker
