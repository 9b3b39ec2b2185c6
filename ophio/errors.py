"""The error that users see as one line."""


class UserError(ValueError):
    """Bad input: the message names the file, residue or option and says what to do. The CLI prints it and exits with 2."""
