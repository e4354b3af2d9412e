"""The examination: run the checks; at each fault try what may mend it, and go on with what did."""

from collections.abc import Callable
from dataclasses import dataclass

from quire.cli.doctor.checks import CHECKS, Patient
from quire.cli.doctor.edits import Edit, environment
from quire.cli.doctor.machine import Machine
from quire.cli.doctor.remedies import remedies
from quire.errors import QuireError, SetupError

MAX_FAULTS = 12
Check = Callable[[Patient], None]


@dataclass(frozen=True)
class Finding:
    """A fault: the check that met it, its text, and what mends it; tried: the change was tried, and the fault was gone. None: no
    command can mend it."""

    check: str
    text: str
    edit: Edit | None
    tried: bool


@dataclass(frozen=True)
class Report:
    """What came out.

    words     of the command that starts
    whole     every check was reached
    """

    findings: list[Finding]
    words: list[str]
    notes: list[str]
    whole: bool


def examine(words: list[str], machine: Machine) -> Report:
    """Runs every check on `quire serve WORDS`. Changes nothing but, for hub models, the cache of small files."""
    findings: list[Finding] = []
    environ: dict[str, str | None] = {}
    while True:
        with environment(environ):
            patient, check, fault = _first_fault(words, machine)
            if fault is None or check is None:
                return Report(findings, words, patient.notes, True)
            edit, tried = _mend(patient, check, fault)
        findings.append(Finding(check.__name__, str(fault), edit, tried))
        if edit is None or not tried or len(findings) == MAX_FAULTS:
            return Report(findings, words, patient.notes, False)
        words = edit.words if edit.words is not None else words
        environ = {**environ, **edit.environ}


def _first_fault(words: list[str], machine: Machine) -> tuple[Patient, Check | None, SetupError | None]:
    patient = Patient(words, machine)
    for check in CHECKS:
        try:
            check(patient)
        except SetupError as error:
            return patient, check, error
        except QuireError as error:
            return patient, check, SetupError(str(error))
    return patient, None, None


def _mend(patient: Patient, check: Check, fault: SetupError) -> tuple[Edit | None, bool]:
    """The first change with which the start gets past this check, or at least meets another fault there; else a command of the shell,
    untried; else nothing. A command that mends goes before a change that leaves something out."""
    partly: Edit | None = None
    for edit in remedies(fault, patient):
        if edit.shell is not None:
            return edit, False
        with environment(edit.environ):
            _, reached, error = _first_fault(patient.words if edit.words is None else edit.words, patient.machine)
        if reached is None or error is None or CHECKS.index(reached) > CHECKS.index(check):
            return edit, True
        if reached is check and str(error) != str(fault):
            partly = partly or edit
    return partly, partly is not None
