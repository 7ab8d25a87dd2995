"""How to execute a run: processes, memory, checkpoints, loading. Nothing here affects a run's id."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from harness.config.base import Spec


class Resources(Spec):
    """How to execute a run. These fields cannot change a result, so they are not part of a run's id.

    The split of the global batch (`processes`, `micro_batch_size`), `compile`, `gradient_checkpointing` and
    `trim_text` reorder additions: results agree within the tolerance that docs/training.md states, not bit for bit.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train. `auto`: on a GPU if there is one."""
    processes: int = Field(1, ge=1)
    """Processes that share each global batch, over all nodes; one per GPU. A cluster profile replaces it."""
    micro_batch_size: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    """Images whose activations a process holds at a time. The process accumulates over the rest of its part of the
    global batch. `auto`: the whole part; on a GPU, as much of it as fits."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass instead of keeping them: less memory, about a third more time."""
    compile: bool = False
    """Compile the towers with torch.compile. This takes some minutes once and makes steps on a GPU faster."""
    deterministic: bool = False
    """Use only deterministic algorithms on a GPU, so that a resumed run is bitwise equal there too. Slower."""
    trim_text: Literal["auto", "on", "off"] = "auto"
    """Remove padding from texts before encoding. `auto`: only where the result is exact (a causal text tower that
    reads its end-of-text token). `on`: refuse other towers."""
    checkpoint_every_s: float = Field(60.0, gt=0)
    """Seconds between checkpoints."""
    checkpoint_every_steps: int = Field(0, ge=0)
    """Steps between checkpoints, in addition to `checkpoint_every_s`; 0: only by time."""
    keep_checkpoints: int = Field(1, ge=1)
    """Number of most recent checkpoints that an unfinished run keeps. A finished run keeps no checkpoint."""
    divergence_steps: int = Field(200, ge=0)
    """Stop a run as diverged when its loss has lost 90 % of its improvement for this many consecutive steps; 0: never
    stop."""
    loader_workers: Literal["auto"] | Annotated[int, Field(ge=0)] = "auto"
    """Processes that decode images for each training process; 0: it decodes them itself. `auto`: on a GPU, its share of
    the machine's cores, at most 16, unless all images fit into memory decoded; 0 on a CPU."""
    log_every: int = Field(10, ge=1)
    """Steps between two lines of metrics.jsonl."""
