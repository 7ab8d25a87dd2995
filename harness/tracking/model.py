"""A run's model in MLflow: a folder from which `mlflow.pyfunc.load_model` restores the towers.

Nothing in it is pickled code: the weights are a state dict, the architecture is JSON, and this module is the loader.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from harness.base.errors import TrackingError
from harness.config.model import Model

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

    from harness.models import Towers

FOLDER = "model"
"""Path of the model among a run's artifacts: `runs:/<MLflow's id>/model`."""
_WEIGHTS, _SPEC = "weights.pt", "model.json"


@dataclass(frozen=True)
class Logged:
    """The parts of a model that are logged."""

    weights: Path
    """Path of a state dict, as written by runs."""
    spec: Model


@contextmanager
def model_folder(logged: Logged, run_id: str) -> Iterator[Path]:
    """Context manager that yields the folder to log. The weights are linked, not copied, if possible."""
    with TemporaryDirectory(dir=logged.weights.parent, prefix=".mlflow-") as root:
        folder = Path(root) / FOLDER
        data = folder / "data"
        data.mkdir(parents=True)
        _linked(logged.weights, data / _WEIGHTS)
        (data / _SPEC).write_text(json.dumps(_portable(logged.spec)), encoding="utf-8")
        (folder / "MLmodel").write_text(json.dumps(_description(logged, run_id), indent=1), encoding="utf-8")
        yield folder


class Encoder:
    """The model that `mlflow.pyfunc.load_model` returns: `predict` encodes, `get_raw_model` returns the towers."""

    def __init__(self, towers: Towers) -> None:
        self._towers = towers

    def get_raw_model(self) -> Towers:
        """The towers themselves: open_clip's model, tokenizer and transform."""
        return self._towers

    def predict(self, model_input: Sequence[str] | Sequence[Image]) -> NDArray[np.float32]:
        """Unit features [n, d] of n texts, or of n PIL images.

        Raises:
            TrackingError: the input is neither.
        """
        import numpy as np
        import PIL.Image
        import torch

        inputs, towers = list(model_input), self._towers
        with torch.no_grad():
            if inputs and all(isinstance(one, str) for one in inputs):
                features = towers.encode_text(towers.tokenize([str(one) for one in inputs]))
            elif inputs and all(isinstance(one, PIL.Image.Image) for one in inputs):
                pixels = [towers.preprocess(one) for one in inputs if isinstance(one, PIL.Image.Image)]
                features = towers.encode_image(torch.stack(pixels))
            else:
                raise TrackingError("predict takes a list of texts or of PIL images", where="model_input")
        return np.asarray(features.numpy(), dtype=np.float32)


def _load_pyfunc(data_path: str) -> Encoder:
    """Entry point that MLflow calls with the folder of weights and architecture."""
    from harness.models import build_towers, load_weights

    folder = Path(data_path)
    towers = build_towers(Model.model_validate_json((folder / _SPEC).read_text(encoding="utf-8")))
    load_weights(towers.model, folder / _WEIGHTS)
    towers.eval()
    return Encoder(towers)


def _portable(spec: Model) -> dict[str, Any]:
    """The model spec without paths of this machine: the full architecture, and no initial weights."""
    config = spec.architecture()
    return spec.bare().model_dump(mode="json") | ({"config": config} if config else {})


def _description(logged: Logged, run_id: str) -> dict[str, Any]:
    """MLflow's MLmodel file; JSON is YAML too."""
    written = datetime.fromtimestamp(logged.weights.stat().st_mtime, UTC)
    flavour = {"loader_module": __name__, "data": "data", "python_version": platform.python_version()}
    return {
        "artifact_path": FOLDER,
        "flavors": {"python_function": flavour},
        "run_id": run_id,
        "utc_time_created": written.strftime("%Y-%m-%d %H:%M:%S.%f"),
    }


def _linked(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
