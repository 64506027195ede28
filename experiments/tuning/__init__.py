"""Which tile for which kernel and card: candidates, drafted without a GPU or raced on one.

`tune` races candidates on a card (`python -m experiments tune`); `draft` takes the first that
compiles without a fault, for every card, without one (`python -m experiments.tuning.draft
[TABLE ...]`). Each entry of a table says in `source` which of the two it is from.
"""
