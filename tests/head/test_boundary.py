"""Exceptions at the door of the command and of the API, limits before memory is taken, and what reaches a terminal."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from harness import api, cli
from harness.base.boundary import as_sentence, door, reading
from harness.base.errors import DataError, HarnessError, SpecError, StoreError
from harness.base.exit_status import DEFECT
from harness.base.files import DEEPEST, at_home, is_deeper, read_json, read_text
from harness.base.terminal import LONGEST, one_line, safe_streams
from harness.config.axes import count_cells
from harness.config.load import LONGEST_CHAIN, load_experiment
from harness.data.sources.patterns import MOST_BRACES, braces, expand
from harness.evaluation.layout import describe
from tests.head.made import is_one_sentence, write


def _raised(error: Exception) -> HarnessError:
    with pytest.raises(HarnessError) as caught:
        door(_raise)(error)
    return caught.value


def _raise(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENAMETOOLONG, "File name too long", "/x/y"), "/x/y: cannot be used (File name too long)"),
        (PermissionError(errno.EACCES, "Permission denied", b"/x"), "/x: cannot be used (Permission denied); correct"),
        (OSError(errno.EXDEV, "Invalid link", "/a", None, "/b"), "/a and /b: cannot be used (Invalid link)"),
        (ConnectionResetError("gone"), "cannot be used (gone)"),
        (RecursionError(), "is nested too deeply"),
        (MemoryError(), "needs more memory than is available"),
        ("\ud800".encode, "holds text that is not valid Unicode"),
        (lambda: int("9" * 5000), "holds a value that cannot be used (Exceeds the limit"),
        (lambda: Path("\0").read_text(), "embedded null byte"),
    ],
)
def test_what_others_wrote_becomes_a_sentence(error: object, told: str) -> None:
    if not isinstance(error, Exception):
        try:
            error()  # type: ignore[operator]
        except Exception as found:
            error = found
    assert isinstance(error, Exception)
    text = str(_raised(error))
    assert told in text
    assert "\n" not in text
    assert "; " in text  # what to do


@pytest.mark.parametrize("error", [KeyError("x"), ValueError("x"), TypeError("x"), AssertionError()])
def test_anything_else_is_a_defect_and_passes_the_api(error: Exception) -> None:
    assert as_sentence(error) is None
    with pytest.raises(type(error)):
        door(_raise)(error)
    with pytest.raises(type(error)), reading("x"):
        raise error


def test_the_command_says_that_a_defect_is_ours_and_where_the_traceback_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    spec = write(tmp_path)
    monkeypatch.setattr(sys, "argv", ["harness", "plan", str(spec)])
    monkeypatch.setattr(api, "plan", lambda *_, **__: _raise(KeyError("missing")))
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == DEFECT
    said = capsys.readouterr().err
    assert "this is a defect of the harness, not yours (KeyError)" in said
    assert said.count("\n") == 1
    file = re.search(r"in (\S+\.txt)", said)
    assert file is not None
    text = Path(file[1]).read_text()
    assert "KeyError: 'missing'" in text
    assert "harness plan" in text
    os.unlink(file[1])


def test_the_command_turns_an_error_of_the_system_into_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "argv", ["harness", "plan", f"{tmp_path}/{'x' * 300}.toml"])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 2
    assert "cannot be read (File name too long)" in capsys.readouterr().err


def test_a_reader_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="/some/run: is nested too deeply"), reading("/some/run"):
        raise RecursionError


@pytest.mark.parametrize("levels", [DEEPEST + 5, 900, 100_000])
def test_depth_is_refused_by_name(tmp_path: Path, levels: int) -> None:
    (tmp_path / "deep.toml").write_text(f"x = {'[' * levels}{']' * levels}\n")
    with pytest.raises(SpecError, match=rf"deep.toml: is nested more than {DEEPEST} levels") as caught:
        load_experiment(tmp_path / "deep.toml")
    assert is_one_sentence(caught.value)


def test_depth_is_counted() -> None:
    assert is_deeper({"a": [[1]]}, 2)
    assert not is_deeper({"a": [[1]]}, 3)
    assert not is_deeper(1, 0)


def test_a_chain_of_extends_ends(tmp_path: Path) -> None:
    for number in range(LONGEST_CHAIN + 2):
        (tmp_path / f"{number}.toml").write_text(f'extends = "{number + 1}.toml"\n')
    (tmp_path / f"{LONGEST_CHAIN + 2}.toml").write_text("")
    with pytest.raises(SpecError, match=f"chain of more than {LONGEST_CHAIN} files"):
        load_experiment(tmp_path / "0.toml")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("seeds = 2147483648", "gives more than 1,000 seeds"),
        ("seeds = 10000000", "gives more than 1,000 seeds"),
        (f"seeds = {list(range(1001))}", "gives more than 1,000 seeds"),
        ("seeds = 1000\n[axes]\n'train.optimiser.lr' = [{}]", "declares 600,000 runs, more than 20,000"),
        ("[axes]\nseed = [{0}]\n'train.optimiser.lr' = [{0}]\n'train.warmup' = [{0}]", "27,000,000 combinations"),
    ],
)
def test_numbers_of_runs_are_limited_before_they_are_made(tmp_path: Path, change: str, told: str) -> None:
    spec = write(tmp_path)
    head, _, arms = spec.read_text().partition("[arms.plain]")
    levels = ", ".join(map(str, range(300)))
    spec.write_text(f"{head}{change.replace('{0}', levels).replace('{}', levels)}\n[arms.plain]{arms}")
    with pytest.raises(SpecError) as caught:
        api.plan(spec)
    assert told in str(caught.value)


def test_cells_are_counted_as_they_are_made() -> None:
    axes = {"a": (1, 2, 3), "b": (1, 2, 3)}
    assert [count_cells(axes, one) for one in ("product", "zip", "one_at_a_time")] == [9, 3, 5]
    assert count_cells({}, "zip") == 1


@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        ("{0..999999}{0..999999}", "expands to more than 1,000,000 files"),
        ("{a,b}" * (MOST_BRACES + 1), "pairs of braces"),
        ("{0..99999999}", "is not a range of shards"),
        ("/", "is the whole file system"),
    ],
)
def test_patterns_are_limited(pattern: str, told: str) -> None:
    with pytest.raises(DataError) as caught:
        expand(pattern)
    assert told in str(caught.value)


def test_braces_are_written_out_in_order() -> None:
    assert braces("{a,b}-{08..10}") == [f"{name}-{n}" for name in "ab" for n in ("08", "09", "10")]
    assert braces(f"{{0..{'9' * 30}}}") == [f"0..{'9' * 30}"]


@pytest.mark.parametrize("number", ["9" * 5000, "9999999999", "999999999"])
def test_the_number_of_shards_takes_no_memory(tmp_path: Path, number: str) -> None:
    (tmp_path / "test").mkdir()
    (tmp_path / "dataset_type.txt").write_text("retrieval")
    (tmp_path / "test" / "nshards.txt").write_text(number)
    with pytest.raises(DataError):
        describe(tmp_path, "x", "test")


def test_pipes_devices_and_large_files_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    for file in (tmp_path / "pipe.json", Path("/dev/zero")):
        with pytest.raises(StoreError, match="is no plain file"):
            read_json(file)
    (tmp_path / "large").write_text("x" * 11)
    with pytest.raises(OSError, match="has 11 bytes; at most 10 are read"):
        read_text(tmp_path / "large", 10)


def test_nobodys_home_is_a_path_like_any(tmp_path: Path) -> None:
    assert at_home("~no-such-user/x") == Path("~no-such-user/x")
    (tmp_path / "a.toml").write_text('[model]\nweights = "~no-such-user/x.pt"\n')
    with pytest.raises(SpecError, match="no-such-user"):
        load_experiment(tmp_path / "a.toml")


def test_a_path_has_no_control_characters(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('[data]\nkind = "webdataset"\nshards = "a\\u0000b"\n')
    with pytest.raises(SpecError, match="remove its control characters") as caught:
        load_experiment(tmp_path / "a.toml")
    assert is_one_sentence(caught.value)


def test_a_sentence_is_one_short_line_without_control_characters() -> None:
    error = SpecError("x\x1b[2Jy\nz\u202e\ud800", where="a\tb", fix="v" * 100_000)
    text = str(error)
    assert text.startswith(r"a b: x\x1b[2Jy z\u202e\ud800; vvv")
    assert len(text) < LONGEST + 10
    assert one_line("é ß 漢字") == "é ß 漢字"


class _Stream(io.StringIO):
    encoding = "ascii"


def test_streams_keep_colours_and_escape_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    out = _Stream()
    monkeypatch.setattr(sys, "stdout", out)
    with safe_streams():
        print("\x1b[1;31mred\x1b[0m \x1b]0;title\x07 \x9b5n a\rb\tc ± \ud800")
    assert out.getvalue() == "\x1b[1;31mred\x1b[0m \\x1b]0;title\\x07 \\x9b5n a\\rb\tc \\xb1 \\ud800\n"
    assert sys.stdout is out


def test_names_in_specs_do_not_reach_the_terminal(tmp_path: Path) -> None:
    spec = write(tmp_path)
    text = spec.read_text().replace("[arms.more]", '[arms."m\\u001b]0;owned\\u0007"]')
    spec.write_text(text.replace("Does it help?", "Does it \\u001b[8m help?"))
    command = [sys.executable, "-m", "harness", "plan", str(spec)]
    done = subprocess.run(command, capture_output=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert b"\x1b]" not in done.stdout
    assert b"owned" in done.stdout
    assert json.dumps(done.stdout.decode())  # it is text
