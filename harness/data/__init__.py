"""From a data spec to samples: generation of the embedded worlds, indexing, reading, order and batches of images.

What is exported here imports neither torch nor numpy until data has to be read or generated, so the head may ask.
"""

from harness.data.sources.inspection import inspect_data
from harness.data.synthetic.embedded import embedded_sets
from harness.data.synthetic.materialise import materialise

__all__ = ["embedded_sets", "inspect_data", "materialise"]
