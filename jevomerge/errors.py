"""The one exception that means "the input is wrong, and here is the remedy"."""


class InputError(ValueError):
    """Bad input from the user; the command line prints it without a traceback and exits with 2."""
