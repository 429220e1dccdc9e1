"""The one error that a user can cause."""


class UserError(Exception):
    """Bad input of any kind: its message is one line that names the file or flag and the remedy. Exit code 2."""
