"""The target: labelled images in a folder or a manifest -> `Dataset`, checked, split and fingerprinted.

Reading order: `loading` (the way through), `folder` and `manifest` (what users have), `verification`
(every file decoded and hashed once), `splits`, `dataset` (the result), `image` and `decoded` (pixels).
"""

from autotransfer.datasets.dataset import Dataset
from autotransfer.datasets.decoded import DecodedImages
from autotransfer.datasets.image import decode_image
from autotransfer.datasets.loading import check_exists, load_dataset

__all__ = ["Dataset", "DecodedImages", "check_exists", "decode_image", "load_dataset"]
