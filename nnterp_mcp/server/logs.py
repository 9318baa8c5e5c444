"""The log on standard error: one line per call, as text or JSON, with secrets redacted."""

from __future__ import annotations

import json
import logging
import sys
from typing import Literal

from nnterp_mcp.redaction import RedactingFormatter, redact

_NOISY = ("mcp", "httpx", "httpx2", "uvicorn")


class JsonFormatter(logging.Formatter):
    """A log record as one JSON object: time, logger, level, message; and the facts of a call by name."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line."""
        said = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "logger": record.name,
            "level": record.levelname.lower(),
            **(getattr(record, "facts", None) or {"message": record.getMessage()}),
        }
        if record.exc_info:
            said["traceback"] = self.formatException(record.exc_info)
        return redact(json.dumps(said, ensure_ascii=False, default=str))


def begin(form: Literal["text", "json"]) -> None:
    """Sends the log of this process to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    text = RedactingFormatter("%(asctime)s %(name)s %(message)s")
    handler.setFormatter(JsonFormatter() if form == "json" else text)
    logging.basicConfig(handlers=[handler], level=logging.INFO)
    logging.captureWarnings(True)
    for noisy in _NOISY:
        logging.getLogger(noisy).setLevel(logging.WARNING)
