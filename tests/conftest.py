"""Before anything imports torch: its waiting threads must not take the processors from other processes."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
