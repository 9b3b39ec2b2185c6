"""The error that users see as one line."""


class UserError(ValueError):
    """Bad input: the message names the file, residue or option and says what to do. The CLI prints it and exits with 2."""


def of_system(error: OSError) -> str:
    """One line of an operating system's refusal, such as a full disk: the file, and the reason."""
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or ' '.join(str(error).split())}"
