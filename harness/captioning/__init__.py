"""Pseudo-captions by image-to-text models: resumable, in shards, written as a new caption source."""

from harness.captioning.caption_shards import CaptionFolder, caption
from harness.captioning.models import CaptionModel, load_captioner

__all__ = ["CaptionFolder", "CaptionModel", "caption", "load_captioner"]
