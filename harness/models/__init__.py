"""open_clip's two-tower models behind one small interface."""

from harness.models.dense import token_mask
from harness.models.towers import Towers, build_towers, load_weights

__all__ = ["Towers", "build_towers", "load_weights", "token_mask"]
