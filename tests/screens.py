"""What tests of terminal screens share: widths, and what was printed."""

import pytest

both_widths = pytest.mark.parametrize("width", [80, 120], indirect=True)
"""Runs a test at both widths; needs the fixture `width`."""


def printed(capsys: pytest.CaptureFixture[str]) -> str:
    found = capsys.readouterr()
    assert found.err == ""
    return found.out


def spaced(text: str) -> str:
    """Words without line breaks, so that folded text is found."""
    return " ".join(text.split())
