"""Which device the work runs on."""

import torch

from autotransfer.errors import DeviceError


def choose_device(name: str = "auto") -> torch.device:
    """The device that `auto`, `cpu` or `cuda` means on this machine.

    Raises:
        DeviceError: an unknown name, or `cuda` on a machine without a usable GPU.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise DeviceError(f"device must be auto, cpu or cuda but got '{name}'.")
    if name == "cuda" and not torch.cuda.is_available():
        raise DeviceError("no usable CUDA GPU on this machine (`autotransfer doctor` says more). Use --device cpu.")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)
