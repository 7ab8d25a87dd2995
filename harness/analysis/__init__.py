"""What is wrong with a data set's captions, seen through a teacher: FFF's Figures 2 to 5 for any data."""

from harness.analysis.analyse import Analysis, Options, analyse
from harness.analysis.page import write_page

__all__ = ["Analysis", "Options", "analyse", "write_page"]
