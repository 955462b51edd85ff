"""Scenes: find the emblem in a cluttered picture.

Classes are all pairs of an outline (polygons, stars, flowers, superformula shapes) and a mark painted on it
(plain, border, bar, cross, discs, ...). Around it lie other shapes on a noisy ground, one may cover it.
"""

import math

import torch

from autotransfer.sources.embedded.tasks import canvas
from autotransfer.sources.embedded.tasks._base import GENERATED

_ANGLES = 360
_MARKS = ("plain", "border", "bar", "cross", "disc", "two discs", "wedge", "stripes")
_POLYGONS = (3, 4, 5, 6, 8)
_STARS = ((4, 0.45), (5, 0.45), (6, 0.6), (12, 0.7))
_FLOWERS = ((3, 0.28), (4, 0.25), (5, 0.22), (8, 0.15))


class Scenes:
    """Emblems among clutter, outline times mark (see `Task`).

    Args:
        shapes_seed: fixes the irregular outlines.
    """

    name = "scenes"
    provenance = GENERATED
    summary = "a coloured emblem among overlapping shapes; the label is its outline and the mark painted on it"

    def __init__(self, shapes_seed: int = 11) -> None:
        names, self._profiles = _outlines(torch.Generator().manual_seed(shapes_seed))
        self.class_names = tuple(f"{outline}, {mark}" for outline in names for mark in _MARKS)

    def batch(
        self, generator: torch.Generator, count: int, image_size: int, *, difficulty: float = 1.0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw scenes, see `Task.batch`."""
        labels = canvas.integers(generator, (count,), len(self.class_names))
        body, paint = canvas.contrasting_colours(generator, count)
        base, body = canvas.push_apart(canvas.random_colours(generator, count), body, margin=0.2)
        base, body, paint = (
            canvas.simplify(colours, grey, difficulty) for colours, grey in ((base, 0.0), (body, 0.5), (paint, 1.0))
        )
        image = canvas.backgrounds(generator, base, image_size, difficulty=difficulty)
        for _ in range(2):
            image = self._clutter(generator, image, reach=1.0, probability=0.5 * difficulty)
        image = self._emblem(generator, image, labels, body, paint, difficulty)
        image = self._clutter(generator, image, reach=1.2, probability=0.2 * difficulty)
        light = 1 + 0.15 * difficulty * canvas.smooth_noise(generator, count, image_size, 2)
        return canvas.camera_faults(generator, (image * light).clamp(0, 1), difficulty=difficulty), labels

    def _emblem(
        self,
        generator: torch.Generator,
        image: torch.Tensor,
        labels: torch.Tensor,
        body: torch.Tensor,
        paint: torch.Tensor,
        difficulty: float,
    ) -> torch.Tensor:
        """Lay the emblem near the middle, its body and mark in the given colours [n, 3, 1, 1]."""
        count, _, size, _ = image.shape
        outline, mark = labels // len(_MARKS), labels % len(_MARKS)
        maps = canvas.affine_maps(generator, count, degrees=25, scale=(0.9, 1.5), shear=0.2, difficulty=difficulty)
        reach = 0.2 * difficulty
        place = _places(maps, canvas.uniform(generator, (count, 1, 2), -reach, reach), size)
        inside = self._inside(place, outline)
        marked = _mark(place, inside, mark)
        sharp = 0.5 * size
        cover = torch.sigmoid(inside * sharp)[:, None]
        blend = torch.sigmoid(marked * sharp)[:, None]
        shaded = canvas.backgrounds(generator, body, size, difficulty=difficulty)
        colour = shaded + blend * (paint - shaded)
        return image + cover * (colour - image)

    def _clutter(
        self, generator: torch.Generator, image: torch.Tensor, reach: float, probability: float
    ) -> torch.Tensor:
        """Lay one more shape on some of the images, with its middle off the canvas' own middle."""
        count, _, size, _ = image.shape
        outline = canvas.integers(generator, (count,), len(self._profiles))
        maps = canvas.affine_maps(generator, count, degrees=180, scale=(1.8, 5.0), shear=0.3)
        angle = canvas.uniform(generator, (count, 1), 0, 2 * math.pi)
        distance = canvas.uniform(generator, (count, 1), 0.75, reach + 0.1)
        centre = torch.stack((angle.cos(), angle.sin()), -1) * distance[..., None]
        inside = self._inside(_places(maps, centre, size), outline)
        cover = torch.sigmoid(inside * 20.0)[:, None] * canvas.coin(generator, count, probability)
        return image + cover * (canvas.random_colours(generator, count) - image)

    def _inside(self, place: torch.Tensor, outline: torch.Tensor) -> torch.Tensor:
        """Return how far inside its outline each place [n, size, size, 2] lies; negative outside."""
        turn = torch.atan2(place[..., 1], place[..., 0]) / (2 * math.pi) % 1
        index = (turn * _ANGLES).long().clamp(max=_ANGLES - 1)
        profile = self._profiles.to(place.device)[outline]
        radius = torch.gather(profile, 1, index.flatten(1)).view_as(turn)
        return radius - place.square().sum(-1).sqrt()


def _places(maps: torch.Tensor, centre: torch.Tensor, image_size: int) -> torch.Tensor:
    """Return each pixel in the frame of a shape moved by `centre`, shrunk by `maps`, [n, size, size, 2]."""
    axis = canvas.axis(image_size, maps.device)
    flat = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1).view(1, -1, 2)
    return ((flat - centre) @ maps.mT).view(-1, image_size, image_size, 2)


