"""Declared ablations of CLIP-style pre-training: plan, run, compare.

    import harness

    ablation = harness.load("ablations/quickstart.toml")
    harness.run(ablation, jobs=2)
    print(harness.report(ablation))
    frame = harness.results(ablation)

These functions print nothing and work in any thread; `harness.api` has the rest of what the command does. Specs are
the models of `harness.config`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.base.version import __version__

__all__ = [
    "__version__",
    "evaluate",
    "load",
    "mteb_model",
    "plan",
    "publish",
    "report",
    "results",
    "run",
    "search",
    "verify",
]

if TYPE_CHECKING:
    from harness.api import evaluate, load, mteb_model, plan, publish, report, results, run, search, verify


def __getattr__(name: str) -> Any:
    """The functions of the API, imported when they are first asked for: a node needs none of them."""
    if name in __all__:
        from harness import api

        return getattr(api, name)
    raise AttributeError(f"module 'harness' has no attribute {name!r}")
