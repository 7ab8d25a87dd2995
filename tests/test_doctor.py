from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.base.version import __version__
from harness.doctor import Finding, diagnose
from harness.doctor import places as places_module
from harness.doctor.machine import gpu, processor, shared_memory, slurm
from harness.doctor.places import evaluation_sets, filesystem, store, tracking
from harness.doctor.software import checkout, defects, pairing, python, requirements
from harness.runs.settings import Settings
from harness.training.provenance import commit

Fake = Callable[[str, str], None]


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Puts shell scripts of that name and text before everything else that could be called so."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    def make(name: str, text: str) -> None:
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)

    return make


def versions(**installed: str) -> Callable[[str], str | None]:
    return lambda package: installed.get(package.replace("-", "_"))


def test_this_environment_has_no_error() -> None:
    found = [python(), *requirements(), *defects(), pairing()]
    assert [finding for finding in found if finding.level == "error"] == []
    assert "requirements are met" in next(finding for finding in found if finding.subject == "packages").message


def test_an_old_python_is_told() -> None:
    assert python("3.10.14").level == "error"
    assert python("3.13.1").level == "ok"


@pytest.mark.parametrize(
    ("installed", "subject"),
    [
        ({"numpy": "2.4.0", "clip_benchmark": "1.6.2"}, "numpy 2.4.0 with clip-benchmark 1.6.2"),
        ({"open_clip_torch": "4.0.0.dev0"}, "open_clip_torch 4.0.0.dev0"),
    ],
)
def test_known_defects_are_told_with_a_remedy(installed: dict[str, str], subject: str) -> None:
    (finding,) = defects(versions(**installed))
    assert (finding.level, finding.subject) == ("error", subject)
    assert finding.remedy.startswith("pip install")


def test_versions_that_work_are_not_accused() -> None:
    works = versions(
        numpy="2.3.5", clip_benchmark="1.6.2", open_clip_torch="3.3.0", webdataset="0.2.111", mlflow="3.17.2"
    )
    assert list(defects(works)) == []
    (note,) = defects(versions(open_clip_torch="3.3.0", webdataset="1.0.2"))
    assert note.level == "ok"
    assert "open_clip_train" in note.message


def test_missing_and_wrong_packages_are_told() -> None:
    found = list(requirements(["torch>=2.6", "numpy>=2.0,<2.4", "rich>=13"], versions(torch="2.15.0", numpy="2.4.1")))
    assert [(finding.level, finding.subject) for finding in found] == [("error", "numpy"), ("error", "rich")]
    assert "2.4.1" in found[0].message
    assert "not installed" in found[1].message


def test_builds_of_torch_and_torchvision_have_to_match() -> None:
    needs = ["numpy", "torch (>=2.14.0)"]

    def level(torch: str, vision: str) -> str:
        return pairing(versions(torch=torch, torchvision=vision), lambda _: needs).level

    assert level("2.15.0", "0.29.2") == "ok"
    assert level("2.15.0+cpu", "0.29.2+cpu") == "ok"
    assert level("2.15.0+cpu", "0.29.2") == "error"
    assert level("2.15.0+cu128", "0.29.2+cpu") == "error"
    assert level("2.13.0", "0.29.2") == "error"


def test_the_commit_and_whether_files_differ_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert checkout(tmp_path).level == "warning"

    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True)

    (tmp_path / "file").write_text("a")
    git("init")
    git("add", "file")
    git("commit", "-m", "first")
    assert checkout(tmp_path).level == "ok"
    (tmp_path / "file").write_text("b")
    found = checkout(tmp_path)
    assert found.level == "warning"
    assert "differ" in found.message


def test_a_containers_share_of_cores_is_told(tmp_path: Path) -> None:
    quota = tmp_path / "cpu.max"
    quota.write_text("50000 100000\n")
    found = processor(quota)
    assert found.level == "warning"
    assert "0.5 cores" in found.message
    for text in ("max 100000\n", "400000000 100000\n", ""):
        quota.write_text(text)
        assert "container" not in processor(quota).message
    assert f"{len(os.sched_getaffinity(0))} cores" in processor(tmp_path / "none").message


