"""Taking out of a text what must not be shown: passwords in addresses, signatures, and the
environment's own keys.
"""

from __future__ import annotations

import os
import re

MARK = "***"
USERINFO = re.compile(r"(?<=://)[^/\s@?#'\"]+@")
SIGNED = re.compile(
    r"(?i)\b(x-amz-[a-z-]+|awsaccesskeyid|signature|sig|access_key|secret_key|session_token)=[^&\s'\"]+"
)
NAMES = re.compile(r"(SECRET|TOKEN|PASSWORD|API_?KEY|CREDENTIAL)[A-Z_]*$")
SHORTEST = 8  # of an environment's secret that is looked for: shorter ones stand in other words


def hide(text: str) -> str:
    """The text without what stands before an @ in its URLs, without their signatures, and without
    what the environment holds under the name of a secret."""
    values = {
        value
        for name, value in os.environ.items()
        if NAMES.search(name.upper()) and len(value) >= SHORTEST
    }
    for value in sorted(values, key=len, reverse=True):
        text = text.replace(value, MARK)
    return SIGNED.sub(rf"\1={MARK}", USERINFO.sub(f"{MARK}@", text))


def holds_secret(uri: str) -> bool:
    """Does a URI carry a name and password or a signature?"""
    return bool(USERINFO.search(uri) or SIGNED.search(uri))
