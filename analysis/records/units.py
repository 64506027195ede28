"""Bytes: what a number of each type takes, and the units that memory is given in."""

KIB, MIB = 2**10, 2**20
ITEM_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
