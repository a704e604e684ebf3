"""Metrics of counterfactuals as `torchmetrics.Metric` classes, for any evaluation loop.

    from counterfactory.metrics import COUT, FlipRate

The examples in the classes' docstrings assume `import torch` and the import of the class. States
are sums, so the parts of a distributed or sharded evaluation merge (`merge_state`, `sync`).

A class is imported when it is first used, because torchmetrics takes seconds to import. The
functions and sums behind the classes, in the files of this folder, do not import torchmetrics.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from counterfactory.metrics.modules.attributes import (
        MNAC,
        AttributeChangeRates,
        CausalChanges,
        CausalShare,
        CorrelationDifference,
        GlobalImportance,
        SpuriousChanges,
    )
    from counterfactory.metrics.modules.costs import JudgeScore, MeanCost, TFLOPs
    from counterfactory.metrics.modules.decisions import (
        COUT,
        AnyFlipRate,
        FlipRate,
        SecondClassifierAgreement,
        TargetProbability,
    )
    from counterfactory.metrics.modules.distances import (
        S3,
        FaceSimilarity,
        FaceVerification,
        LatentPerturbationRatio,
        LPIPSDistance,
        LPIPSDiversity,
        PixelDistance,
        PixelSparsity,
    )
    from counterfactory.metrics.modules.sets import FID, KID, SplitFID

MODULES = ("decisions", "distances", "attributes", "sets", "costs")

__all__ = [
    "COUT",
    "FID",
    "KID",
    "MNAC",
    "S3",
    "AnyFlipRate",
    "AttributeChangeRates",
    "CausalChanges",
    "CausalShare",
    "CorrelationDifference",
    "FaceSimilarity",
    "FaceVerification",
    "FlipRate",
    "GlobalImportance",
    "JudgeScore",
    "LPIPSDistance",
    "LPIPSDiversity",
    "LatentPerturbationRatio",
    "MeanCost",
    "PixelDistance",
    "PixelSparsity",
    "SecondClassifierAgreement",
    "SplitFID",
    "SpuriousChanges",
    "TFLOPs",
    "TargetProbability",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    homes = (import_module(f"{__name__}.modules.{home}") for home in MODULES)
    return next(found for home in homes if (found := getattr(home, name, None)) is not None)
