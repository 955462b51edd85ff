"""Textures: name the surface pattern and its palette.

Classes are all pairs of a pattern (stripes, checks, dots, cells, cracks, clouds, marble, bricks, ...) and a
palette (foliage, water, fire, ...). Orientation, exact scale, distortion, contrast and lighting vary within a
class.
"""

import math

import torch

from autotransfer.sources.embedded.tasks import canvas
from autotransfer.sources.embedded.tasks._base import GENERATED

# (name, family, parameters of the family's formula)
_PATTERNS: tuple[tuple[str, str, float, float], ...] = (
    ("broad stripes", "stripes", 2.0, 1.0),
    ("narrow stripes", "stripes", 5.0, 1.0),
    ("broad bars", "stripes", 2.0, 8.0),
    ("narrow bars", "stripes", 5.0, 8.0),
    ("broad waves", "waves", 2.5, 0.5),
    ("narrow zigzag", "waves", 4.5, 1.0),
    ("broad checks", "checks", 1.5, 8.0),
    ("narrow checks", "checks", 3.5, 8.0),
    ("egg box", "checks", 2.5, 1.0),
    ("wide lattice", "lattice", 2.0, 0.85),
    ("tight lattice", "lattice", 4.0, 0.7),
    ("big dots", "dots", 2.0, 0.7),
    ("small dots", "dots", 4.0, 0.55),
    ("bricks", "bricks", 2.0, 0.12),
    ("tiles", "bricks", 3.5, 0.2),
    ("rings", "rings", 4.0, 0.3),
    ("wood", "rings", 5.0, 1.6),
    ("marble", "marble", 2.0, 1.5),
    ("veins", "marble", 4.0, 2.5),
    ("large cells", "cells", 8.0, 0.0),
    ("small cells", "cells", 28.0, 0.0),
    ("large cracks", "cells", 8.0, 1.0),
    ("small cracks", "cells", 28.0, 1.0),
    ("soft clouds", "clouds", 0.35, 0.0),
    ("clouds", "clouds", 0.7, 0.0),
    ("gravel", "clouds", 1.3, 0.0),
    ("ridges", "clouds", 0.5, 1.0),
    ("scratches", "brushed", 0.9, 0.0),
    ("spots", "speckles", 0.6, 0.9),
    ("speckles", "speckles", 1.2, 1.3),
)
# (name, two hues, spread of saturation, range of value)
_PALETTES: tuple[tuple[str, float, float, float, float, float], ...] = (
    ("foliage", 0.27, 0.36, 0.35, 0.9, 0.75),
    ("water", 0.55, 0.64, 0.3, 0.9, 0.8),
    ("fire", 0.99, 0.1, 0.6, 1.0, 0.95),
    ("earth", 0.05, 0.11, 0.25, 0.6, 0.65),
    ("violet", 0.75, 0.9, 0.3, 0.9, 0.85),
    ("sand", 0.12, 0.17, 0.2, 0.55, 1.0),
    ("grey", 0.0, 1.0, 0.0, 0.08, 0.9),
    ("opposites", 0.05, 0.55, 0.5, 0.9, 0.9),
)


class Textures:
    """Procedural surfaces, pattern times palette (see `Task`)."""

    name = "textures"
    provenance = GENERATED
    summary = "a procedural surface, turned, scaled and lit at random; the label is its pattern and its palette"

    def __init__(self) -> None:
        self.class_names = tuple(f"{palette[0]} {pattern[0]}" for pattern in _PATTERNS for palette in _PALETTES)

    def batch(
        self, generator: torch.Generator, count: int, image_size: int, *, difficulty: float = 1.0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw surfaces, see `Task.batch`."""
        labels = canvas.integers(generator, (count,), len(self.class_names))
        pattern, palette = labels // len(_PALETTES), labels % len(_PALETTES)
        field = self._fields(generator, pattern, image_size, difficulty)
        return canvas.camera_faults(generator, _paint(generator, field, palette), difficulty=difficulty), labels

    def _fields(
        self, generator: torch.Generator, pattern: torch.Tensor, image_size: int, difficulty: float
    ) -> torch.Tensor:
        """Evaluate the patterns' formulas: heights in 0..1, [n, 1, size, size]."""
        count, device = len(pattern), generator.device
        axis = canvas.axis(image_size, device)
        flat = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1).view(1, -1, 2)
        maps = canvas.affine_maps(generator, count, degrees=180, scale=(0.75, 1.35), shear=0.15, difficulty=difficulty)
        offset = canvas.uniform(generator, (count, 1, 2), -4, 4)
        bend = canvas.smooth_noise(generator, count, image_size, 2, channels=2).flatten(2).mT
        bent = canvas.uniform(generator, (count, 1, 1), -0.1, 0.12).clamp(min=0) * difficulty
        place = (flat @ maps.mT + offset + bend * bent).view(count, image_size, image_size, 2)
        noise = canvas.fractal_noise(generator, count, image_size, torch.full((count,), 0.5, device=device))[:, 0]
        field = torch.zeros((count, image_size, image_size), device=device)
        families = [family for _, family, _, _ in _PATTERNS]
        parameters = torch.tensor([row[2:] for row in _PATTERNS], device=device)[pattern]
        for family in dict.fromkeys(families):
            members = torch.tensor([name == family for name in families], device=device)[pattern]
            rows = members.nonzero()[:, 0]
            if len(rows):
                first, second = (p.view(-1, 1, 1) for p in parameters[rows].unbind(1))
                field[rows] = _height(generator, family, place[rows], noise[rows], first, second)
        low, high = field.amin((1, 2), keepdim=True), field.amax((1, 2), keepdim=True)
        return ((field - low) / (high - low + 1e-6))[:, None]


