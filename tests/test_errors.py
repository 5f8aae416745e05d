"""Errors cross the borders between processes whole."""

from __future__ import annotations

import pickle

import pytest

from regraft import errors

ERRORS = [
    errors.Interrupted(15, "stopped at step 3"),
    errors.MissingExtraError("scipy", "stats", "comparing seeds"),
    *(
        kind("what, where, what to do")
        for kind in vars(errors).values()
        if isinstance(kind, type)
        and issubclass(kind, errors.RegraftError)
        and kind not in (errors.Interrupted, errors.MissingExtraError)
    ),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_errors_survive_pickling(error):
    found = pickle.loads(pickle.dumps(error))
    assert type(found) is type(error)
    assert str(found) == str(error)
    assert getattr(found, "signal", None) == getattr(error, "signal", None)
