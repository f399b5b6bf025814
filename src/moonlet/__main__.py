"""`python -m moonlet` is the `moonlet` command."""

from moonlet.cli import main

if __name__ == "__main__":
    main()
