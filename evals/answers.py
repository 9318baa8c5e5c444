"""What is right: computed from the model's files once, and kept in the cache folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from evals.question import SMOLLM2, Question, Value

_HERE = Path(__file__).parent
_SOURCES = (_HERE / "plain.py", _HERE / "planted.py", *sorted((_HERE / "questions").glob("*.py")))
_FILES = (".safetensors", ".json", ".jinja")


def model_folder() -> Path:
    """The folder of the model that the server loads as `smollm2-135m`.

    To find, download or convert the files is all that the eval takes from the package in order to know what is right.
    """
    from nnterp_mcp.model.loading.locate import locate
    from nnterp_mcp.model.loading.locations import BUILTIN
    from nnterp_mcp.settings import Settings

    return locate(BUILTIN, None, Settings().cache, False, lambda message: None).folder


def model_folders(cache: Path) -> dict[str, Path]:
    """The folders of the models that questions are about, by their names; planted ones are saved below the cache."""
    from evals.planted import save_planted

    return {SMOLLM2: model_folder(), **save_planted(cache / "planted")}


def right_answers(
    questions: Sequence[Question],
    folders: Mapping[str, Path],
    cache: Path,
    report: Callable[[str], None] = lambda message: None,
) -> dict[str, Value]:
    """The right answer to each question, by its name.

    Args:
        questions: The questions.
        folders: The models' folders, by their names.
        cache: Where answers are kept, by the hash of a model's files and of the code that computes them.
        report: Told which question is being computed.
    """
    found: dict[str, Value] = {}
    for model in dict.fromkeys(question.model for question in questions):
        about = [question for question in questions if question.model == model]
        found |= _answers_about(about, folders[model], cache, report)
    return found


def _answers_about(
    questions: Sequence[Question], folder: Path, cache: Path, report: Callable[[str], None]
) -> dict[str, Value]:
    """The right answers to questions about one model."""
    kept = cache / f"{_digest(folder)}.json"
    known: dict[str, Value] = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    missing = [question for question in questions if question.name not in known]
    if missing:
        from evals.plain import Plain

        plain = Plain.load(folder)
        for question in missing:
            report(f"computing {question.name}")
            known[question.name] = question.compute(plain)
        cache.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(known, indent=1), encoding="utf-8")
    return {question.name: known[question.name] for question in questions}


def _digest(folder: Path) -> str:
    whole = hashlib.sha256()
    for path in (*_SOURCES, *sorted(path for path in folder.iterdir() if path.suffix in _FILES)):
        with path.open("rb") as source:
            whole.update(f"{path.name} {hashlib.file_digest(source, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()[:32]
