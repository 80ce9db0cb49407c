"""The verbs of `maep`, one a file: arguments in, a call, an exit code."""
