"""Which device the work runs on."""

import torch

from autotransfer.errors import DeviceError


def choose_device(name: str = "auto") -> torch.device:
    """The device that `auto`, `cpu` or `cuda` means on this machine, set up for the work.

    On a GPU: algorithms that give the same result twice, and matrix products in TF32, as convolutions are.

    Raises:
        DeviceError: an unknown name, or `cuda` on a machine without a usable GPU.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise DeviceError(f"device must be auto, cpu or cuda but got '{name}'.")
    if name == "cuda" and not torch.cuda.is_available():
        raise DeviceError("no usable CUDA GPU on this machine (`autotransfer doctor` says more). Use --device cpu.")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        torch.backends.cudnn.deterministic = True
        torch.set_float32_matmul_precision("high")
    return torch.device(name)
