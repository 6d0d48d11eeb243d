"""Supervised few-shot learning on the meta-core."""

from metarl.fewshot.domain import ShotBatch, ShotDomain

__all__ = ["ShotBatch", "ShotDomain"]
