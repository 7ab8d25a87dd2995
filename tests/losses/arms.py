"""One spec of every arm and option, as it would stand in a TOML file."""

from __future__ import annotations

from typing import Any

ARMS: dict[str, dict[str, Any]] = {
    "infonce": {"kind": "infonce"},
    "infonce slotwise": {"kind": "infonce", "normaliser": "slotwise"},
    "sigmoid": {"kind": "sigmoid", "slotwise": True},
    "multi_positive_sigmoid": {"kind": "multi_positive_sigmoid"},
    "multi_positive_sigmoid per image": {"kind": "multi_positive_sigmoid", "normaliser": "images"},
}
