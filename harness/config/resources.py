"""How a run is carried out: processes, memory, checkpoints, loading. None of it is science."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from harness.config.base import Spec


class Resources(Spec):
    """How a run is carried out. None of it can change a result, so none of it is part of a run's id.

    The split of the global batch (`processes`, `micro_batch_size`), `compile`, `gradient_checkpointing` and
    `trim_text` reorder additions: results agree to the tolerance that docs/training.md states, not to the bit.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train. `auto`: on a GPU where there is one."""
    processes: int = Field(1, ge=1)
    """Processes that share each global batch, over all nodes; one for each GPU. A cluster profile replaces it."""
    micro_batch_size: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    """Images that a process holds activations of at a time; the rest of its part of the global batch is accumulated.
    `auto`: all of it, or on a GPU as many as fit."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, about a third more time."""
    compile: bool = False
    """Compile the towers with torch.compile: some minutes once, then faster steps on a GPU."""
    deterministic: bool = False
    """On a GPU use deterministic algorithms only, so that a resumed run is bitwise equal there too; slower."""
    trim_text: Literal["auto", "on", "off"] = "auto"
    """Cut the padding off texts before they are encoded. `auto`: where that is exact (a causal text tower that reads
    its end-of-text token); `on` refuses other towers."""
    checkpoint_every_s: float = Field(60.0, gt=0)
    """Seconds between checkpoints."""
    checkpoint_every_steps: int = Field(0, ge=0)
    """Steps between checkpoints, besides the seconds; 0 goes by the seconds alone."""
    keep_checkpoints: int = Field(1, ge=1)
    """How many checkpoints an unfinished run keeps: the newest and those before it. A finished run keeps none."""
    divergence_steps: int = Field(200, ge=0)
    """Stop a run whose loss has for so many steps in a row given back nine tenths of what it had gained; 0: never."""
    loader_workers: int = Field(0, ge=0)
    """Processes that decode images beside each training process."""
    log_every: int = Field(10, ge=1)
    """Steps between lines of metrics.jsonl."""
