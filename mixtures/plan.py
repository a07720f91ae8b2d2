"""Plans: budgets become packed sequences, and packed sequences are read back."""

from mixtures.layout import Layout, layout
from mixtures.span import Row, SourceRules, Span, Specials

__all__ = ["Layout", "Row", "SourceRules", "Span", "Specials", "layout"]
