"""Sources: pretrained models that can be transferred, and the catalogue that finds them."""

from autotransfer.sources.catalogue import find_sources, load_plugins, plugin_file, plugin_name
from autotransfer.sources.levels import Level, find_levels
from autotransfer.sources.source import DataConfig, Source, weights_hash

__all__ = [
    "DataConfig",
    "Level",
    "Source",
    "find_levels",
    "find_sources",
    "load_plugins",
    "plugin_file",
    "plugin_name",
    "weights_hash",
]
