"""An answered row in its stored form."""

from __future__ import annotations

import json
from typing import Any

from actors.answer import Answered
from actors.modality import Modality
from storage.codec import BadRow


def record(answered: Answered, method: str, modality: Modality) -> dict[str, Any]:
    """Return a row of storage.schema.COUNTERFACTUALS.

    Only this function decides whether the row flipped, from the stored counterfactual. method: the
    dotted path of its class. BadRow where the classifier's numbers for it are not finite.
    """
    row, before, after, target = answered.row, answered.before, answered.after, answered.target
    for which, p in (("original", before), ("counterfactual", after)):
        if not bool(p.isfinite().all()):  # the largest of these could be any class
            raise BadRow(f"the classifier gave the {which} probabilities that are not finite")
    source, predicted = int(before.argmax()), int(after.argmax())
    flipped = predicted == target
    return {
        "id": row.id,
        "cf_id": answered.cf_id,
        "k": answered.k,
        "row": row.row,
        "split": row.split,
        "label": row.label,
        "source": source,
        "target": target,
        "predicted": predicted,
        "correct": None if row.label is None else row.label == source,
        "flipped": flipped,
        "reason": None if flipped else answered.reason or "the flip was lost in 8 bits",
        "p_source_before": float(before[source]),
        "p_target_before": float(before[target]),
        "p_source_after": float(after[source]),
        "p_target_after": float(after[target]),
        "steps": answered.steps,
        "forward": answered.forward,
        "backward": answered.backward,
        "seconds": answered.seconds,
        "method": method,
        **modality.cells(row.id, answered.cf_id, row.content, answered.stored),
        "latent_before": answered.latent_before,
        "latent_after": answered.latent_after,
        "condition_before": answered.condition_before,
        "condition_after": answered.condition_after,
        "edits": None if answered.edits is None else json.dumps(answered.edits, sort_keys=True),
        "carried": json.dumps(row.carried, default=str, sort_keys=True),
    }
