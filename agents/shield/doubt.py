"""Doubts: the reasons for which a policy's proposal is not followed.

Does not know: how a doubt is found, or what follows from it.
"""

from enum import StrEnum


class Doubt(StrEnum):
    """Why a proposal does not rule."""

    LATE = "late"  # made from a state that is too old
    ABSENT = "absent"  # there is none
    ERROR = "error"  # the policy raised
    NOT_FINITE = "not_finite"  # a number in it is NaN or infinite
    WRONG_SHAPE = "wrong_shape"  # not one number a knob, or not one a replica
    NOVEL = "novel"  # the state is unlike those that the policy was trained on
    REGRET = "regret"  # the fallback is estimated to do better
