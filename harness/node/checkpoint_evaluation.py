"""A checkpoint measured outside of any run, by this process or by several of this machine.

`python -m harness.node.checkpoint_evaluation FOLDER` is one of several processes: it reads from the folder what to
measure, and writes the results there. Exit status: 0 done, 2 a mistake of the user, 1 anything else.
"""

from __future__ import annotations

import os
import pickle
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, TypeAdapter

from harness.base.errors import DispatchError, HarnessError
from harness.base.files import read_json, write_json
from harness.config.model import Model
from harness.config.resources import Resources
from harness.models import build_towers, load_weights
from harness.models.fitting import choose_device
from harness.node.run_evaluation import RunEvaluation
from harness.parallel.process_group import ProcessRank, World, process_group, process_rank, start_processes
from harness.runs.record import EvaluationResult
from harness.runs.request import Request

ASKED, FOUND, FAILED = "asked.json", "found.json", "failed.pickle"
_EVALUATIONS = TypeAdapter(tuple[EvaluationResult, ...])


class CheckpointEvaluation(BaseModel):
    """What is to be measured, and on what."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    request: Request
    """With the evaluation that is asked for."""
    model: Model
    weights: Path

    def carried_out(self, world: World | None = None) -> tuple[EvaluationResult, ...]:
        """The numbers; none in other processes than the first.

        Raises:
            DataError: an evaluation set is missing or damaged.
            ModelError: the weights do not fit.
        """
        world = world or World()
        device = choose_device(Resources(), world.local_rank)
        torch.set_num_threads(max(torch.get_num_threads() // world.local_size, 1))
        towers = build_towers(self.model)
        load_weights(towers.model, self.weights)
        measuring = RunEvaluation(self.request, towers.to(device), device, world)
        return measuring.measured(self.request.experiment.evaluation.sets)

    def carried_out_by(self, processes: int) -> tuple[EvaluationResult, ...]:
        """The numbers, as `processes` processes of this machine find them together.

        Raises:
            HarnessError: what one of them has raised.
            DispatchError: one of them has died.
        """
        if processes == 1:
            return self.carried_out()
        with tempfile.TemporaryDirectory(prefix="harness-eval-") as name:
            folder = Path(name)
            write_json(folder / ASKED, self.model_dump(mode="json"))
            here = ProcessRank(size=processes, starts=processes, rendezvous=f"pid{os.getpid()}")
            status = start_processes(here, folder, "harness.node.checkpoint_evaluation")
            if (folder / FAILED).exists():
                failure: HarnessError = pickle.loads((folder / FAILED).read_bytes())
                raise failure
            if status:
                fix = "its own words stand above; --processes 1 measures in this one"
                raise DispatchError(f"a process has died (exit status {status})", where="harness eval", fix=fix)
            return _EVALUATIONS.validate_python(read_json(folder / FOUND))


def main(folder: Path) -> int:
    """One process's part of what the folder asks for; returns the exit status."""
    try:
        measurement = CheckpointEvaluation.model_validate(read_json(folder / ASKED))
        with process_group(process_rank(1, os.environ), folder, Resources()) as world:
            found = measurement.carried_out(world)
        if world.is_first:
            write_json(folder / FOUND, _EVALUATIONS.dump_python(found, mode="json"))
        return 0
    except HarnessError as error:
        with suppress(FileExistsError), (folder / FAILED).open("xb") as stream:
            pickle.dump(error, stream)
        return 2


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
