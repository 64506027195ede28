"""What a record says of trainings, as columns of the frame (`analysis.records`)."""

from __future__ import annotations

from experiments.case import Case
from experiments.schema import Record


def columns(case: Case, record: Record) -> dict:
    """Columns of a case of training; of others missing (in a frame NaN), and no trainings.

    recipe, head_offset: of the case. learning: what is learnt (`experiments.schema.Learning`).
    trainings: a tuple of `experiments.schema.Training`, of all replicates; empty unless ok.
    """
    trainings = [training for one in record.replicates for training in one.trainings or ()]
    return {
        "recipe": getattr(case, "recipe", None),
        "head_offset": getattr(case, "head_offset", None),
        "learning": record.learning,
        "trainings": tuple(trainings),
    }
