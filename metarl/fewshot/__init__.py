"""Supervised few-shot learning on the meta-core."""

from metarl.fewshot.domain import ShotDomain
from metarl.fewshot.losses import CrossEntropy, ShotBatch, ShotLoss, SquaredError

__all__ = ["CrossEntropy", "ShotBatch", "ShotDomain", "ShotLoss", "SquaredError"]
