"""`python -m alignkit` and `torchrun -m alignkit` are the command line."""

from alignkit.cli import main

if __name__ == "__main__":
    main()
