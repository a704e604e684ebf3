"""The experiment: what a classifier, and an oracle of attributes, answer to mixtures of a row's
original and its counterfactual.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from counterfactory.interventions.switches import Switches
from counterfactory.models.interfaces import AttributeModel, Classifier

LIMIT = 16.0  # of log-odds; a black box that returns labels alone has infinite ones
Outcome = Callable[[Tensor, Tensor], Tensor]


def log_odds(scores: Tensor, target: Tensor) -> Tensor:
    """Return the log-odds ln(p / (1 - p)) of each row's target class within +-LIMIT, (N,) float64.

    scores: (N,K), whose softmax is the probability. target: (N,) int64. Infinite scores are allowed
    where the probability has a limit. NaN where a score is NaN or where there is no limit.
    """
    mine = torch.nn.functional.one_hot(target, scores.shape[1]).bool()
    scores = scores.double()
    others = scores.masked_fill(mine, -torch.inf).logsumexp(1)
    return (scores[mine] - others).clamp(-LIMIT, LIMIT)


class Answers:
    """What is measured of mixtures: the target's log-odds, then each attribute's.

    target: (B,) int64, of the rows. oracle: None where only the classifier is asked. batch: number
    of mixtures that the networks get at a time.
    """

    def __init__(
        self,
        classifier: Classifier,
        target: Tensor,
        oracle: AttributeModel | None = None,
        batch: int = 64,
    ) -> None:
        self.classifier, self.target, self.oracle, self.batch = classifier, target, oracle, batch
        self.functions = 1 + (len(oracle.attributes) if oracle is not None else 0)

    @torch.no_grad()
    def of(self, contents: Tensor, rows: Tensor) -> Tensor:
        """Return the outcomes (N,F) of contents in the classifier's form, float64 on the CPU.

        rows: (N,) int64, the row of each content. Values are log-odds within +-LIMIT; NaN where a
        network's answer is not finite and has no limit.
        """
        scores = self.classifier(contents)
        found = [log_odds(scores, self.target[rows])[:, None]]
        if self.oracle is not None:
            p = self.oracle(contents).double()
            found.append(torch.logit(p, eps=1e-7).clamp(-LIMIT, LIMIT))
        return torch.cat(found, 1).cpu()

    def __call__(self, switches: Switches, rows: Tensor, on: Tensor) -> Tensor:
        """Return the outcomes (N,F) of the rows' changes with the parts that are on, (N,C)."""
        if not len(rows):  # many networks refuse an empty batch
            return torch.zeros(0, self.functions, dtype=torch.float64)
        parts = zip(torch.split(rows, self.batch), torch.split(on, self.batch), strict=True)
        return torch.cat([self.of(switches.mixed(r, o), r) for r, o in parts])

    def each(self, switches: Switches, on: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return the outcomes (N,M,F) of M mixtures of each of N rows.

        on: (N,M,C). rows: (N,) int64; all rows without it.
        """
        count, mixtures, _ = on.shape
        chosen = torch.arange(count) if rows is None else rows
        every = chosen.to(self.target.device).repeat_interleave(mixtures)
        flat = on.flatten(0, 1).to(self.target.device)
        return self(switches, every, flat).reshape(count, mixtures, self.functions)
