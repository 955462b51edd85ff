"""Probing: one forward pass of a source that yields the features of all levels."""

from autotransfer.probing.image_size import choose_image_size, typical_image_size
from autotransfer.probing.linear_probe import LinearHead, best_linear_head, fit_linear_head
from autotransfer.probing.probe import Probe, probe
from autotransfer.probing.subset import stratified_subset

__all__ = [
    "LinearHead",
    "Probe",
    "best_linear_head",
    "choose_image_size",
    "fit_linear_head",
    "probe",
    "stratified_subset",
    "typical_image_size",
]
