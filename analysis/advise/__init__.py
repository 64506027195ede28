"""Which system to take at a setting, answered from records alone.

`advise(frame, question)` ranks what was measured there, or interpolates between measured lengths,
and refuses everything else: nothing is carried over to another machine, head size, type or batch,
nor to a length outside those that were timed.

    python -m analysis.advise --device H100 --seq-len 32768 --heads 12 --head-dim 64
"""

from analysis.advise.answer import Advice, LeftOut, Option, advise
from analysis.advise.question import Question, Refused

__all__ = ["Advice", "LeftOut", "Option", "Question", "Refused", "advise"]
