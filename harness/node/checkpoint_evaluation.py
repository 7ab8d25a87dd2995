"""Evaluate a checkpoint outside any run, with this process or several processes of this machine.

`python -m harness.node.checkpoint_evaluation FOLDER` is one of several processes. It reads the request from the folder
and writes the results there. Exit status: 0 done, 2 a user's mistake, 1 anything else.
"""

from __future__ import annotations

import os
import pickle
import sys
import tempfile
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from pydantic import BaseModel, ConfigDict, TypeAdapter

from harness.base.errors import DispatchError, HarnessError
from harness.base.files import read_json, write_json
from harness.base.open_clip_alone import open_clip_alone
from harness.config.model import Model
from harness.config.resources import Resources
from harness.models.fitting import choose_device
from harness.node.known_measurements import KnownMeasurements
from harness.node.known_weights import KnownWeights, note_of
from harness.node.lazy_towers import LazyTowers
from harness.node.run_evaluation import RunEvaluation
from harness.parallel.process_group import ProcessRank, World, process_group, process_rank, start_processes
from harness.runs.record import EvaluationResult
from harness.runs.request import Request

if TYPE_CHECKING:
    from harness.models import Towers

REQUEST, RESULTS, FAILED = "asked.json", "found.json", "failed.pickle"
_EVALUATIONS = TypeAdapter(tuple[EvaluationResult, ...])


class CheckpointEvaluation(BaseModel):
    """A checkpoint and the evaluation to run on it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    request: Request
    """The request, which contains the evaluation."""
    model: Model
    weights: Path | None = None
    """None: the model names its weights itself."""
    alone: bool = False
    """The processes that evaluate it build no model that needs timm or transformers, and need not import them."""

    def carried_out(self, world: World | None = None) -> tuple[EvaluationResult, ...]:
        """Evaluate the checkpoint; returns the results on rank 0, and nothing on other ranks.

        Raises:
            DataError: an evaluation set is missing or damaged.
            ModelError: the weights do not fit.
        """
        world = world or World()
        device = self.device(world.local_rank)
        torch.set_num_threads(max(torch.get_num_threads() // world.local_size, 1))
        note = note_of(self.model, self.weights, self.request.stored.evaluation_features / "weights")
        towers = LazyTowers(lambda: self.towers(device), note)
        known = KnownMeasurements(self.request.stored.evaluation_features, self.model)
        keep = partial(known.keeping, KnownWeights(towers.weights_digest, towers.transform_name))
        evaluation = RunEvaluation(self.request, towers, device, world, None if note is None else keep)
        return evaluation.measured(self.request.experiment.evaluation.sets)

    def device(self, local_rank: int = 0) -> torch.device:
        """The device that a process of this machine computes on."""
        return choose_device(Resources(), local_rank)

    def towers(self, device: torch.device) -> Towers:
        """The checkpoint's towers, on `device`.

        Raises:
            ModelError: the weights do not fit.
        """
        if self.alone:
            open_clip_alone()
        from harness.models import build_towers, load_weights

        towers = build_towers(self.model)
        if self.weights is not None:
            load_weights(towers.model, self.weights)
        return towers.to(device)

    def carried_out_by(self, processes: int) -> tuple[EvaluationResult, ...]:
        """Evaluate the checkpoint with `processes` processes of this machine; returns the results.

        Raises:
            HarnessError: one of the processes has raised it.
            DispatchError: one of the processes has died.
        """
        if processes == 1:
            return self.carried_out()
        with tempfile.TemporaryDirectory(prefix="harness-eval-") as name:
            folder = Path(name)
            write_json(folder / REQUEST, self.model_dump(mode="json"))
            process = ProcessRank(size=processes, starts=processes, rendezvous=f"pid{os.getpid()}")
            status = start_processes(process, folder, "harness.node.checkpoint_evaluation")
            if (folder / FAILED).exists():
                failure: HarnessError = pickle.loads((folder / FAILED).read_bytes())
                raise failure
            if status:
                fix = "see its output above, or use --processes 1 to evaluate in this process"
                raise DispatchError(f"a process has died (exit status {status})", where="harness eval", fix=fix)
            return _EVALUATIONS.validate_python(read_json(folder / RESULTS))


def main(folder: Path) -> int:
    """Execute this process's part of the request in the folder; returns the exit status."""
    try:
        evaluation = CheckpointEvaluation.model_validate(read_json(folder / REQUEST))
        with process_group(process_rank(1, os.environ), folder, Resources()) as world:
            found = evaluation.carried_out(world)
        if world.is_first:
            write_json(folder / RESULTS, _EVALUATIONS.dump_python(found, mode="json"))
        return 0
    except HarnessError as error:
        with suppress(FileExistsError), (folder / FAILED).open("xb") as stream:
            pickle.dump(error, stream)
        return 2


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
