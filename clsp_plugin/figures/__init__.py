"""Figures of candidates, of trainings, and of what records say.

``draw.write_figures`` makes all that a list of records allows.
"""

from clsp_plugin.figures.curves import training_curves
from clsp_plugin.figures.scatter import label_map
from clsp_plugin.figures.sheets import candidate_sheet, store_caption
from clsp_plugin.figures.similarity import similarity_histogram

__all__ = [
    "candidate_sheet",
    "label_map",
    "similarity_histogram",
    "store_caption",
    "training_curves",
]
