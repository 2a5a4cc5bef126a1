"""The exit statuses of the command, and the errors that lead to them."""

import errno

FAILED = 1
UNUSABLE_INPUT = 2
NO_INFORMATION = 3
NO_ADAPTER = 4
INTERRUPTED = 130
STATUSES = (
    f"Exit status: 0 when the run is finished, {UNUSABLE_INPUT} for input that cannot be used, "
    f"{FAILED} if the search itself fails (memory or disk ran out, among others), "
    f"{NO_INFORMATION} if the run is finished but base, experts and merges all score alike, "
    f"{NO_ADAPTER} if it is finished but its adapter cannot be used, "
    f"{INTERRUPTED} when interrupted."
)
DONE_OR_REFUSED = (
    f"Exit status: 0 when done, {UNUSABLE_INPUT} for input that cannot be used, {FAILED} if it "
    f"fails otherwise (memory or disk ran out, among others), {INTERRUPTED} when interrupted."
)

# Beside them ValueError, ModuleNotFoundError and OSError, which say what input cannot be used.
# torch's OutOfMemoryError and LinAlgError are RuntimeErrors.
FAILURES = (RuntimeError, MemoryError, ArithmeticError)
ERRORS = (ValueError, ModuleNotFoundError, OSError, *FAILURES)
DISK_FAILURES = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOMEM}


def status_of(error: BaseException) -> int:
    """The exit status of a run that an error ended."""
    if isinstance(error, OSError):
        return FAILED if error.errno in DISK_FAILURES else UNUSABLE_INPUT
    return FAILED if isinstance(error, FAILURES) else UNUSABLE_INPUT


def sentence_of(error: Exception) -> str:
    """What an error says, with its kind where its own words do not say what failed."""
    words = str(error) or type(error).__name__
    if isinstance(error, FAILURES):
        from evox_evogm.problems.failures import is_out_of_memory

        if is_out_of_memory(error):
            return f"memory ran out: {words}"
    if isinstance(error, ArithmeticError):
        return f"{type(error).__name__}: {words}"
    return words
