"""The rule for workers that die: they are started again, unless they die one after the other."""

import logging
from dataclasses import dataclass, field

from autotransfer.errors import StudyError
from autotransfer.search.events import Event, Listener, Notice, TrialFinished, TrialStarted

logger = logging.getLogger(__name__)

_MOST_DEATHS_IN_A_ROW = 8


@dataclass(frozen=True)
class Ended:
    """The last word of a worker: why its search ended early (or nothing), or what it failed with."""

    reason: str = ""
    error: str = ""


@dataclass
class Crew:
    """What is known of the workers of one search.

    Attributes:
        listener: told of their events.
        reason: why a worker ended the search early, where one did.
        errors: what workers failed with.
    """

    listener: Listener
    reason: str = ""
    errors: list[str] = field(default_factory=list)
    _deaths_in_a_row: int = 0
    _worked: bool = False

    def take(self, message: Event | Ended) -> None:
        """A message of a worker."""
        if isinstance(message, Ended):
            self.reason = self.reason or message.reason
            if message.error:
                self.errors.append(message.error)
            self._worked = self._worked or not message.error
            return
        self._worked = self._worked or isinstance(message, TrialStarted)
        if isinstance(message, TrialFinished) and message.state != "failed":
            self._deaths_in_a_row = 0
        self.listener(message)

    def starts_again(self, how: str) -> bool:
        """Whether a worker that died is started again; told to the user.

        Args:
            how: how it ended.
        """
        self._deaths_in_a_row += 1
        again = self._deaths_in_a_row <= _MOST_DEATHS_IN_A_ROW
        then = "it is started again and its trial retried" if again else "too many in a row: it is not started again"
        self.listener(Notice(f"a worker {how}; {then}"))
        if not again:
            self.errors.append(how)
        return again

    def conclude(self) -> str:
        """Why the search ended early, or an empty string.

        Raises:
            StudyError: every worker has failed before its first trial; what was trained later can be answered with.
        """
        if self.errors and not self._worked:
            raise StudyError(f"no worker could work: {self.errors[0]}")
        for error in self.errors:
            self.listener(Notice(f"a worker failed: {error}"))
        return self.reason
