"""Drawing on a batch of square canvases: coordinates, noise fields, colours, camera faults.

Coordinates run from -1 to 1 on both axes. Every function is vectorised over the batch and takes its
randomness from a generator, whose device is where the drawing happens.
"""

import math

import torch
from torch.nn import functional as F


def uniform(generator: torch.Generator, shape: tuple[int, ...], low: float, high: float) -> torch.Tensor:
    """Draw float32 values evenly from [low, high)."""
    return torch.rand(shape, generator=generator, device=generator.device) * (high - low) + low


def normal(generator: torch.Generator, shape: tuple[int, ...]) -> torch.Tensor:
    """Draw float32 values from the standard normal distribution."""
    return torch.randn(shape, generator=generator, device=generator.device)


def integers(generator: torch.Generator, shape: tuple[int, ...], high: int) -> torch.Tensor:
    """Draw int64 values evenly from 0..high-1."""
    return torch.randint(high, shape, generator=generator, device=generator.device)


def coin(generator: torch.Generator, count: int, probability: float) -> torch.Tensor:
    """Toss one coin per image: bool [count, 1, 1, 1]."""
    return torch.rand((count, 1, 1, 1), generator=generator, device=generator.device) < probability


def axis(image_size: int, device: torch.device) -> torch.Tensor:
    """Return the pixel centres along one axis, [image_size]."""
    return (torch.arange(image_size, device=device, dtype=torch.float32) + 0.5) * (2 / image_size) - 1


def rotation(angle: torch.Tensor) -> torch.Tensor:
    """Return rotation matrices [n, 2, 2] for angles [n] in radians."""
    cosine, sine = angle.cos(), angle.sin()
    return torch.stack((torch.stack((cosine, -sine), -1), torch.stack((sine, cosine), -1)), -2)


def affine_maps(
    generator: torch.Generator,
    count: int,
    *,
    degrees: float,
    scale: tuple[float, float],
    shear: float,
    difficulty: float = 1.0,
) -> torch.Tensor:
    """Draw linear maps [count, 2, 2]: rotation within +-degrees, log-even scale, anisotropy and shear.

    Difficulty narrows every range towards its middle.
    """
    degrees, shear = degrees * difficulty, shear * difficulty
    angle = uniform(generator, (count,), -degrees, degrees) * (math.pi / 180)
    low, high = math.log(scale[0]), math.log(scale[1])
    middle, reach = (low + high) / 2, (high - low) / 2 * difficulty
    size = torch.exp(uniform(generator, (count,), middle - reach, middle + reach))
    stretch = torch.exp(uniform(generator, (count,), -shear, shear))
    skew = uniform(generator, (count,), -shear, shear)
    zero = torch.zeros_like(size)
    shape = torch.stack((torch.stack((size * stretch, skew * size), -1), torch.stack((zero, size / stretch), -1)), -2)
    return rotation(angle) @ shape


def smooth_noise(
    generator: torch.Generator, count: int, image_size: int, cells: int, channels: int = 1
) -> torch.Tensor:
    """Draw smooth noise, [count, channels, size, size], about N(0, 1), with `cells` bumps along an axis."""
    lattice = normal(generator, (count, channels, cells + 2, cells + 2))
    extent = math.ceil(image_size * (cells + 2) / cells)
    field = F.interpolate(lattice, size=(extent, extent), mode="bilinear", align_corners=False)
    margin = (extent - image_size) // 2
    return field[..., margin : margin + image_size, margin : margin + image_size] * 1.4


def fractal_noise(
    generator: torch.Generator, count: int, image_size: int, persistence: torch.Tensor, octaves: int = 4
) -> torch.Tensor:
    """Sum octaves of smooth noise, [count, 1, size, size] of unit variance (fractional Brownian motion).

    Args:
        generator: source of randomness.
        count: number of images.
        image_size: pixels along one side.
        persistence: amplitude of an octave relative to the one before, [count].
        octaves: number of octaves, from 2 cells an axis upwards.
    """
    total = torch.zeros((count, 1, image_size, image_size), device=generator.device)
    energy = torch.zeros(count, device=generator.device)
    for octave in range(octaves):
        cells = min(2 << octave, image_size)
        amplitude = persistence**octave
        total += amplitude.view(-1, 1, 1, 1) * smooth_noise(generator, count, image_size, cells)
        energy += amplitude**2
    return total / energy.sqrt().view(-1, 1, 1, 1)


