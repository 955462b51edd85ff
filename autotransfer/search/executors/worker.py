"""One worker process: reads where its job lies from standard input, writes events to standard output."""

import os
import pickle
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Any


def main() -> None:
    """Take part in a search until it ends, or until the process that started this one is gone."""
    number = int(sys.argv[1])
    with os.fdopen(os.dup(1), "wb") as events:
        os.dup2(2, 1)  # what libraries print is no event
        signal.signal(signal.SIGINT, signal.SIG_IGN)

        import torch

        from autotransfer.errors import AutotransferError
        from autotransfer.search.executors.crew import Ended
        from autotransfer.search.executors.job import SearchJob

        orders = sys.stdin.buffer
        try:
            file = pickle.load(orders)
        except EOFError:  # there was nothing to do
            return
        if file is None:
            return
        stop, writing = threading.Event(), threading.Lock()

        def tell(event: Any) -> None:
            with writing:
                pickle.dump(event, events)
                events.flush()

        def obey() -> None:
            try:
                pickle.load(orders)
            except EOFError:
                os._exit(1)  # its trial stays open, for those that resume the study
            stop.set()

        threading.Thread(target=obey, daemon=True).start()
        try:
            job: SearchJob = pickle.loads(Path(file).read_bytes())
            if job.workshop.device.type == "cuda":
                torch.cuda.set_device(number % torch.cuda.device_count())
            tell(Ended(reason=job.run(lambda: not stop.is_set(), tell)))
        except AutotransferError as error:
            tell(Ended(error=str(error)))
        except Exception:
            traceback.print_exc()
            os._exit(1)  # as if it had died: it may be the storage that was away for a moment
        os._exit(0)  # what libraries still do at exit has no bearing on the study


if __name__ == "__main__":
    main()
