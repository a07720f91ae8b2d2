"""What an ablation asks of its numbers, one file a kind of question, named in its `compare:`. A file's Part has its keys (which arms, which metric),
`rows(evidence)`, the answers as plain values, and `section(evidence) -> Markup | None`, the table that shows them."""
