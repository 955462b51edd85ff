"""Glyphs: read one character of an invented script.

Every class is a character of two to four strokes (lines, arcs, loops) drawn once from a fixed seed; no font
and no existing script is involved. An image is one handwriting of it: strokes jittered, bent and transformed,
drawn with a pen of random width on a random ground, sometimes beside a neighbouring character.
"""

import math

import torch

from autotransfer.sources.embedded.tasks import canvas
from autotransfer.sources.embedded.tasks._base import GENERATED

_STROKES = 4
_POINTS = 28


class Glyphs:
    """Invented characters, drawn by Gaussian pens (see `Task`).

    Args:
        characters: size of the invented alphabet.
        alphabet_seed: fixes what each character looks like.
    """

    name = "glyphs"
    provenance = GENERATED
    summary = "one character of an invented script in a random hand, colour and ground; the label is the character"

    def __init__(self, characters: int = 200, alphabet_seed: int = 7) -> None:
        self.class_names = tuple(f"glyph-{index:03d}" for index in range(characters))
        generator = torch.Generator().manual_seed(alphabet_seed)
        self._strokes, self._present = _draw_alphabet(generator, characters)

    def batch(
        self, generator: torch.Generator, count: int, image_size: int, *, difficulty: float = 1.0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw characters, see `Task.batch`."""
        labels = canvas.integers(generator, (count,), len(self.class_names))
        pen = canvas.uniform(generator, (count, 1), 0.04, 0.115)
        points, weights = self._write(generator, labels, difficulty)
        neighbour, neighbour_weights = self._write(
            generator, canvas.integers(generator, (count,), len(self.class_names)), difficulty
        )
        side = torch.where(canvas.coin(generator, count, 0.5).view(-1, 1), -1.0, 1.0)
        shift = torch.stack((side * 1.7, canvas.uniform(generator, (count, 1), -0.4, 0.4)), -1)
        neighbour_weights = neighbour_weights * canvas.coin(generator, count, 0.3 * difficulty).view(-1, 1)
        ink = _ink(
            torch.cat((points, neighbour + shift), 1),
            torch.cat((weights, neighbour_weights), 1),
            pen,
            image_size,
        )
        sharpness = canvas.uniform(generator, (count, 1, 1), 0.8, 5.0)
        ink = ((ink - 0.5) * sharpness + 0.5).clamp(0, 1)[:, None]
        hollow = canvas.coin(generator, count, 0.08 * difficulty)
        ink = torch.where(hollow, (4 * ink * (1 - ink)), ink)
        paper, colour = canvas.contrasting_colours(generator, count)
        paper, colour = canvas.simplify(paper, 0.0, difficulty), canvas.simplify(colour, 1.0, difficulty)
        ground = canvas.backgrounds(generator, paper, image_size, difficulty=difficulty)
        paint = canvas.backgrounds(generator, colour, image_size, difficulty=difficulty)
        return canvas.camera_faults(generator, ground + ink * (paint - ground), difficulty=difficulty), labels

    def _write(
        self, generator: torch.Generator, labels: torch.Tensor, difficulty: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write characters by hand: points [n, p, 2] on the canvas and their weights [n, p]."""
        count, device = len(labels), generator.device
        strokes = self._strokes.to(device)[labels]
        strokes = strokes + canvas.normal(generator, (count, _STROKES, 1, 2)) * (0.05 * difficulty)
        stretch = 1 + canvas.normal(generator, (count, _STROKES, 1, 2)) * (0.08 * difficulty)
        middle = strokes.mean(2, keepdim=True)
        points = ((strokes - middle) * stretch + middle).flatten(1, 2)
        # A slow wave along each axis bends the whole character: a cheap elastic distortion.
        phase = canvas.uniform(generator, (count, 1, 2), 0, 2 * math.pi)
        speed = canvas.uniform(generator, (count, 1, 2), 1.0, 4.0)
        points = points + 0.1 * difficulty * torch.sin(points.flip(-1) * speed + phase)
        maps = canvas.affine_maps(generator, count, degrees=20, scale=(0.6, 1.1), shear=0.25, difficulty=difficulty)
        reach = 0.18 * difficulty
        points = points @ maps.mT + canvas.uniform(generator, (count, 1, 2), -reach, reach)
        steps = points.view(count, _STROKES, _POINTS, 2).diff(dim=2).norm(dim=-1)
        length = torch.cat((steps, steps[..., -1:]), -1)
        return points, (length * self._present.to(device)[labels][..., None]).flatten(1)


def _ink(points: torch.Tensor, weights: torch.Tensor, pen: torch.Tensor, image_size: int) -> torch.Tensor:
    """Splat Gaussian dots into images [n, size, size]: 1 on the middle of a stroke, 0 far away.

    A two-dimensional Gaussian is a product of two one-dimensional ones, so the sum over all points is one
    batched matrix product of [size, p] and [p, size].
    """
    axis = canvas.axis(image_size, points.device)
    scale = pen[..., None]
    across = torch.exp(-0.5 * ((axis - points[..., :1]) / scale) ** 2)
    down = torch.exp(-0.5 * ((axis - points[..., 1:]) / scale) ** 2)
    down = down * (weights[..., None] / (scale * math.sqrt(2 * math.pi)))
    return down.mT @ across


def _draw_alphabet(generator: torch.Generator, characters: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Invent strokes [characters, strokes, points, 2] and say which exist, [characters, strokes]."""
    shape = (characters, _STROKES)
    t = torch.linspace(0, 1, _POINTS)
    grid = torch.tensor([-0.7, 0.0, 0.7])
    start, bend, end = (
        grid[canvas.integers(generator, (*shape, 2), 3)] + canvas.normal(generator, (*shape, 2)) * 0.08
        for _ in range(3)
    )
    same = (start - end).norm(dim=-1, keepdim=True) < 0.5
    end = torch.where(same, -start + 0.2, end)
    curved = (canvas.uniform(generator, (*shape, 1), 0, 1) < 0.5).float()
    bend = curved * bend + (1 - curved) * (start + end) / 2
    u = t.view(1, 1, -1, 1)
    curve = (1 - u) ** 2 * start[:, :, None] + 2 * u * (1 - u) * bend[:, :, None] + u**2 * end[:, :, None]
    centre = grid[canvas.integers(generator, (*shape, 2), 3)] * 0.55
    radius = canvas.uniform(generator, (*shape, 2), 0.25, 0.6)
    turn = torch.tensor([1.0, 1.0, 0.75, 0.5])[canvas.integers(generator, shape, 4)] * 2 * math.pi
    angle = canvas.uniform(generator, shape, 0, 2 * math.pi)[..., None] + turn[..., None] * t
    loop = centre[:, :, None] + radius[:, :, None] * torch.stack((angle.cos(), angle.sin()), -1)
    is_loop = canvas.uniform(generator, (*shape, 1, 1), 0, 1) < 0.35
    strokes = torch.where(is_loop, loop, curve)
    number = 2 + canvas.integers(generator, (characters, 1), 3)
    present = (torch.arange(_STROKES) < number).float()
    weight = present[..., None, None]
    middle = (strokes * weight).sum((1, 2), keepdim=True) / (weight.sum((1, 2), keepdim=True) * _POINTS)
    return strokes - middle, present
