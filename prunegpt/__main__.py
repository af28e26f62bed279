"""`python -m prunegpt` is `prunegpt`."""

from prunegpt.cli import main

if __name__ == "__main__":
    main()
