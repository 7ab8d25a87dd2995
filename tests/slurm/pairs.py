"""Each pair of choices that a spec or profile offers to dispatch, on the test cluster: the same numbers as run locally.

`combinations` makes a table of few rows in which every pair of levels of two factors stands at least once. `python -m
tests.slurm.pairs` prints it. `make test-slurm` leaves it out, for it takes 10 minutes or more:

    slurm/testcluster/cluster with .venv/bin/python -m pytest -m slurm tests/slurm/pairs.py
"""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.slurm.campaign import STAGE, Campaign, check_submissions, intents_of, result
from tests.slurm.cluster import Cluster, until

FACTORS: Mapping[str, tuple[str, ...]] = {
    "arms": ("alone", "taught"),
    "pack": ("1", "3"),
    "at_a_time": ("1", "2"),
    "stage": ("none", "main", "cheap"),
    "suite": ("shapes", "absent"),
    "added": ("nothing", "set"),
    "watched": ("watched", "detached"),
    "qos": ("normal", "few"),
    "requeue": ("true", "false"),
    "partitions": ("main", "urgent"),
}
"""`suite`: also asks for a suite whose sets are absent. `added`: a second evaluation set, once all runs are done."""


@functools.cache
def combinations() -> list[dict[str, str]]:
    """Rows in which every pair of levels of two factors stands: the fewest of 50 greedy tries."""
    return min((_greedy(random.Random(seed)) for seed in range(50)), key=len)


def _greedy(chance: random.Random) -> list[dict[str, str]]:
    """Each row begins with a pair that is left; each further factor takes the level that adds most pairs."""
    names = list(FACTORS)
    left = {
        ((one, a), (other, b))
        for one, other in itertools.combinations(names, 2)
        for a, b in itertools.product(FACTORS[one], FACTORS[other])
    }
    rows: list[dict[str, str]] = []
    while left:
        row = dict(chance.choice(sorted(left)))
        for name in chance.sample(names, len(names)):
            if name not in row:
                levels = chance.sample(FACTORS[name], len(FACTORS[name]))
                row[name] = max(levels, key=lambda level: len(left & set(_pairs(row | {name: level}, names))))
        left -= set(_pairs(row, names))
        rows.append({name: row[name] for name in names})
    return rows


def _pairs(row: Mapping[str, str], names: list[str]) -> Iterator[tuple[tuple[str, str], tuple[str, str]]]:
    stated = [(name, row[name]) for name in names if name in row]
    return itertools.combinations(stated, 2)


def campaign_of(row: Mapping[str, str], folder: Path, cluster: Cluster) -> Campaign:
    """A campaign whose spec and profile are those of a row."""
    lines = [f"pack = {row['pack']}", f"at_a_time = {row['at_a_time']}", f'qos = "{row["qos"]}"']
    lines += ["mem_gb = 4"]  # two workers at a time need more than two
    lines += [f"requeue = {row['requeue']}", f'partitions = ["{row["partitions"]}"]']
    campaign = Campaign.create(folder / "campaign", cluster, profile="\n".join(lines))
    if row["stage"] != "none":
        stage = STAGE.replace("cheap", row["stage"])
        campaign.profile.write_text(campaign.profile.read_text() + stage)
    text = campaign.spec.read_text()
    if row["arms"] == "alone":
        text = text[: text.index("[experiment.teacher]")] + "[arms]\nclip = {}\n"
    sets = '["shapes", "retrieval"]' if row["suite"] == "absent" else '["shapes"]'
    campaign.spec.write_text(text.replace('sets = ["shapes"]', f"sets = {sets}"))
    return campaign


def carry_out(campaign: Campaign, *, detached: bool) -> None:
    if not detached:
        campaign.finish()
        return
    begun = campaign.command("run", campaign.spec.name, "--on", campaign.profile.name, "--detach")
    # What a quota holds back, a process in the background submits later; until then, the exit status says so.
    assert begun.returncode == int("no job is known yet" in begun.stderr), begun.stderr
    until(lambda: not campaign.cluster.ask("squeue", "-h") and _is_done(campaign), "all runs", patience_s=900)


def _is_done(campaign: Campaign) -> bool:
    told = campaign.command("status", campaign.spec.name).stdout
    return not any(word in told for word in ("pending", "missing", "running", "interrupted"))


@pytest.fixture(scope="module")
def straight(_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with all runs, executed by processes of this machine, with both evaluation sets."""
    row = {name: levels[-1] for name, levels in FACTORS.items()} | {"suite": "shapes"}
    campaign = campaign_of(row, tmp_path_factory.mktemp("straight"), _cluster)
    _add_a_set(campaign)
    campaign.carry_out_reference()
    return campaign.reference.root


def _add_a_set(campaign: Campaign) -> None:
    campaign.spec.write_text(
        campaign.spec.read_text().replace('sets = ["shapes"', 'sets = ["shapes", "shapes_retrieval"')
    )


@pytest.mark.slurm
@pytest.mark.parametrize("row", combinations(), ids=lambda row: "-".join(row.values()))
def test_every_pair(cluster: Cluster, straight: Path, tmp_path: Path, row: Mapping[str, str]) -> None:
    campaign = campaign_of(row, tmp_path, cluster)
    campaign.straight = straight
    carry_out(campaign, detached=row["watched"] == "detached")
    once = len(intents_of(campaign.store))
    if row["added"] == "set":
        _add_a_set(campaign)
        carry_out(campaign, detached=row["watched"] == "detached")
    again = campaign.command("run", campaign.spec.name, "--on", campaign.profile.name)
    assert again.returncode == 0, again.stderr
    assert check_submissions(campaign) <= 3 * once  # a quota has some intents withdrawn
    expected = {folder.id: folder for folder in campaign.reference.runs()}
    runs = campaign.runs()
    assert len(runs) == (5 if row["arms"] == "taught" else 1)
    for folder in runs:
        found, reference = result(folder), result(expected[folder.id])
        sets = {one.set for one in found["evaluations"]}
        is_teacher = folder.record().evaluations == ()
        assert is_teacher or sets == ({"shapes", "shapes_retrieval"} if row["added"] == "set" else {"shapes"})
        kept = [one for one in reference.pop("evaluations") if one.set in sets]
        assert sorted(found.pop("evaluations"), key=lambda one: one.set) == sorted(kept, key=lambda one: one.set)
        assert found == reference, f"run {folder.id} differs from the same run executed here"


def test_the_table_has_every_pair() -> None:
    rows = combinations()
    for one, other in itertools.combinations(FACTORS, 2):
        assert {(row[one], row[other]) for row in rows} == set(itertools.product(FACTORS[one], FACTORS[other]))
    assert len(rows) <= 12, "each row takes half a minute of the test cluster"


if __name__ == "__main__":
    for names in [list(FACTORS), *(list(row.values()) for row in combinations())]:
        print("  ".join(name.ljust(10) for name in names).rstrip())
