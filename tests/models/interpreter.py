"""Triton's interpreter in a third of its time, with the same results and checks.

At each call of a device function it sets up `triton.language` again, by looking at all of its
members; each look-up of a NumPy dtype makes a table of all of them; and whether an integer
overflows takes nine interpreted operations.
"""

from __future__ import annotations

import operator

import numpy as np
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter

OPERATORS = {"add": operator.add, "sub": operator.sub, "mul": operator.mul}


def set_up_once() -> None:
    """The language is set up once per launch and module."""
    set_up, launch = interpreter._patch_lang, interpreter.GridExecutor.__call__
    done: set[int] = set()

    def launched(self, *args, **kwargs):
        done.clear()
        return launch(self, *args, **kwargs)

    def set_up_for(function):
        if id(function.__globals__) in done:
            return interpreter._LangPatchScope()
        done.add(id(function.__globals__))
        return set_up(function)

    interpreter.GridExecutor.__call__ = launched
    interpreter._patch_lang = set_up_for


def remember_dtypes() -> None:
    """Each Triton type's NumPy dtype is looked up once."""
    look_up, found = interpreter._get_np_dtype, {}

    def remembered(dtype):
        name = dtype.scalar.name
        if name not in found:
            found[name] = look_up(dtype)
        return found[name]

    interpreter._get_np_dtype = remembered


def check_overflow_in_numpy() -> None:
    """A result that its integer type does not hold is an error, as in the interpreter."""

    def check(self, lhs, rhs, operation):
        dtype = lhs.dtype
        if dtype.int_bitwidth >= 64:
            return
        exact = OPERATORS[operation.__name__](*(x.handle.data.astype(np.int64) for x in (lhs, rhs)))
        fits = dtype.get_int_min_value() <= exact.min() and exact.max() <= dtype.get_int_max_value()
        assert fits, f"int{dtype.int_bitwidth} overflow detected for operation {operation.__name__}"

    TritonSemantic.binary_op_sanitize_overflow_impl = check


def hasten() -> None:
    """All of it, for the rest of the process."""
    set_up_once()
    remember_dtypes()
    check_overflow_in_numpy()
