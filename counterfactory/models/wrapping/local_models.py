"""Black boxes in this process: a Python callable, and a scikit-learn estimator."""

from __future__ import annotations

import inspect
import io
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from counterfactory.models.wrapping.errors import BlackBoxError
from counterfactory.models.wrapping.servers import Form


class PythonCallable:
    """A function of images (N,H,W,C) uint8, or a class of such functions.

    found: the object that the dotted path `target` names; settings: arguments of the class, or
    further ones of the function.
    """

    rows: int | None = None

    def __init__(self, found: Any, target: str, form: Form, settings: Mapping[str, Any]) -> None:
        self.form, self.target = form, target
        try:
            if inspect.isclass(found):
                found = found(**settings)
            elif settings:
                found = partial(found, **settings)
        except Exception as error:  # a user's class may raise anything
            raise BlackBoxError(
                f"expected settings that {target} takes, got {type(error).__name__}: {error}"
            ) from None
        if not callable(found):
            raise BlackBoxError(f"expected {target} to be callable, got {type(found).__name__}")
        self.call = found

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Return what the callable returns, as an array."""
        try:
            found = self.call(self.form.values(images))
        except MemoryError:
            raise
        except Exception as error:  # a user's function may raise anything
            text = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise BlackBoxError(f"{self.target} failed: {text}") from error
        if hasattr(found, "detach"):
            found = found.detach().cpu()
        return np.asarray(found)

    def version(self) -> str | None:
        """Return the callable's own `version`, or None where it has none."""
        told = getattr(self.call, "version", None)
        return str(told) if isinstance(told, str | int | float) else None


class Estimator:
    """A scikit-learn estimator on flat images (N, H*W*C)."""

    rows: int | None = None

    def __init__(self, estimator: Any, form: Form, outputs: str) -> None:
        self.form, self.labels = form, outputs == "labels"
        name = "predict" if self.labels else "predict_proba"
        if outputs == "logits":
            name = "decision_function"
        if not callable(getattr(estimator, name, None)):
            raise BlackBoxError(
                f"expected an estimator with {name}, got {type(estimator).__name__} without:"
                " set ask.outputs to probabilities, logits (decision_function) or labels"
            )
        self.estimator, self.call = estimator, getattr(estimator, name)
        self.order = self._order(getattr(estimator, "classes_", None))

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Return its outputs (N,K) in the order of the classes, or indices of classes (N,)."""
        values = self.form.values(images).reshape(len(images), -1)
        try:
            found = np.asarray(self.call(values))
        except ValueError as error:
            raise BlackBoxError(" ".join(str(error).split())[:300]) from None
        if self.labels:
            known = [str(one) for one in self._classes()]
            return np.array([self.order.index(known.index(str(one))) for one in found])
        return found[:, self.order] if found.ndim == 2 and found.shape[1] > 1 else found

    def version(self) -> str | None:
        """Return None: its file is pinned by a sha256."""
        return None

    def _classes(self) -> Sequence[Any]:
        found: Sequence[Any] = self.estimator.classes_
        return found

    def _order(self, told: Any) -> list[int]:
        """Return the place among the estimator's classes of each class of the settings: by name
        where it has names, else by place.
        """
        classes = [str(one) for one in self.form.classes]
        names = None if told is None else [str(one) for one in told]
        if names is not None and len(names) != len(classes):
            raise BlackBoxError(
                f"expected {len(classes)} classes, got {len(names)} from the estimator:"
                f" {', '.join(names)[:120]}"
            )
        named = {
            (self.form.labels or {}).get(name, name): at for at, name in enumerate(names or [])
        }
        if sorted(named) == sorted(classes):
            return [named[name] for name in classes]
        if (
            names is not None
            and not all(name.lstrip("-").isdigit() for name in names)
            and ({*names} != {"True", "False"})
        ):
            raise BlackBoxError(
                f"expected the estimator's classes {', '.join(names)[:120]}, got"
                f" {', '.join(classes)[:120]}: write its names, or ask.labels"
            )
        return list(range(len(classes)))


def load_estimator(data: bytes, name: str, trust: bool) -> Any:
    """Return the estimator in a file's bytes: skops by its ending, else joblib, which runs the
    code that the file names.

    trust: allow joblib, and types that skops does not know. BlackBoxError where it cannot be read.
    """
    if name.endswith(".skops"):
        return _load_skops(data, trust)
    if not trust:
        raise BlackBoxError(
            f"expected trust: true and sha256 to load {name}: joblib runs the code in the file; a"
            " .skops file needs neither"
        )
    try:
        import joblib

        return joblib.load(io.BytesIO(data))
    except ImportError as error:
        raise BlackBoxError(f"expected the package of {name}, got {error}") from None
    except Exception as error:  # a pickle may raise anything
        raise BlackBoxError(
            f"expected a joblib file, got {type(error).__name__}: {str(error)[:200]}"
        ) from None


def _load_skops(data: bytes, trust: bool) -> Any:
    try:
        from skops.io import get_untrusted_types, loads
    except ImportError:
        raise BlackBoxError("expected the package skops, got none: pip install skops") from None
    try:
        unknown = get_untrusted_types(data=data)
        if unknown and not trust:
            raise BlackBoxError(
                f"expected types that skops knows, got {', '.join(unknown)[:200]}: set trust: true"
                " and sha256 where you know the file"
            )
        return loads(data, trusted=unknown)
    except BlackBoxError:
        raise
    except Exception as error:  # a damaged archive may raise anything
        raise BlackBoxError(
            f"expected a skops file, got {type(error).__name__}: {str(error)[:200]}"
        ) from None


__all__ = ["Estimator", "PythonCallable", "load_estimator"]
