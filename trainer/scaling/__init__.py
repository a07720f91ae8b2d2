"""Scaling: which sizes to train at which budgets, what law their losses follow, and which mixture to try next.

    isoflop.py         a sweep's plan: budgets × sizes → arms of an ablation
    parabola.py        losses over sizes at one budget → the best size, where there is one inside
    powers.py          best sizes over budgets → power laws, their intervals, data ratios at other sizes
    parametric.py      losses over (N, D) or (N, D_own, D_other) → a law of the loss
    mixing.py          losses over tokens by source → a law of the loss;  next_mixture.py → the mixture to try next
    points.py          the runs of a sweep, from an ablation's evidence;  sweep.py → all their laws
    stage.py           `pipelines run scaling`, from table.py (runs of one's own) or ablated.py (any ablation)
    published.py       optima and fits that others have published

Everything here is a function of plain numbers; scipy is imported where it is used. Sources of methods stand in each file.
"""

from trainer.scaling.isoflop import Isoflop

__all__ = ["Isoflop"]
