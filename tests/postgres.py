"""A real PostgreSQL server for tests, where this machine has its programs."""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
    user: list[str] = []
    if os.getuid() == 0:  # it refuses to run as root
        shutil.chown(data, "postgres")
        for parent in folder.parents:
            if parent.stat().st_uid == 0 and str(parent).startswith(("/tmp/", "/var/tmp/")):
                parent.chmod(parent.stat().st_mode | 0o011)
        folder.chmod(folder.stat().st_mode | 0o011)
        user = ["runuser", "-u", "postgres", "--"]
    subprocess.run(
        [*user, bin_dir / "initdb", "-D", data, "-U", "test", "--auth=trust", "--no-sync"],
        check=True,
        capture_output=True,
    )
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
    control = [*user, bin_dir / "pg_ctl", "-D", data, "-w"]
    subprocess.run([*control, "-l", data / "log", "-o", options, "start"], check=True, capture_output=True)
    try:
        yield f"postgresql+psycopg://test@127.0.0.1:{port}/postgres"
    finally:
        # Without waiting: where nobody collects dead processes, it would be waited for in vain.
        subprocess.run([*control, "-W", "-m", "immediate", "stop"], check=True, capture_output=True)
