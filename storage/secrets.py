"""Removal of secrets from a text: passwords in addresses, signatures, and keys of the
environment.
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
SHORTEST = 8  # shortest secret that is hidden: shorter ones occur inside other words


def hide(text: str) -> str:
    """Return the text without its secrets.

    Removes what precedes an @ in its URLs, their signatures, and the values of environment
    variables whose name is that of a secret.
    """
    values = {
        value
        for name, value in os.environ.items()
        if NAMES.search(name.upper()) and len(value) >= SHORTEST
    }
    for value in sorted(values, key=len, reverse=True):
        text = text.replace(value, MARK)
    return SIGNED.sub(rf"\1={MARK}", USERINFO.sub(f"{MARK}@", text))


def holds_secret(uri: str) -> bool:
    """Return whether a URI has a name and password or a signature."""
    return bool(USERINFO.search(uri) or SIGNED.search(uri))
