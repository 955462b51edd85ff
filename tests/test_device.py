import pytest
import torch

from autotransfer.device import choose_device
from autotransfer.errors import DeviceError


@pytest.fixture(params=[True, False], ids=["with a GPU", "without a GPU"])
def gpu(request, monkeypatch) -> bool:
    """Stands in for a machine that has a usable GPU, and for one that has none."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: request.param)
    return request.param


def test_auto_is_the_gpu_where_there_is_one(gpu):
    assert choose_device().type == choose_device("auto").type == ("cuda" if gpu else "cpu")


def test_cpu_is_the_cpu_everywhere(gpu):
    assert choose_device("cpu") == torch.device("cpu")


def test_cuda_is_the_gpu_or_an_error_that_says_what_to_do(gpu):
    if gpu:
        assert choose_device("cuda").type == "cuda"
        return
    with pytest.raises(DeviceError, match=r"no usable CUDA GPU.*doctor.*--device cpu"):
        choose_device("cuda")


@pytest.mark.parametrize("name", ["", "gpu", "CUDA", "cuda:1", "mps"])
def test_any_other_name_is_refused_with_the_names_there_are(name):
    with pytest.raises(DeviceError, match=f"auto, cpu or cuda but got '{name}'"):
        choose_device(name)


def test_the_chosen_device_can_be_used():
    assert torch.ones(2, device=choose_device()).sum().item() == 2
