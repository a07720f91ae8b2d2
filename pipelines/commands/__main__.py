"""`python -m pipelines.commands VERB …` is `pipelines VERB …`, for places where the console script is not on the path."""

from pipelines.commands import main

main()
