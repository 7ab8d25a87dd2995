"""open_clip's two-tower models behind one small interface.

The names are imported at their first use, because open_clip's package brings torchvision, timm and transformers.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.models.dense import token_mask
    from harness.models.towers import Towers, build_towers, embedding_width, load_weights

__all__ = ["Towers", "build_towers", "embedding_width", "load_weights", "token_mask"]


def __getattr__(name: str) -> Any:
    if name == "token_mask":
        from harness.models.dense import token_mask

        return token_mask
    if name in __all__:
        from harness.models import towers

        return getattr(towers, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
