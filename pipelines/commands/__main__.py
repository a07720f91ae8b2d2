"""`python -m pipelines.commands`: the console script for places where it is not on the path."""

from pipelines.commands import main

if __name__ == "__main__":
    raise SystemExit(main())