def _mark(place: torch.Tensor, inside: torch.Tensor, mark: torch.Tensor) -> torch.Tensor:
    """Return how far inside its mark each place lies, [n, size, size], the marks in the order of `_MARKS`."""
    x, y = place.unbind(-1)
    bar = 0.16 - y.abs()
    shapes = (
        torch.full_like(x, -1.0),
        0.2 - inside,
        bar,
        torch.maximum(0.13 - (x - y).abs() * 0.7, 0.13 - (x + y).abs() * 0.7),
        0.32 - place.norm(dim=-1),
        0.2 - torch.stack((x.abs() - 0.3, y), -1).norm(dim=-1),
        torch.minimum(0.35 - y, y + 0.35 - x.abs() * 1.4),
        torch.sin(x * 11) * 0.12,
    )
    result = shapes[0]
    for index, shape in enumerate(shapes[1:], start=1):
        result = torch.where((mark == index).view(-1, 1, 1), shape, result)
    return result


def _outlines(generator: torch.Generator) -> tuple[tuple[str, ...], torch.Tensor]:
    """Return names and polar profiles [outlines, angles], each of mean radius 0.8.

    The irregular ones follow Gielis' superformula (American Journal of Botany 90(3), 2003).
    """
    theta = (torch.arange(_ANGLES) + 0.5) * (2 * math.pi / _ANGLES)
    names, profiles = ["disc"], [torch.ones(_ANGLES)]
    for sides in _POLYGONS:
        sector = 2 * math.pi / sides
        names.append(f"{sides}-gon")
        profiles.append(1 / torch.cos((theta + math.pi / 2 + sector / 2) % sector - sector / 2))
    for points, depth in _STARS:
        wave = ((theta + math.pi / 2) * points / (2 * math.pi) % 1 - 0.5).abs() * 2
        names.append(f"{points}-star")
        profiles.append(depth + (1 - depth) * wave)
    for petals, depth in _FLOWERS:
        names.append(f"{petals}-flower")
        profiles.append(1 + depth * torch.cos((theta + math.pi / 2) * petals))
    for index in range(6):
        m = 1 + int(canvas.integers(generator, (1,), 6))
        n1, n2, n3 = canvas.uniform(generator, (3,), 0.6, 3.0).tolist()
        angle = m * theta / 4
        profile = (angle.cos().abs() ** n2 + angle.sin().abs() ** n3) ** (-1 / n1)
        names.append(f"superformula-{index}")
        profiles.append(profile.clamp(0.1, 4 * float(profile.median())))
    table = torch.stack(profiles)
    return tuple(names), 0.8 * table / table.mean(1, keepdim=True)
