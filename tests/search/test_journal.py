"""What the journal file promises: whoever dies while writing stops nobody, and what was written is whole."""

import subprocess
import sys
import threading
from pathlib import Path

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotransfer.search.journal import open_journal


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "studies" / "study.journal"


def test_a_process_that_dies_with_the_lock_gives_it_back(journal):
    study = optuna.create_study(storage=open_journal(journal))
    held = (
        "import sys, time; from pathlib import Path; from autotransfer.search.journal import JournalLock\n"
        "lock = JournalLock(Path(sys.argv[1])); lock.acquire(); print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", held, journal], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        asked = threading.Thread(target=study.ask)
        asked.start()
        asked.join(timeout=0.3)
        assert asked.is_alive()  # it waits
        holder.kill()
        asked.join(timeout=10)
        assert not asked.is_alive()
    assert len(study.get_trials()) == 1


@given(cut=st.integers(1, 200))
def test_half_a_line_of_a_dead_writer_costs_that_line_alone(cut, tmp_path_factory):
    journal = tmp_path_factory.mktemp("journal") / "study.journal"
    study = optuna.create_study(study_name="s", storage=open_journal(journal))
    for value in (1.0, 2.0):
        study.tell(study.ask(), value)
    text = journal.read_bytes()
    last = text.rstrip(b"\n").rfind(b"\n") + 1
    cut = min(cut, len(text) - last - 1)
    journal.write_bytes(text[:-cut])
    again = optuna.load_study(study_name="s", storage=open_journal(journal))
    assert again.get_trials()[0].value == 1.0
    again.tell(again.ask(), 3.0)
    values = [trial.value for trial in optuna.load_study(study_name="s", storage=open_journal(journal)).get_trials()]
    assert (values[0], values[-1]) == (1.0, 3.0)