def test_little_shared_memory_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three batches of 224 px are there at a time: 462 MB for 1,024 images."""
    for free, level, images in ((64 * 2**20, "warning", "148"), (3 * 1024 * 150_528, "ok", "1,024")):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        (finding,) = shared_memory(tmp_path)
        assert finding.level == level
        assert f"batches of {images} images" in finding.message
    assert list(shared_memory(tmp_path / "none")) == []


def test_a_machine_without_a_driver_is_no_fault(program: Fake) -> None:
    assert gpu().level == "ok"


def test_a_driver_that_fails_is_told(program: Fake) -> None:
    program("nvidia-smi", "echo 'NVIDIA-SMI has failed'; exit 9")
    found = gpu()
    assert found.level == "warning"
    assert "NVIDIA-SMI has failed" in found.message


def test_a_gpu_that_torch_cannot_use_is_told(program: Fake, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program("nvidia-smi", "echo 'NVIDIA H200, 143771 MiB, 570.1'")
    fake = tmp_path / "python"
    for answer, level, word in [
        ("echo 12.8 0", "warning", "CUDA 12.8 does not work with this driver"),
        ("echo None 0", "warning", "has no CUDA"),
        ("echo 12.8 1", "ok", "NVIDIA H200"),
        ("echo 'ImportError: libcudart' >&2; exit 1", "error", "libcudart"),
    ]:
        fake.write_text(f"#!/bin/sh\n{answer}\n")
        fake.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(fake))
        found = gpu()
        assert (found.level, word in found.message) == (level, True), found


def test_slurm_is_asked_for_its_commands_controller_and_accounting(
    program: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))  # this machine may have SLURM
    assert slurm().level == "ok"
    assert "not on this machine" in slurm().message
    program("sbatch", "")
    found = slurm()
    assert found.level == "error"
    assert "squeue, sacct, scancel" in found.message
    for name in ("squeue", "sacct", "scancel"):
        program(name, "")
    assert slurm() == Finding("ok", "SLURM", "commands, controller and accounting answer")
    program("sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")
    assert "accounting storage is disabled" in slurm().message
    assert slurm().level == "warning", "sweeps work without it"
    program("squeue", "echo 'Unable to contact slurm controller' >&2; exit 1")
    assert "controller does not answer" in slurm().message
    assert slurm().level == "error"


def test_the_store_is_tried_and_nothing_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = store(tmp_path / "not" / "yet")
    assert found.level == "ok"
    assert list(tmp_path.iterdir()) == []
    (found,) = store(Path("/proc/store"))
    assert found.level == "error"
    assert "cannot be written" in found.message
    monkeypatch.setattr(places_module, "LITTLE_GB", 1e9)
    assert [finding.level for finding in store(tmp_path)] == ["warning"]
    monkeypatch.setattr(places_module, "NONE_GB", 1e9)
    assert [finding.level for finding in store(tmp_path)] == ["error"]


def test_tracking_is_tried_and_never_more_than_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tracking(None).level == "ok"
    assert "created when needed" in tracking(f"sqlite:///{tmp_path}/mlflow.db").message
    (tmp_path / "bad.db").write_text("no database" * 100)
    damaged = tracking(f"sqlite:///{tmp_path}/bad.db")
    assert damaged.level == "warning"
    assert "move it away" in damaged.remedy
    dead = tracking("http://127.0.0.1:1")
    assert dead.level == "warning"
    assert "does not answer" in dead.message
    monkeypatch.setattr(places_module, "filesystem", lambda path: "nfs4")
    assert "nfs4" in tracking(f"sqlite:///{tmp_path}/mlflow.db").message


def test_file_systems_are_named_as_the_mount_table_does() -> None:
    assert filesystem(Path("/proc/self")) == "proc"


def test_evaluation_sets_are_listed_and_broken_ones_explained(tmp_path: Path) -> None:
    assert [finding.level for finding in evaluation_sets(None)] == ["ok"]
    (missing,) = evaluation_sets(tmp_path / "none")
    assert missing.level == "error"
    (empty,) = evaluation_sets(tmp_path)
    assert empty.level == "warning"
    make_set(tmp_path / "pets")
    make_set(tmp_path / "vtab" / "dtd")
    make_set(tmp_path / "broken")
    (tmp_path / "broken" / "classnames.txt").unlink()
    found = list(evaluation_sets(tmp_path))
    assert [finding.level for finding in found] == ["warning", "ok"]
    assert "broken" in found[0].message
    assert found[0].remedy
    assert found[1].message == f"2 under {tmp_path}: pets, vtab/dtd"
    (tmp_path / "other.toml").write_text('[data]\nkind = "shapes"')
    (tmp_path / "tiere.toml").write_text('version = "1"\ndata = "pets"\nclassnames = ["Katze", "Hund"]')
    (tmp_path / "vtab" / "wrong.toml").write_text('version = "1"\ndata = "nowhere"')
    found = list(evaluation_sets(tmp_path))
    assert [finding.level for finding in found] == ["warning", "warning", "ok"]
    assert "there is no folder 'nowhere'" in found[1].message
    assert found[2].message == f"3 under {tmp_path}: pets, tiere.toml, vtab/dtd"


def make_set(folder: Path) -> None:
    (folder / "test").mkdir(parents=True)
    (folder / "test" / "nshards.txt").write_text("1")
    (folder / "test" / "0.tar").write_bytes(b"\0" * 1024)
    (folder / "classnames.txt").write_text("cat\ndog\n")
    (folder / "zeroshot_classification_templates.txt").write_text("a photo of a {c}\n")


def test_the_whole_diagnosis_imports_nothing_heavy(tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from types import SimpleNamespace
from harness.doctor import diagnose
from harness.runs.settings import Settings
for finding in diagnose(Settings(store=Path({str(tmp_path)!r}))):
    assert finding.level == "ok" or finding.remedy, finding
    print(finding.subject)
heavy = {{"torch", "mlflow", "open_clip", "numpy", "pandas", "sqlalchemy"}} & set(sys.modules)
assert not heavy, heavy
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert {"python", "code", "processor", "GPU", "SLURM", "store", "MLflow"} <= set(result.stdout.split("\n"))


def test_a_program_that_hangs_is_given_up() -> None:
    from harness.doctor.finding import answer

    started = time.monotonic()
    assert answer(["sleep", "60"], timeout_s=0.2) == (124, "no answer within 0.2 s")
    assert time.monotonic() - started < 30
    assert answer(["/no/such/program"], timeout_s=1)[0] == 127


def test_diagnosis_covers_all_places(tmp_path: Path) -> None:
    findings = diagnose(Settings(store=tmp_path, tracking_uri="none", evaluation_root=tmp_path / "none"))
    by_subject = {finding.subject: finding for finding in findings}
    assert by_subject["MLflow"].message == "off"
    assert by_subject["evaluation sets"].level == "error"


def test_an_installed_wheel_needs_no_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "commit").write_text("abc123")
    monkeypatch.setattr("harness.base.version.SHIPPED_PACKAGE", tmp_path)
    found = checkout(tmp_path)
    assert (found.level, found.message) == ("ok", f"version {__version__}, built from commit abc123")
    assert commit() == "abc123"
    (tmp_path / "commit").unlink()
    assert commit() == "unknown"
    assert checkout(tmp_path).level == "ok"
