"""Scaling: which sizes to train at which budgets, what law their losses follow, and which mixture to try next.

    isoflop.py     a sweep's plan: budgets × sizes → arms of an ablation
    parabola.py    losses over sizes at one budget → the best size, where there is one inside
    powers.py      best sizes over budgets → power laws, their intervals, ratios of data at other sizes
    parametric.py  losses over (N, D) or (N, D_text, D_visual) → a law of the loss
    mixing.py      losses over budgets of sources → a law of the loss, and the next mixture
    points.py      where the numbers come from: an ablation's evidence, or a table of a user's own runs

Everything here is a function of plain numbers; scipy is imported where it is used. Sources of methods stand in each file.
"""

from trainer.scaling.isoflop import Isoflop

__all__ = ["Isoflop"]
