"""The one exception of the interpreter."""

from __future__ import annotations


class Fault(Exception):  # noqa: N818
    """A program did what a GPU forbids or leaves undefined; the message says what and where."""


class Unsupported(Fault):
    """The program uses a part of PTX that the interpreter does not have."""
