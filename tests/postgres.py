"""A real PostgreSQL server for tests, where this machine has its programs."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


def programs() -> Path | None:
    """The folder of PostgreSQL's programs, the newest version."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    on_path = shutil.which("initdb")
    return found[-1].parent if found else Path(on_path).parent if on_path else None


@contextmanager
def postgres_server(folder: Path) -> Iterator[str]:
    """A server on loopback with one empty database; its URL."""
    pytest.importorskip("psycopg")
    bin_dir = programs()
    if bin_dir is None:
        pytest.skip("PostgreSQL's programs are not on this machine")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    data = folder / "postgres"
    data.mkdir()
    user: dict[str, Any] = {}
    if os.getuid() == 0:  # it refuses to run as root
        shutil.chown(data, "postgres")
        for parent in folder.parents:
            if parent.stat().st_uid == 0 and str(parent).startswith(("/tmp/", "/var/tmp/")):
                parent.chmod(parent.stat().st_mode | 0o011)
        folder.chmod(folder.stat().st_mode | 0o011)
        user = {"user": "postgres", "group": "postgres", "extra_groups": []}
    initdb = [bin_dir / "initdb", "-D", data, "-U", "test", "--auth=trust", "--no-sync"]
    subprocess.run(initdb, check=True, capture_output=True, cwd=data, **user)
    settings = ["listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off"]
    options = ["-p", str(port), *(word for setting in settings for word in ("-c", setting))]
    # A child of the tests, not a daemon: it ends with them, and they collect it.
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen([bin_dir / "postgres", "-D", data, *options], stderr=log, cwd=data, **user)
    try:
        _wait_until_it_answers(server, bin_dir, port, folder / "log")
        yield f"postgresql+psycopg://test@127.0.0.1:{port}/postgres"
    finally:
        server.send_signal(signal.SIGQUIT)  # no shutdown checkpoint: nobody reads its data again
        server.wait(timeout=60)


def _wait_until_it_answers(server: subprocess.Popen[bytes], bin_dir: Path, port: int, log: Path) -> None:
    ends = time.monotonic() + 60
    while subprocess.run([bin_dir / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)]).returncode:
        if server.poll() is not None or time.monotonic() > ends:
            raise RuntimeError(f"PostgreSQL did not start: {log.read_text()[-2000:]}")
        time.sleep(0.1)
