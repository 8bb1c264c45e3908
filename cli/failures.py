"""What the command line could not do, said in one sentence, with the command to try next."""

from storage.errors import HostlerError


class Failed(HostlerError):
    """A command that did not succeed; `hint` is the command to try, empty where none would help."""

    code = "COMMAND_FAILED"

    def __init__(self, message: str, *, hint: str = "", exit_code: int = 1) -> None:
        super().__init__(message)
        self.hint = hint
        self.exit_code = exit_code


class Away(Failed):
    """The server could not be reached, which may pass by itself."""

    code = "SERVER_AWAY"
