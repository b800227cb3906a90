"""`python -m launcher` is `blsp`."""

from launcher.cli import main

main()
