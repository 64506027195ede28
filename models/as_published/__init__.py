"""Replicas: what the published code computed or timed, written afresh and small, one a file.

Each module holds the function as it ran and, apart from it, what it computes, by which it is
checked before it is timed:

    formula(q, k, v, rows, *pattern, is_causal)   its output at query positions `rows` in float64,
                                                  and how far the system magnifies rounding
    pairs(seq_len, heads, *pattern, is_causal)    query-key pairs that it scores in one sequence
    FORMULA, BACKEND                              the formula in words; what runs

None of them is the attention that it was named after; `models.registry` says which system that is.
"""
