"""What measured latency promises: the median time of one image, for every place where a network can be cut."""

from types import SimpleNamespace

import pytest
import torch
from small_study import CONVNEXT, MOBILENET, Stopwatch, config_of
from torch import nn

from autotransfer.recommendation import latency
from autotransfer.recommendation.latency import level_latencies_ms, measure_latency_ms


class Slow(nn.Module):
    """A network whose passes take given milliseconds by the stopwatch, and which remembers what it saw."""

    def __init__(self, watch: Stopwatch, milliseconds: list[float]) -> None:
        super().__init__()
        self.watch, self.milliseconds, self.seen = watch, list(milliseconds), []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen.append((tuple(images.shape), self.training, torch.is_grad_enabled()))
        self.watch.now += self.milliseconds.pop(0) / 1e3
        return images


@pytest.fixture
def watch(monkeypatch) -> Stopwatch:
    stopwatch = Stopwatch()
    monkeypatch.setattr(latency, "time", SimpleNamespace(perf_counter=stopwatch))
    return stopwatch


def test_it_is_the_median_after_two_passes_to_warm_up(watch):
    network = Slow(watch, [500, 400, 3, 1, 90, 2, 4])
    assert measure_latency_ms(network, 32, repeats=5) == pytest.approx(3)
    assert network.milliseconds == []


def test_one_image_is_passed_at_a_time_as_in_prediction(watch):
    network = Slow(watch, [1] * 11).train()
    measure_latency_ms(network, 48)
    assert set(network.seen) == {((1, 3, 48, 48), False, False)}


def test_a_real_network_takes_a_time_that_is_in_milliseconds(workshop):
    measured = measure_latency_ms(workshop.build(config_of(CONVNEXT, 4)), 48)
    assert 0.05 < measured < 2000


def test_every_level_of_every_source_is_measured_at_its_own_size(pool, monkeypatch):
    seen = []

    def note(model, image_size):
        seen.append((sum(p.numel() for p in model.parameters()), model.classifier.out_features, image_size))
        return float(len(seen))

    monkeypatch.setattr(latency, "measure_latency_ms", note)
    measured = level_latencies_ms(pool, 7)
    expected = [(c.source.name, c.level) for c in pool.candidates]
    assert sorted(measured) == sorted(expected)
    assert {classes for _, classes, _ in seen} == {7}
    for (name, level), number in measured.items():
        parameters, _, size = seen[int(number) - 1]
        kept = pool.get(name, level).source.levels[level - 1]
        assert size == {CONVNEXT: 48, MOBILENET: 64}[name]
        assert parameters == kept.parameter_count + (kept.channels + 1) * 7
