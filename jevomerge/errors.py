"""The exceptions whose message is all that a user needs."""


class InputError(ValueError):
    """Bad input from the user; the command line prints it without a traceback and exits with 2."""


class NotFinite(InputError):
    """A merged tensor has values that its dtype cannot hold; of a candidate in a search, a fitness of NaN."""


class FitnessError(RuntimeError):
    """A model could not be scored: which, on which task, and why; the command line exits with 1."""
