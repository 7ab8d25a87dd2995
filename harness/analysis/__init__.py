"""Measures a data set's captions with a teacher's features: FFF's Figures 2 to 5 for any data."""

from harness.analysis.analyse import Analysis, Options, analyse
from harness.analysis.page import write_page

__all__ = ["Analysis", "Options", "analyse", "write_page"]
