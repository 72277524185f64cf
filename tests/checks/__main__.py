"""`python -m tests.checks`: how many of the wrong answers each check rejects by name, and whether
the right ones pass."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Callable
from typing import Any

from tests.checks.test_banks import BANKS
from vtlite import checks


def verdict(check: Callable[[Any], None], answer: Any) -> str:
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            check(answer)
        except checks.CheckFailed as error:
            return str(error)
    return "passed"


def main() -> int:
    killed = wrong = spared = right = 0
    for bank in BANKS:
        for name, cases in bank.WRONG.items():
            check = getattr(checks, name)
            found = sum(
                bool(re.search(words, verdict(check, answer))) for answer, words in cases.values()
            )
            fine = sum(verdict(check, answer) == "passed" for answer in bank.RIGHT[name])
            print(
                f"{bank.NOTEBOOK} {name:20} wrong answers rejected and named: {found:2} of"
                f" {len(cases):2}   right answers passed: {fine}"
            )
            killed, wrong, spared, right = (
                killed + found,
                wrong + len(cases),
                spared + fine,
                right + len(bank.RIGHT[name]),
            )
    print(
        f"kill rate of the checks: {killed} of {wrong} wrong answers ({killed / wrong:.0%});"
        f" {spared} of {right} right answers pass"
    )
    return int(killed < wrong or spared < right)


if __name__ == "__main__":
    sys.exit(main())
