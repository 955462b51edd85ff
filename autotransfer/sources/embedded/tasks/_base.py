"""What a pretraining task is, and how its randomness is seeded."""

import hashlib
from typing import Protocol

import torch

GENERATED = "no downloaded data, photographs, fonts or pretrained weights were used"


class Task(Protocol):
    """A supervised task whose images are generated on demand.

    What a class *is* (an alphabet, a set of patterns) is fixed by the task's own constructor; what an image
    looks like is drawn from the generator passed in. The same generator state gives the same batch.

    Attributes:
        name: short tag, the part after the dot in a source's name.
        class_names: one readable name per class, in label order.
        summary: one sentence for the model card: what an image shows and what the label is.
        provenance: for the model card, what the images and labels were made from.
    """

    name: str
    class_names: tuple[str, ...]
    summary: str
    provenance: str

    def batch(
        self, generator: torch.Generator, count: int, image_size: int, *, difficulty: float = 1.0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw `count` labelled images on the generator's device.

        Args:
            generator: the only source of randomness.
            count: number of images.
            image_size: pixels along one side.
            difficulty: 0 for plain pictures (upright, undisturbed, light on dark) to 1 for the whole task;
                a curriculum between them gets slow starters such as transformers off the ground.

        Returns:
            Images, float32 [count, 3, image_size, image_size] in 0..1, and labels: classes, int64 [count], or
            a teacher's probabilities, float32 [count, classes].
        """
        ...


def batch_generator(seed: int, split: str, index: int, device: str = "cpu") -> torch.Generator:
    """Return the generator of one batch: a pure function of seed, split and batch index.

    Splits ("train", "held-out") never share a stream, and a resumed run draws the batches that an
    uninterrupted one would have drawn.
    """
    digest = hashlib.blake2b(f"{seed}/{split}/{index}".encode(), digest_size=7).digest()
    return torch.Generator(device=device).manual_seed(int.from_bytes(digest, "big"))
