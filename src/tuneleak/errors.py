"""The one exception that means "the input is at fault, not the program"."""


class InputError(ValueError):
    """Bad input from a person: says what is wrong, where, and what to do. The command line exits with code 2."""
