"""Supervised few-shot learning on the meta-core."""

from metarl.fewshot.domain import ShotDomain
from metarl.fewshot.losses import CrossEntropy, ShotBatch, ShotLoss, SquaredError
from metarl.fewshot.protocol import OneByOne, protocols

__all__ = ["CrossEntropy", "OneByOne", "ShotBatch", "ShotDomain", "ShotLoss", "SquaredError", "protocols"]
