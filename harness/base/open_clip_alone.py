"""Import open_clip without the packages that it imports if they are installed: timm and transformers.

Their imports are a quarter of the start of a job. open_clip works without them: it catches the ImportError, and raises
an error only where a model needs one of them. Python documents how to have the import of a name fail: a None in
`sys.modules` (https://docs.python.org/3/reference/import.html#the-module-cache). Afterwards both can be imported as
usual, but this process's open_clip builds no model that needs them. So only a process of ours may do it, for models
that need neither (`Model.may_need_packages`).
"""

from __future__ import annotations

import importlib
import sys

PACKAGES = ("timm", "transformers")


def open_clip_alone() -> bool:
    """Import open_clip without timm and transformers; returns False if this version of it cannot do without.

    Nothing is imported if one of the three is there already.
    """
    if any(name in sys.modules for name in ("open_clip", *PACKAGES)):
        return False
    sys.modules.update(dict.fromkeys(PACKAGES))  # type: ignore[arg-type]
    try:
        importlib.import_module("open_clip")
    except ImportError:
        for name in [one for one in sys.modules if one.partition(".")[0] == "open_clip"]:
            del sys.modules[name]  # some have noted that the packages are absent
        return False
    finally:
        for name in PACKAGES:
            del sys.modules[name]
    return True
