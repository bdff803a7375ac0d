"""The one exception that is meant for the person at the keyboard."""


class UserError(Exception):
    """Something that the user can mend. The text says what is wrong, where (file, row, field), and what to do instead.

    Commands show it as one line, without a traceback.
    """
