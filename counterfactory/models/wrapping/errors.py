"""Errors of classifiers that are asked; str() of each is one line without secrets."""

from __future__ import annotations


class BlackBoxError(ValueError):
    """A black box that cannot be asked, or whose answer is wrong: another try does not help."""


class Unreachable(BlackBoxError):  # noqa: N818 (it describes the server)
    """A server that did not answer in all tries; the same call may succeed later."""


class QueriesSpent(Unreachable):
    """The next call would ask about more images than the settings allow."""