def hsv_to_rgb(hue: torch.Tensor, saturation: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Convert colours given as equal-shaped tensors in 0..1 (hue wraps) to RGB along a new axis 1."""
    channels = []
    for offset in (5.0, 3.0, 1.0):
        k = (offset + hue * 6) % 6
        channels.append(value - value * saturation * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(channels, 1)


def random_colours(generator: torch.Generator, count: int) -> torch.Tensor:
    """Draw colours [count, 3, 1, 1]: a third of them grey."""
    hue, value = uniform(generator, (count,), 0, 1), uniform(generator, (count,), 0.05, 1)
    saturation = uniform(generator, (count,), -0.5, 1).clamp(min=0)
    return hsv_to_rgb(hue, saturation, value)[..., None, None]


def push_apart(first: torch.Tensor, second: torch.Tensor, margin: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Move two batches of colours [n, 3, 1, 1] apart until their brightness differs by about `margin`."""
    gap = first.mean(1, keepdim=True) - second.mean(1, keepdim=True)
    push = (margin - gap.abs()).clamp(min=0) * torch.where(gap < 0, -1.0, 1.0)
    return (first + push / 2).clamp(0, 1), (second - push / 2).clamp(0, 1)


def contrasting_colours(
    generator: torch.Generator, count: int, margin: float = 0.3
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw pairs of colours, each [count, 3, 1, 1], whose brightness differs by about `margin` or more."""
    return push_apart(random_colours(generator, count), random_colours(generator, count), margin)


def simplify(colours: torch.Tensor, grey: float, difficulty: float) -> torch.Tensor:
    """Pull colours towards one grey the easier a picture shall be."""
    return grey + (colours - grey) * difficulty


def backgrounds(
    generator: torch.Generator, base: torch.Tensor, image_size: int, *, difficulty: float = 1.0
) -> torch.Tensor:
    """Paint flat, shaded or noisy grounds, [count, 3, size, size], around base colours [count, 3, 1, 1]."""
    count = len(base)
    strength = uniform(generator, (count, 1, 1, 1), -0.15, 0.15).clamp(min=0)
    shade = smooth_noise(generator, count, image_size, 2) * strength
    persistence = uniform(generator, (count,), 0.3, 0.9)
    busy = fractal_noise(generator, count, image_size, persistence)
    tint = normal(generator, (count, 3, 1, 1)) * 0.12 * coin(generator, count, 0.4)
    return (base + (shade + busy * tint) * difficulty).clamp(0, 1)


def camera_faults(generator: torch.Generator, images: torch.Tensor, *, difficulty: float = 1.0) -> torch.Tensor:
    """Degrade images [n, 3, size, size] the way cameras and thumbnails do; the result is within 0..1.

    A quarter are resampled from a quarter to half of their resolution, a fifth are blurred, half change in
    contrast and brightness, a third carry sensor noise; proportionally fewer at a lower difficulty.
    """
    count, _, size, _ = images.shape
    factor = (4, 3, 2)[int(integers(generator, (1,), 3))]
    low = F.interpolate(images, size=(max(4, size // factor),) * 2, mode="area")
    coarse = F.interpolate(low, size=(size, size), mode="bilinear", align_corners=False)
    images = torch.where(coin(generator, count, 0.25 * difficulty), coarse, images)
    blurred = F.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)
    images = torch.where(coin(generator, count, 0.2 * difficulty), blurred, images)
    contrast = torch.exp(normal(generator, (count, 1, 1, 1)) * 0.3)
    brightness = normal(generator, (count, 1, 1, 1)) * 0.1
    middle = images.mean((1, 2, 3), keepdim=True)
    changed = (images - middle) * contrast + middle + brightness
    images = torch.where(coin(generator, count, 0.5 * difficulty), changed, images)
    amount = uniform(generator, (count, 1, 1, 1), 0.0, 0.09) * coin(generator, count, 0.33 * difficulty)
    return (images + normal(generator, tuple(images.shape)) * amount).clamp(0, 1)
