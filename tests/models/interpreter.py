"""Triton's interpreter in a fraction of its time, with the same results and checks.

At each call of a device function it sets up `triton.language` again, by looking at all of its
members; each look-up of a NumPy dtype makes a table of all of them; whether an integer overflows
takes nine interpreted operations; and each result makes its type anew, and the type's name.
"""

from __future__ import annotations

import inspect
import operator

import numpy as np
from triton.language import core
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


def remember_types() -> None:
    """Blocks of one shape and element share their type, and tensors of one type what it gives."""
    make_type, make_tensor, found = core.block_type.__init__, core.tensor.__init__, {}

    def block(self, element_ty, shape):
        # As text: 8.0 equals 8, and is no size.
        key = element_ty.name, str([getattr(size, "value", size) for size in shape])
        if key not in found:
            make_type(self, element_ty, shape)
            found[key] = self.__dict__
        self.__dict__ = found[key]

    def tensor(self, handle, type):
        given = type.__dict__.get("of_tensor")
        if given is None:
            make_tensor(self, handle, type)
            type.of_tensor = {name: x for name, x in vars(self).items() if name != "handle"}
            return
        self.__dict__.update(given)
        self.handle = handle

    core.block_type.__init__ = block
    core.tensor.__init__ = tensor
    for kind in (core.dtype, core.pointer_type, core.block_type):
        kind.__eq__ = same_or(kind.__eq__)


def same_or(compare):
    """What is itself need not be compared."""
    return lambda self, other: self is other or compare(self, other)


def pass_equal_types() -> None:
    """Operands that no rule changes are not taken through the rules; the types' are remembered."""
    check, broadcast = (
        TritonSemantic.binary_op_type_checking_impl,
        TritonSemantic.broadcast_impl_value,
    )
    promote, found = TritonSemantic.computation_type_impl, {}

    def checked(self, lhs, rhs, *options, **named):
        is_plain = len(options) < 4 and not named  # no division, for which half types are promoted
        both = is_plain and type(lhs) is type(rhs) is core.tensor
        if both and lhs.type == rhs.type and not lhs.dtype.is_ptr():
            return lhs, rhs
        return check(self, lhs, rhs, *options, **named)

    def broadcasted(self, lhs, rhs):
        a, b = lhs.type, rhs.type
        if a.is_block() and b.is_block() and a.shape.values == b.shape.values:
            return lhs, rhs
        return broadcast(self, lhs, rhs)

    def promoted(self, a, a_is_scalar, b, b_is_scalar, is_division):
        key = a.name, a_is_scalar, b.name, b_is_scalar, is_division
        if key not in found:
            found[key] = promote(self, a, a_is_scalar, b, b_is_scalar, is_division)
        return found[key]

    TritonSemantic.binary_op_type_checking_impl = checked
    TritonSemantic.broadcast_impl_value = broadcasted
    TritonSemantic.computation_type_impl = promoted


def call_members_directly() -> None:
    """A member of the language is called without a look at who calls it."""

    def patch(owner, name, member, builder, scope):
        semantic, inner = TritonSemantic(builder), inspect.unwrap(member)

        def called(*args, **kwargs):
            kwargs["_semantic"] = semantic
            return inner(*args, **kwargs)

        scope.set_attr(owner, name, called)

    interpreter._patch_attr = patch


def hasten() -> None:
    """All of it, for the rest of the process."""
    set_up_once()
    remember_dtypes()
    check_overflow_in_numpy()
    remember_types()
    pass_equal_types()
    call_members_directly()
