"""Transferability proxies: cheap scores of features, or of source class probabilities, against a target."""

from autotransfer.proxies.catalogue import Proxy
from autotransfer.proxies.registry import (
    DEFAULT_PROXIES,
    ProxyValue,
    compute_proxies,
    get_proxy,
    list_proxies,
)
from autotransfer.proxies.statistics import FeatureStatistics

__all__ = [
    "DEFAULT_PROXIES",
    "FeatureStatistics",
    "Proxy",
    "ProxyValue",
    "compute_proxies",
    "get_proxy",
    "list_proxies",
]