def _height(
    generator: torch.Generator,
    family: str,
    place: torch.Tensor,
    noise: torch.Tensor,
    first: torch.Tensor,
    second: torch.Tensor,
) -> torch.Tensor:
    """Evaluate one family's formula at places [n, size, size, 2]; parameters are [n, 1, 1]."""
    x, y = place.unbind(-1)
    count, image_size = x.shape[:2]
    pi = math.pi
    match family:
        case "stripes":
            return torch.tanh(second * torch.sin(pi * first * x))
        case "waves":
            swing = torch.asin(torch.sin(pi * first * y) * 0.99) * second / first
            return torch.sin(pi * first * (x + 0.6 * swing))
        case "checks":
            return torch.tanh(second * torch.sin(pi * first * x) * torch.sin(pi * first * y))
        case "lattice":
            line = torch.maximum(torch.cos(pi * first * x), torch.cos(pi * first * y))
            return torch.sigmoid((line - second) * 15)
        case "dots":
            cell = torch.remainder(place * first[..., None], 2) - 1
            return torch.sigmoid((second - cell.norm(dim=-1)) * 12)
        case "bricks":
            row = torch.floor(y * first)
            brick_x = torch.remainder(x * first / 2 + 0.5 * row, 1) * 2
            edge = torch.minimum(torch.minimum(brick_x, 2 - brick_x), _to_edge(y * first) * 2)
            return torch.sigmoid((edge - second) * 18) + 0.1 * noise
        case "rings":
            radius = (place - place.mean((1, 2), keepdim=True) * 0.8).norm(dim=-1)
            return torch.sin(pi * first * radius + second * noise)
        case "marble":
            return torch.sin(pi * first * x + second * noise)
        case "cells":
            return _cells(generator, image_size, count, first, second)
        case "clouds":
            cloud = canvas.fractal_noise(generator, count, image_size, first.flatten())[:, 0]
            return torch.where(second > 0, -cloud.abs(), cloud)
        case "brushed":
            streaks = canvas.normal(generator, (count, 1, 64)).expand(-1, 64, -1)
            column = ((y * 6).remainder(64)).long().clamp(0, 63)
            return torch.gather(streaks[:, 0], 1, column.flatten(1)).view_as(x) + 0.5 * noise
        case _:  # speckles
            speckle = canvas.fractal_noise(generator, count, image_size, first.flatten(), octaves=4)[:, 0]
            return torch.sigmoid((speckle - second) * 10)


def _to_edge(value: torch.Tensor) -> torch.Tensor:
    """Return the distance to the nearest whole number, 0..0.5."""
    return (value - torch.round(value)).abs()


def _cells(
    generator: torch.Generator, image_size: int, count: int, seeds: torch.Tensor, cracked: torch.Tensor
) -> torch.Tensor:
    """Return Worley noise: distance to the nearest of random seeds, or the margin to the second (cracks)."""
    limit = int(max(row[2] for row in _PATTERNS if row[1] == "cells"))
    spots = canvas.uniform(generator, (count, limit, 2), -1.15, 1.15)
    number = seeds.view(-1, 1) * canvas.uniform(generator, (count, 1), 0.75, 1.0)
    hidden = torch.arange(limit, device=spots.device) >= number
    axis = canvas.axis(image_size, spots.device)
    gap_x = (spots[..., :1] - axis) ** 2 + torch.where(hidden, 100.0, 0.0)[..., None]
    gap_y = (spots[..., 1:] - axis) ** 2
    squared = gap_y[..., :, None] + gap_x[..., None, :]
    nearest, index = squared.min(1, keepdim=True)
    second = squared.scatter(1, index, 100.0).amin(1)
    nearest_distance = nearest[:, 0].sqrt()
    crack = ((second.sqrt() - nearest_distance) * seeds.sqrt() * 3).clamp(max=1)
    return torch.where(cracked > 0, crack, nearest_distance)


def _paint(generator: torch.Generator, field: torch.Tensor, palette: torch.Tensor) -> torch.Tensor:
    """Colour heights [n, 1, size, size] between two colours of a palette, then light the surface unevenly."""
    count, _, image_size, _ = field.shape
    rows = torch.tensor([row[1:] for row in _PALETTES], device=field.device)[palette]
    hue_a, hue_b, saturation_low, saturation_high, value_high = rows.unbind(1)
    swap = canvas.coin(generator, count, 0.5).view(-1)
    ends = []
    bright = canvas.uniform(generator, (count,), 0.7, 1.0)
    dark = bright * canvas.uniform(generator, (count,), 0.1, 0.65)
    for hue, value in ((hue_a, torch.where(swap, bright, dark)), (hue_b, torch.where(swap, dark, bright))):
        shade = hue + canvas.normal(generator, (count,)) * 0.015
        share = canvas.uniform(generator, (count,), 0, 1)
        saturation = saturation_low + (saturation_high - saturation_low) * share
        ends.append(canvas.hsv_to_rgb(shade % 1, saturation, value * value_high)[..., None, None])
    image = ends[0] + field * (ends[1] - ends[0])
    light = 1 + canvas.smooth_noise(generator, count, image_size, 2) * canvas.uniform(
        generator, (count, 1, 1, 1), 0, 0.2
    )
    return (image * light).clamp(0, 1)
