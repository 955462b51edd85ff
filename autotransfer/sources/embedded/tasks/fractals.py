"""Fractals: recognise which iterated function system drew the picture.

Formula-driven supervised pretraining (Kataoka et al., "Pre-training without Natural Images", ACCV 2020),
with the systems drawn by their singular values (Anderson and Farrell, "Improving Fractal Pre-training", WACV
2022). A class is a set of two to four contractions; an image perturbs, transforms and colours its attractor.
"""

import math

import torch

from autotransfer.sources.embedded.tasks import canvas
from autotransfer.sources.embedded.tasks._base import GENERATED

_MAPS = 4
_WALKERS = 640
_WARM_UP = 7
_ROUNDS = 4


class Fractals:
    """Attractors of iterated function systems (see `Task`).

    Args:
        systems: number of classes.
        systems_seed: fixes the contractions of each class.
    """

    name = "fractals"
    provenance = GENERATED
    summary = "a coloured fractal on a plain or noisy ground; the label is the iterated function system behind it"

    def __init__(self, systems: int = 100, systems_seed: int = 3) -> None:
        self.class_names = tuple(f"fractal-{index:03d}" for index in range(systems))
        generator = torch.Generator().manual_seed(systems_seed)
        self._linear, self._shift, self._share = _draw_systems(generator, systems)

    def batch(
        self, generator: torch.Generator, count: int, image_size: int, *, difficulty: float = 1.0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw attractors, see `Task.batch`."""
        labels = canvas.integers(generator, (count,), len(self.class_names))
        points, last = self._play(generator, labels, difficulty)
        middle = points.mean(1, keepdim=True)
        spread = (points - middle).square().sum(-1).mean(1).sqrt().view(-1, 1, 1)
        maps = canvas.affine_maps(generator, count, degrees=180, scale=(0.48, 0.8), shear=0.15, difficulty=difficulty)
        points = ((points - middle) / (spread + 1e-4)) @ maps.mT
        reach = 0.2 * difficulty
        points = points + canvas.uniform(generator, (count, 1, 2), -reach, reach)
        density = _histogram(points, last, image_size)
        ink = 1 - torch.exp(-density.sum(1, keepdim=True) * canvas.uniform(generator, (count, 1, 1, 1), 0.6, 2.0))
        share = density / (density.sum(1, keepdim=True) + 1e-6)
        paper, colour = canvas.contrasting_colours(generator, count)
        paper, colour = canvas.simplify(paper, 0.0, difficulty), canvas.simplify(colour, 1.0, difficulty)
        tints = colour + canvas.normal(generator, (count, 3, 1, _MAPS)) * 0.15
        paint = torch.einsum("bcm,bmhw->bchw", tints[:, :, 0], share).clamp(0, 1)
        ground = canvas.backgrounds(generator, paper, image_size, difficulty=difficulty)
        return canvas.camera_faults(generator, ground + ink * (paint - ground), difficulty=difficulty), labels

    def _play(
        self, generator: torch.Generator, labels: torch.Tensor, difficulty: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Play the chaos game with many short walks at once.

        Returns:
            Points [n, walkers * rounds, 2] and the map [n, walkers * rounds] that led to each.
        """
        count, device = len(labels), generator.device
        linear = self._linear.to(device)[labels] * (
            1 + canvas.normal(generator, (count, _MAPS, 2, 2)) * 0.05 * difficulty
        )
        shift = self._shift.to(device)[labels] + canvas.normal(generator, (count, _MAPS, 2)) * (0.03 * difficulty)
        moves = torch.cat((linear.flatten(2), shift), -1)
        share = self._share.to(device)[labels]
        steps = _WARM_UP + _ROUNDS
        choice = torch.multinomial(share, _WALKERS * steps, replacement=True, generator=generator)
        choice = choice.view(count, steps, _WALKERS)
        x, y = torch.zeros((2, count, _WALKERS), device=device)
        points = []
        for step in range(steps):
            a, b, c, d, e, f = torch.gather(moves, 1, choice[:, step, :, None].expand(-1, -1, 6)).unbind(-1)
            x, y = a * x + b * y + e, c * x + d * y + f
            if step >= _WARM_UP:
                points.append(torch.stack((x, y), -1))
        return torch.cat(points, 1), choice[:, _WARM_UP:].flatten(1)


def _histogram(points: torch.Tensor, last: torch.Tensor, image_size: int) -> torch.Tensor:
    """Count points per pixel and map, [n, maps, size, size], softened by a 3x3 box."""
    count = len(points)
    pixel = ((points + 1) * (image_size / 2)).floor().long()
    visible = ((pixel >= 0) & (pixel < image_size)).all(-1)
    pixel = pixel.clamp(0, image_size - 1)
    image = torch.arange(count, device=points.device).view(-1, 1)
    index = ((image * _MAPS + last) * image_size + pixel[..., 1]) * image_size + pixel[..., 0]
    cells = torch.zeros(count * _MAPS * image_size**2, device=points.device)
    cells.index_add_(0, index.flatten(), visible.float().flatten())
    density = cells.view(count, _MAPS, image_size, image_size)
    return density + torch.nn.functional.avg_pool2d(density, 3, stride=1, padding=1)


def _draw_systems(generator: torch.Generator, systems: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draw contractions: linear parts [n, maps, 2, 2], shifts [n, maps, 2], probabilities [n, maps].

    A map is rotation * diag(singular values) * rotation * signs. Singular values in 0.25..0.8 neither
    collapse a picture to points nor let it escape; probabilities follow the determinants (after Barnsley).
    """
    shape = (systems, _MAPS)
    turns = [
        canvas.rotation(canvas.uniform(generator, (systems * _MAPS,), 0, 2 * math.pi)).view(*shape, 2, 2)
        for _ in range(2)
    ]
    values = canvas.uniform(generator, (*shape, 2), 0.25, 0.8)
    signs = torch.where(canvas.uniform(generator, (*shape, 2), 0, 1) < 0.5, -1.0, 1.0)
    linear = turns[0] @ torch.diag_embed(values) @ turns[1] @ torch.diag_embed(signs)
    shift = canvas.uniform(generator, (*shape, 2), -1, 1)
    number = 2 + canvas.integers(generator, (systems, 1), 3)
    present = (torch.arange(_MAPS) < number).float()
    share = present * (values.prod(-1) + 0.05)
    return linear, shift, share / share.sum(1, keepdim=True)
