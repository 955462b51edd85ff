"""Sources with random weights, as folders in timm's hub layout: real parts, no downloads."""

import json
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from torch import nn

from autotransfer.sources import Source, find_sources

# One small member of each of many families: architecture and the arguments that make it smaller still, for 64 px.
SMALL_FAMILIES: dict[str, dict[str, Any]] = {
    "resnet10t": {},
    "test_vit": {"img_size": 64},
    "mobilenetv3_small_050": {},
    "test_efficientnet": {},
    "test_convnext": {},
    "densenet121": {"growth_rate": 8, "block_config": [2, 2, 2, 2]},
    "swin_tiny_patch4_window7_224": {
        "img_size": 64,
        "window_size": 4,
        "embed_dim": 24,
        "depths": [1, 1, 2, 1],
        "num_heads": [1, 2, 4, 8],
    },
    "levit_128s": {"img_size": 64},
    "deit_tiny_distilled_patch16_224": {"img_size": 64, "embed_dim": 48, "depth": 3},
    "test_byobnet": {},
}

MORE_FAMILIES: dict[str, dict[str, Any]] = {
    "regnety_002": {},
    "mobilenetv4_conv_small_050": {},
    "ghostnet_050": {},
    "efficientvit_b0": {},
    "efficientvit_m0": {"img_size": 64},
    "convnext_atto": {},
    "mixer_s32_224": {"img_size": 64},
    "xcit_nano_12_p16_224": {},
    "test_nfnet": {},
    "test_mambaout": {},
    "mobilevit_xxs": {},
    "edgenext_xx_small": {},
    "fastvit_t8": {},
    "starnet_s050": {},
    "dla46_c": {},
    "hrnet_w18_small": {},
    "pvt_v2_b0": {},
    "vit_tiny_r_s16_p8_224": {"img_size": 64},
    "cait_xxs24_224": {"img_size": 64, "depth": 3},
    "pit_ti_224": {"img_size": 64},
    "tiny_vit_5m_224": {},
    "inception_next_atto": {},
    "volo_d1_224": {"img_size": 64},
    "lcnet_050": {},
    "maxvit_rmlp_pico_rw_256": {"img_size": 64},
    "eva02_tiny_patch14_224": {"img_size": 64, "patch_size": 16, "depth": 3},
}


def random_network(architecture: str, *, num_classes: int = 5, seed: int = 0, **model_args: Any) -> nn.Module:
    """A network in evaluation mode in which no parameter or norm statistic is where timm starts it."""
    torch.manual_seed(seed)
    model: nn.Module = timm.create_model(architecture, num_classes=num_classes, **model_args)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.03 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.1)
            elif name.endswith("running_var"):
                buffer.uniform_(0.8, 1.2)
    return model.eval()


def write_source(
    folder: Path, architecture: str, *, image_size: int = 64, num_classes: int = 5, seed: int = 0, **model_args: Any
) -> Source:
    """Write a random network to `folder`, ready for `local-dir:`, and find it."""
    model = random_network(architecture, num_classes=num_classes, seed=seed, **model_args)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "model.safetensors")
    kept = {key: model.pretrained_cfg[key] for key in ("classifier", "first_conv") if key in model.pretrained_cfg}
    config = {
        "architecture": architecture,
        "num_classes": num_classes,
        "model_args": model_args,
        "pretrained_cfg": {
            **kept,
            "num_classes": num_classes,
            "input_size": [3, image_size, image_size],
            "fixed_input_size": "img_size" in model_args,
            "mean": [0.5, 0.4, 0.3],
            "std": [0.2, 0.3, 0.25],
            "interpolation": "bilinear",
        },
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (source,) = find_sources([f"local-dir:{folder}"])
    return source
