"""What the test file of each method, `test_<name>.py`, says of it for the tests that every method must pass.

`SETTINGS`: a value for each setting, not its default. `CASES`: by a label, objects that show its branches, with 6
anchor draws where it may have so many.
"""

import importlib
from typing import Any

import pytest

from nonpareil.methods import METHODS
from nonpareil.methods.base import Method
from nonpareil.methods.credited import CreditedMethod


def _said(what: str) -> dict[str, Any]:
    return {name: getattr(importlib.import_module(f"tests.methods.test_{name}"), what) for name in METHODS}


SETTINGS: dict[str, dict[str, Any]] = _said("SETTINGS")
CASES: dict[str, Method] = {label: made for cases in _said("CASES").values() for label, made in cases.items()}
OF_DRAWN_TOKENS = {label: made for label, made in CASES.items() if not isinstance(made, CreditedMethod)}
"""Those whose loss is of drawn tokens; what holds of the others is in `test_credited.py`."""
every = pytest.mark.parametrize("method", OF_DRAWN_TOKENS.values(), ids=OF_DRAWN_TOKENS)
