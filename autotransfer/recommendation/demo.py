"""The demo's target: scikit-learn's handwritten digits, written out as images."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_demo_dataset(folder: Path) -> Path:
    """Write the 1,797 digits as PNG files, 64 px, in folders `0` to `9`; returns the folder.

    The digits are the test part of the UCI optical digits (Alpaydin and Kaynak, 1998), 8 x 8 in 17 grey levels.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    for index, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        target = folder / str(label)
        target.mkdir(parents=True, exist_ok=True)
        grey = Image.fromarray(np.round(pixels * 255 / 16).astype(np.uint8))
        grey.resize((64, 64), Image.Resampling.BICUBIC).save(target / f"{index:04d}.png")
    return folder
