"""How a metric is said on an axis: name, unit, factor to that unit, digits, and which way is better. `split` words too."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Measure:
    """A metric in words. `factor` × value is in `unit`; `form` formats that; `better` is "higher" or "lower"."""

    name: str
    unit: str
    better: str = "lower"
    factor: float = 1.0
    form: str = "{:.3f}"

    @property
    def label(self) -> str:
        """What stands at an axis."""
        return f"{self.name}, {self.unit}" if self.unit else self.name

    def said(self, value: float) -> str:
        """A value in the unit, without naming it."""
        return self.form.format(value * self.factor)


def _share(name: str) -> Measure:
    return Measure(name, "%", "higher", 100.0, "{:.1f}")


KNOWN = {
    "vqa": _share("accuracy"),
    "vqa.choice": _share("accuracy by choice likelihood"),
    "benchmark": _share("benchmark accuracy"),
    "scene_match": _share("captioned things found in the picture"),
    "commands": _share("commands followed"),
    "text_perplexity": Measure("perplexity", "per token", form="{:.2f}"),
    "bits_per_byte": Measure("text loss", "bits per byte"),
    "flow_loss": Measure("flow loss", "mean squared error"),
    "frechet": Measure("Fréchet distance", "squared features", form="{:.2f}"),
    "rollout.pixel": Measure("pixel error", "mean squared"),
    "rollout.latent": Measure("latent error", "mean squared"),
    "planning.ate": Measure("ATE", "m"),
    "planning.rpe": Measure("RPE", "m"),
}


def measure(metric: str) -> Measure:
    """The metric in words; one not known here is named by itself, and less of it is taken for better."""
    return KNOWN.get(metric) or Measure(metric.replace("_", " ").replace(".", " "), "as measured", form="{:.4g}")
