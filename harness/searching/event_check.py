"""Which lines of trials.jsonl fit the search and the lines before them; the others are left out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from harness.config.search import Search
from harness.searching.configurations import in_range

Event = dict[str, Any]


class UnfitEventError(Exception):
    """The event does not fit; the message completes "line 3 ..."."""


class EventCheck:
    """Reads events in their order. If trials were lost, later ones get lower numbers."""

    def __init__(self, search: Search, run_ids: Callable[[Mapping[str, Any]], Sequence[str]]) -> None:
        """`run_ids` gives the ids of a configuration's runs."""
        self._search, self._run_ids = search, run_ids
        self._numbers: dict[int, int] = {}
        """By number in the file: the number in the study."""
        self._count = 0
        self._reported: set[tuple[int, int]] = set()
        self._over: set[int] = set()
        self._kinds: dict[Any, Callable[[Event], Event]] = {
            "started": self._started,
            "asked": self._asked,
            "known": self._known,
            "report": self._report,
            "resumed": self._resumed,
            "paused": self._of_a_trial,
            "skipped": self._last,
            "failed": self._last,
            "complete": self._complete,
            "ended": lambda event: event,
        }

    def fitted(self, event: Event) -> Event:
        """The event as it applies to the study.

        Raises:
            UnfitEventError: it repeats another, belongs to a lost one, or is of no search like this.
        """
        check = self._kinds.get(event.get("event"))
        if check is None:
            raise UnfitEventError("is of no known kind")
        try:
            return check(event)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            raise UnfitEventError("lacks a field, or has one of another type") from None

    def _started(self, event: Event) -> Event:
        _numbers([event["time"]])
        return event

    def _asked(self, event: Event) -> Event:
        number = event["number"]
        if number in self._numbers:
            raise UnfitEventError(f"repeats configuration {number}")
        self._check_values(event["values"])
        dict(event["attrs"])
        if "had" in event:
            for steps, duration_s in event["had"].values():
                _numbers([steps, duration_s])
            if list(event["had"]) != list(self._run_ids(event["values"])):
                raise UnfitEventError(f"has values of configuration {number} that are not those of its runs")
        self._numbers[int(number)] = self._count
        self._count += 1
        return event | {"number": self._numbers[number]}

    def _known(self, event: Event) -> Event:
        self._check_values(event["values"])
        self._check_final(event["final"])
        list(event["runs"])
        self._numbers[self._count] = self._count
        self._over.add(self._count)
        self._count += 1
        return event

    def _report(self, event: Event) -> Event:
        event, key = self._of_a_trial(event), (event["number"], int(event["level"]))
        if key in self._reported or key[1] < 1:
            raise UnfitEventError(f"repeats evaluation {key[1]} of configuration {key[0]}")
        _numbers([event["value"]])
        self._reported.add(key)
        return event

    def _resumed(self, event: Event) -> Event:
        _numbers([event["until"] or 0])
        return self._of_a_trial(event)

    def _complete(self, event: Event) -> Event:
        self._check_final(event["final"])
        _numbers([event["violation"]])
        return self._last(event)

    def _last(self, event: Event) -> Event:
        event = self._of_a_trial(event)
        self._over.add(event["number"])
        return event

    def _of_a_trial(self, event: Event) -> Event:
        if event["number"] not in self._numbers:
            raise UnfitEventError(f"is of configuration {event['number']}, whose beginning is missing")
        number = self._numbers[event["number"]]
        if number in self._over:
            raise UnfitEventError(f"is of configuration {event['number']}, which had ended")
        return event | {"number": number}

    def _check_values(self, values: Mapping[str, Any]) -> None:
        space = self._search.space
        if values.keys() != space.keys():
            raise UnfitEventError("has other fields than the search's space")
        outside = [path for path, parameter in space.items() if in_range(parameter, values[path]) is None]
        if outside:
            raise UnfitEventError(f"has {outside[0]} = {values[outside[0]]!r}, which is outside the search's space")

    def _check_final(self, final: Sequence[float]) -> None:
        _numbers(final)
        if len(final) != len(self._search.objectives):
            raise UnfitEventError(f"has {len(final)} results for {len(self._search.objectives)} objectives")


def _numbers(values: Sequence[Any]) -> None:
    if not all(isinstance(one, int | float) and math.isfinite(one) for one in values):
        raise ValueError
