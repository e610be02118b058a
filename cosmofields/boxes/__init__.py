"""Parts of a box: cut it into sub-boxes, score each, and bring the scores of many together.

The statistics of a reconstruction differ from place to place; those of sub-boxes show by how much.
"""

from .combining import combine
from .cutting import evaluate_sub_boxes, sub_boxes

__all__ = ["combine", "evaluate_sub_boxes", "sub_boxes"]
