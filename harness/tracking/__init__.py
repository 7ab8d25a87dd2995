"""MLflow as a copy of the store: run folders are authoritative, and can be imported again at any time.

`sync` writes what is new to any tracking URI; a server that is dead or slow costs seconds and loses nothing.
"""

from __future__ import annotations

from harness.tracking.places import probe, redacted, ui_command, ui_page
from harness.tracking.sync import SyncResult, sync

__all__ = ["SyncResult", "probe", "redacted", "sync", "ui_command", "ui_page"]
