"""Redacts configured secrets and credentials wherever text leaves the process."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from urllib.parse import quote, unquote_plus

HIDDEN = "[redacted]"

_SHORTEST = 8
"""Characters; hiding a shorter secret would garble everything else that is said."""

_CREDENTIALS = r"(?i:(?<=bearer )|(?<=basic ))[\w.~+/%-]{16,}=*|\bhf_\w{16,}"
"""The value of an Authorization header, right or wrong, and what looks like a token of the Hub."""

_pattern = re.compile(_CREDENTIALS)


def hide(secrets: Iterable[str]) -> None:
    """Adds secrets for `redact`: literally, URL-encoded, and as they read in a URL that was not encoded."""
    global _pattern
    long = [secret for secret in secrets if len(secret) >= _SHORTEST]
    forms = {form for secret in long for form in (secret, quote(secret, safe=""), unquote_plus(secret))}
    longest_first = sorted(forms, key=len, reverse=True)
    _pattern = re.compile("|".join([*map(re.escape, longest_first), _CREDENTIALS]))


def redact(text: str) -> str:
    """The text without secrets."""
    return _pattern.sub(HIDDEN, text)


class RedactingFormatter(logging.Formatter):
    """Formats a log record, traceback included, without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one text."""
        return redact(super().format(record))
