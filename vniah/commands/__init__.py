"""One module a command of the ``vniah`` command line; see ``vniah/cli.py``.

A command opens the rooms that it needs inside its function, so that ``vniah --help`` imports nothing heavy. No other
room knows commands, but for ``vniah.evaluate`` and what a ``Run`` draws of itself.
"""
