"""`python -m tuneleak`."""

from tuneleak.cli import main

main()
