"""A fork server for worker processes: it imports the node side once, then forks a child for each run.

This saves an import per run: importing open_clip takes seconds, and a run of the embedded world takes about a minute.
A child behaves as `python -m harness.worker RUN_DIR` does: it has its own session, log and exit status. It outlives
the fork server and the command, and finishes its run if they are killed.

With `--without-packages`, it leaves out what most runs do not need (see `optional_packages`). A child whose run may
need it then executes `python -m harness.worker RUN_DIR` instead, and imports everything itself.

The protocol on stdin and stdout has one line per message. The server writes `ready - 0` once. It reads `RUN_DIR` and
answers `started RUN_ID PID`, and later `ended RUN_ID STATUS` (the exit status, or minus the signal's number).
"""

from __future__ import annotations

import os
import selectors
import signal
import sys
from pathlib import Path
from typing import NoReturn

WITHOUT_PACKAGES = "--without-packages"
_STOPPING = (signal.SIGTERM, signal.SIGUSR2)


def main() -> None:
    """Fork a child for each run folder named on stdin, until stdin is closed and every child has ended."""
    from harness.base.open_clip_alone import open_clip_alone
    from harness.execute.local.optional_packages import may_need_packages

    is_without = WITHOUT_PACKAGES in sys.argv[1:] and open_clip_alone()
    from harness import worker  # the expensive import, done once

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    children: dict[int, str] = {}
    wakeup, notify = os.pipe()
    os.set_blocking(notify, False)
    signal.set_wakeup_fd(notify)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    selector = selectors.DefaultSelector()
    selector.register(wakeup, selectors.EVENT_READ)
    selector.register(sys.stdin.buffer.fileno(), selectors.EVENT_READ)
    waiting, still_open = b"", True
    _send_line("ready - 0")
    while still_open or children:
        for key, _ in selector.select():
            if key.fd == wakeup:
                os.read(wakeup, 4096)
                continue
            received = os.read(key.fd, 65536)
            if not received:
                still_open = False
                selector.unregister(key.fd)
            *lines, waiting = (waiting + received).split(b"\n")
            for line in lines:
                folder = Path(line.decode())
                is_lacking = is_without and may_need_packages(folder)
                pid = _fork(folder, _in_fresh_process if is_lacking else worker.main)
                children[pid] = folder.name
                _send_line(f"started {folder.name} {pid}")
        for pid, status in _ended():
            _send_line(f"ended {children.pop(pid)} {status}")


def _fork(folder: Path, work: object) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, *_STOPPING):
            signal.signal(number, signal.SIG_DFL)
        os.setsid()
        _write_to_log(folder)
        assert callable(work)
        status = work(folder)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        # Not sys.exit: the child must not unwind the fork server's stack or run its exit handlers.
        os._exit(status)


def _in_fresh_process(folder: Path) -> NoReturn:
    os.execv(sys.executable, [sys.executable, "-m", "harness.worker", str(folder)])


def _write_to_log(folder: Path) -> None:
    try:
        log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK, 0o644)
    except OSError:  # the disk is full, which the run's failure reports; or it is no file
        log = os.open(os.devnull, os.O_WRONLY)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)


def _ended() -> list[tuple[int, int]]:
    ended: list[tuple[int, int]] = []
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        ended.append((pid, os.waitstatus_to_exitcode(status)))


def _send_line(line: str) -> None:
    try:
        os.write(1, f"{line}\n".encode())
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the command is gone; the children continue


if __name__ == "__main__":
    main()
