"""The one error class for bad input."""


class InputError(ValueError):
    """A value given by the user is not usable.

    The message is one sentence that names the value, what is allowed, and what to do. Commands print it and exit with
    code 2; anything else that escapes is a defect of ours and keeps its traceback.
    """
