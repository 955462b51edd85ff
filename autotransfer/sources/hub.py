"""The model hub: asked once whether it answers, so that nobody waits for every source in turn."""

import logging
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

REACHABLE = "reachable"
_TIMEOUT_SECONDS = 5.0


@contextmanager
def hub_or_cache() -> Iterator[None]:
    """Where the hub does not answer, its client works offline: it takes what it has cached and retries nothing."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    if not before and _state(constants.ENDPOINT) != REACHABLE:
        constants.HF_HUB_OFFLINE = True
    chatty = logging.getLogger("timm.models._hub")
    level = chatty.level
    chatty.setLevel(logging.WARNING)
    try:
        yield
    finally:
        chatty.setLevel(level)
        constants.HF_HUB_OFFLINE = before


@cache
def _state(address: str) -> str:
    return hub_state(address, _TIMEOUT_SECONDS)


def hub_state(address: str, timeout_seconds: float) -> str:
    """`reachable`, or why not, after at most `timeout_seconds`.

    The timeout of urllib does not cover looking up the name, hence the thread.
    """
    answers: list[str] = []
    thread = threading.Thread(target=lambda: answers.append(_head(address, timeout_seconds)), daemon=True)
    thread.start()
    thread.join(timeout_seconds)
    return answers[0] if answers else f"not reachable: no answer within {timeout_seconds:g} s"


def _head(address: str, timeout_seconds: float) -> str:
    try:
        request = urllib.request.Request(address, method="HEAD")
        with urllib.request.urlopen(request, timeout=timeout_seconds):
            return "reachable"
    except urllib.error.HTTPError as error:
        return f"not reachable: HTTP {error.code} {error.reason}"
    except (OSError, ValueError) as error:
        return f"not reachable: {getattr(error, 'reason', error)}"
