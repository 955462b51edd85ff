"""What the embedded sources exist for: their features are worth more than random ones."""

import functools

import numpy as np
import pytest
import timm
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.nn import functional as F

from autotransfer.sources.embedded import embedded_folder
from autotransfer.sources.embedded.training import normalise
from autotransfer.sources.embedded.zoo import zoo_entry


def best_probe(model: nn.Module, image_size: int) -> float:
    """Accuracy on scikit-learn's digits of a linear classifier on the best level's pooled features."""
    digits = load_digits()
    images = torch.from_numpy(digits.images).float()[:, None].expand(-1, 3, -1, -1) / 16
    images = F.interpolate(images, size=(image_size, image_size), mode="bilinear")
    train, test = train_test_split(
        np.arange(len(images)), train_size=600, test_size=600, stratify=digits.target, random_state=0
    )
    with torch.inference_mode():
        batches = [model.forward_intermediates(x, intermediates_only=True) for x in normalise(images).split(256)]
    scores = []
    for level in zip(*batches, strict=True):
        features = torch.cat([maps.mean((2, 3)) for maps in level]).numpy()
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=300))
        probe.fit(features[train], digits.target[train])
        scores.append(float(probe.score(features[test], digits.target[test])))
    return max(scores)


@functools.cache
def pretrained_and_random(name: str) -> tuple[float, float]:
    scores = []
    for pretrained in (True, False):
        torch.manual_seed(0)
        model = timm.create_model(f"local-dir:{embedded_folder(name)}", pretrained=pretrained).eval()
        scores.append(best_probe(model, zoo_entry(name).image_size))
    return scores[0], scores[1]


# The others are left out on purpose: textures have no outlines to teach, and the small ConvNeXt's features of
# scenes are hardly better than random ones here. Their model cards say so.
SAW_SHAPES = ["resnet10t.glyphs", "resnet10t.scenes", "test_vit.fractals"]


@pytest.mark.slow
def test_the_best_source_reads_digits() -> None:
    assert max(pretrained_and_random(name)[0] for name in SAW_SHAPES) >= 0.95


@pytest.mark.parametrize("name", SAW_SHAPES)
def test_sources_that_saw_shapes_beat_their_random_features_on_digits(name: str) -> None:
    pretrained, random = pretrained_and_random(name)
    assert 1 - pretrained < 0.8 * (1 - random)
