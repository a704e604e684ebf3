"""Counterfactuals for trained classifiers, in pure torch and numpy.

>>> from counterfactory import explain
>>> from counterfactory.methods import CADEX
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from counterfactory.notebook import explain as explain

__all__ = ["explain"]


def __getattr__(name: str) -> Any:
    # Only when it is asked for: the command line must not wait for torch.
    if name == "explain":
        from counterfactory.notebook import explain

        return explain
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
