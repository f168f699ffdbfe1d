"""The exceptions whose message is all that a user needs."""


class InputError(ValueError):
    """Bad input from the user; the command line prints it without a traceback and exits with 2."""


class FitnessError(RuntimeError):
    """A model could not be scored: which, on which task, and why; the command line exits with 1."""
