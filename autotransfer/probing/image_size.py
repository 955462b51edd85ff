"""At which image size a source is used for a target."""

import numpy as np
from PIL import Image

from autotransfer.datasets import Dataset
from autotransfer.sources import Source

_SMALLEST_UPSCALE = 96
_LOOKED_AT = 200


def typical_image_size(dataset: Dataset) -> int:
    """The 90% quantile of the longer sides of the target's images, from at most 200 of them, in pixels."""
    paths = dataset.samples["image"].to_numpy()
    step = max(1, len(paths) // _LOOKED_AT)
    longer = []
    for path in paths[::step]:
        with Image.open(path) as image:
            longer.append(max(image.size))
    return int(np.quantile(longer, 0.9))


def choose_image_size(source: Source, typical: int, limit: int | None = None) -> int:
    """The side in pixels at which `source` sees images that are typically `typical` pixels long.

    The source's own size, unless the images are smaller and the architecture takes other sizes: enlarging
    them adds cost and no information. At least 96 px (or the source's own size, if that is less), because
    networks pretrained on large images lose more below that than the enlargement costs.

    Args:
        source: the source to be used.
        typical: from `typical_image_size`.
        limit: an upper limit in pixels that the search space sets.
    """
    own = source.data_config.image_size
    if source.data_config.fixed_image_size:
        return own
    wanted = max(_SMALLEST_UPSCALE, -(-typical // 32) * 32)
    return min(own, wanted, limit or own)
