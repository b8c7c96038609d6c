"""``python -m vniah``: the command line, for torchrun."""

from vniah.cli import main

if __name__ == "__main__":
    main()
