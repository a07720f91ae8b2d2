"""Published optima and fits, small enough to carry: what our fits are held against, and what a report may set beside its own.

    OPTIMA      Tong et al. 2026 (arXiv 2603.03276), E13: N_opt and D_opt measured on the figure's image, about 0.3 % of an axis
    EXPONENTS   the exponents printed there
    CHINCHILLA  the re-fit of Hoffmann et al.'s law by Besiroglu et al. 2024 (arXiv 2404.10102), from points read off figure 4; standard errors

`python -m trainer.scaling.published` prints our fits of OPTIMA.
"""

from __future__ import annotations

from trainer.scaling.powers import Power, growth, power

FLOPS = {"dense": (6e18, 6e19, 3e20, 6e20, 1e21), "moe": (2e19, 4e19, 6e19, 2e20, 6e20)}
OPTIMA = {  # (family, modality): N_opt in millions, D_opt in billions
    ("dense", "language"): ((288, 894, 1598, 2410, 3385), (3.46, 11.2, 31.5, 42.2, 48.2)),
    ("dense", "vision"): ((685, 1503, 2215, 3588, 4944), (1.46, 6.66, 22.7, 28.2, 33.0)),
    ("moe", "language"): ((306, 460, 450, 960, 1183), (10.9, 14.5, 22.4, 34.8, 84.8)),
    ("moe", "vision"): ((529, 758, 848, 1352, 1827), (6.26, 8.79, 11.7, 24.5, 54.5)),
}
EXPONENTS = {  # a, b
    ("dense", "language"): (0.47, 0.53),
    ("dense", "vision"): (0.37, 0.63),
    ("moe", "language"): (0.41, 0.59),
    ("moe", "vision"): (0.36, 0.64),
}
GROWTH = {100.0: 14, 1000.0: 51}  # of vision's data over language's, in N: printed, from N^0.57
CHINCHILLA = {"A": (482.01, 124.58), "B": (2085.43, 1293.23), "E": (1.8172, 0.03), "alpha": (0.3478, 0.02), "beta": (0.3658, 0.02)}


def refit(family: str, modality: str) -> tuple[Power, Power]:
    """Our power laws (N_opt, D_opt) through the published optima."""
    n, d = OPTIMA[family, modality]
    return power(FLOPS[family], [1e6 * x for x in n]), power(FLOPS[family], [1e9 * x for x in d])


def main() -> None:
    """Print exponents beside those printed in the paper, and what follows for data."""
    fits = {key: refit(*key) for key in OPTIMA}
    for key, (n, d) in fits.items():
        a, b = EXPONENTS[key]
        print(f"{' '.join(key):16s} a {n.exponent} printed {a:g}   b {d.exponent} printed {b:g}")
    for family in FLOPS:
        vision, language = (fits[family, m][0].exponent.value for m in ("vision", "language"))
        print(f"{family}: data ratio grows as N^{1 / vision - 1 / language:.3f}: "
              + ", ".join(f"{growth(t, vision, language):.1f}x at {t:g}x" for t in GROWTH))  # fmt: skip


if __name__ == "__main__":
    main()
