"""What a record says of a metric, whatever spec asked for it."""

from __future__ import annotations

from harness.runs.record import Metric, Record


def metric_in(record: Record, name: str) -> Metric | None:
    """The metric `set/metric` of a record that has it once; None where it has none."""
    of, _, metric = name.partition("/")
    found = [one.metrics[metric] for one in record.evaluations if one.set == of and metric in one.metrics]
    assert len(found) <= 1, f"{name} was measured in several ways"
    return found[0] if found else None
