"""Hot reload: when the file of the rules changes, the breakers go on with what it says.

A change counts once two looks in a row find the same content, so that a file that is being written
is left alone. Rules are replaced all at once; if any has a fault, all old rules stay in force and
an alarm says why, until the file is sound again.

Does not know: what a rule means, or who looks how often.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final

from ...agents.shield.alarm import Alarm, Severity
from ...agents.shield.breaker_file import read_breakers
from ...agents.shield.breaker_rules import BreakerRule
from ...agents.shield.breakers import Breakers
from ...traces.errors import ConfigError

REFUSED: Final = "breaker-rules-refused"
"""Name of the alarm for a file with faults."""

ReadRules = Callable[[Path], tuple[BreakerRule, ...]]


class RuleWatcher:
    """Keeps breakers in step with a file. Used from the thread that steps the breakers.

    The file is taken to hold the rules that the breakers have; `poll` every second or so.
    """

    def __init__(self, path: Path, breakers: Breakers, read: ReadRules = read_breakers) -> None:
        self.path = path
        self.num_reloads = 0
        """Times that other rules came into force."""
        self._breakers = breakers
        self._read = read
        self._in_force = self._seen = self._content()
        self._is_refused = False

    def poll(self, now_s: float) -> tuple[Alarm, ...]:
        """Look at the file once; return what there is to say about it."""
        content = self._content()
        is_settled = content == self._seen
        self._seen = content
        if not is_settled or content == self._in_force:
            return ()
        self._in_force = content
        was_refused, fault = self._is_refused, self._replace(now_s)
        self._is_refused = fault is not None
        alarms = []
        if was_refused:
            text = f"'{self.path}' has changed since its rules were refused"
            alarms.append(self._alarm(text, now_s, is_resolved=True))
        if fault is not None:
            alarms.append(self._alarm(f"old breaker rules stay in force: {fault}", now_s))
        return tuple(alarms)

    def _replace(self, now_s: float) -> ConfigError | None:
        """Bring the rules of the file into force, or return why they cannot be."""
        try:
            rules = self._read(self.path)
        except ConfigError as error:
            return error
        self._breakers.replace_rules(rules, now_s)
        self.num_reloads += 1
        return None

    def _content(self) -> bytes | None:
        """The bytes of the file; None if it cannot be read."""
        try:
            return self.path.read_bytes()
        except OSError:
            return None

    def _alarm(self, sentence: str, now_s: float, *, is_resolved: bool = False) -> Alarm:
        return Alarm(
            name=REFUSED,
            severity=Severity.WARNING,
            place=f"file {self.path}",
            sentence=sentence,
            at_s=now_s,
            is_resolved=is_resolved,
        )
