"""One module a command of the ``vniah`` command line; see ``vniah/cli.py``."""
