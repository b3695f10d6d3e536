"""`python -m lightningrl.cli`, for interpreters whose scripts aren't on the path."""

from lightningrl.cli import main

main()
