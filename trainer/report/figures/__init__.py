"""Figures of a report, one file each, named in an ablation's `report:`. A file's Part has its keys, and `section(evidence) -> Markup | None`:
None when the ablation has nothing of its kind."""
