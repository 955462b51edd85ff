"""docs/proxies.md lists every proxy, with its paper's venue and what it needs."""

from pathlib import Path

import pytest

from autotransfer.proxies import list_proxies
from autotransfer.proxies.catalogue import Proxy

PAGE = Path(__file__).resolve().parents[2] / "docs" / "proxies.md"
ROWS = {line.split("`")[1]: line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")}


def test_the_page_has_a_row_for_every_proxy_and_for_nothing_else() -> None:
    assert set(ROWS) == {proxy.name for proxy in list_proxies()}


@pytest.mark.parametrize("proxy", list_proxies(), ids=lambda proxy: proxy.name)
def test_a_row_says_paper_need_and_targets(proxy: Proxy) -> None:
    cells = [cell.strip() for cell in ROWS[proxy.name].strip("|").split("|")]
    words = {"classification": "classes", "multilabel": "label sets", "regression": "values"}
    assert cells[2].startswith(proxy.paper.split(",")[0].removesuffix("IEEE TIT 1967"))
    assert cells[2][-4:] == proxy.paper[-4:]
    assert cells[3] == proxy.requires
    assert cells[4] == ", ".join(words[task] for task in proxy.tasks)
