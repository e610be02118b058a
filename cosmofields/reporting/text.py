"""Words of a report: what the paper found, what each statistic is, what the roles mean."""

from __future__ import annotations

PAPER = "Xiao et al. 2024, arXiv:2411.11280"
PAPER_NOTE = (
    f"The paper's column is what it printed ({PAPER}): another simulation (CosmicGrowth, "
    "1200 Mpc/h, test boxes of 300 and 600 Mpc/h), other halos and other networks. It is there for "
    "orientation; a difference from it is no verdict."
)

ROLES = {
    "test": "a test box: nothing was trained or chosen on it",
    "validation": "the validation box: the weights were chosen by it, which flatters the scores",
    "training": "a training box: its scores flatter what was trained on it",
}
NO_ROLE = "whether anything was trained or chosen on this box is not on record"

# What the report's headline sets beside the paper: text, field, kind, the paper's figure.
HEADLINE = (
    ("C_r of the density", "density", "correlation_coefficient", "about 0.9"),
    ("C_r of the velocity", "velocity", "correlation_coefficient", "about 0.9"),
    ("C_r of the momentum", "momentum", "correlation_coefficient", "about 0.9"),
    ("C_r of div v", "velocity_divergence", "correlation_coefficient", "about 0.9"),
    ("C_r of div m", "momentum_divergence", "correlation_coefficient", "below the others"),
    ("velocity, rms error of a component [km/s]", "velocity", "rms_error", ""),
    ("|v|, predicted [km/s]", "velocity", "predicted", "297.22 ± 135.31"),
    ("|v|, true [km/s]", "velocity", "true", "294.60 ± 131.02"),
    ("|m|, predicted [km/s]", "momentum", "predicted", "315.17 ± 209.29"),
    ("|m|, true [km/s]", "momentum", "true", "309.50 ± 213.43"),
    ("1 − cos φ of the velocity", "velocity", "misalignment", "0.01 ± 0.06"),
    ("1 − cos φ of the momentum", "momentum", "misalignment", "0.04 ± 0.11"),
    ("div v, predicted [km/s/(Mpc/h)]", "velocity_divergence", "predicted", "0.40 ± 18.49 km/s *"),
    ("div v, true [km/s/(Mpc/h)]", "velocity_divergence", "true", "0.92 ± 17.55 km/s *"),
)
HEADLINE_NOTE = (
    "± is the scatter over cells. * The paper prints divergences in km/s, per cell of 2.34 Mpc/h "
    "or per unit of its grid; ours are in km/s/(Mpc/h)."
)

# The largest |R(k)| of a field for k in [low, high) h/Mpc, and the paper's bound.
DEVIATIONS = (
    ("density", 0.0, 0.3, "< 0.13"),
    ("velocity", 0.05, 0.2, "< 0.07"),
    ("momentum", 0.05, 0.2, "< 0.07"),
    ("velocity", 0.03, 0.05, "up to 0.13"),
    ("momentum", 0.03, 0.05, "up to 0.13"),
    ("velocity_divergence", 0.05, 0.3, "< 0.1"),
    ("momentum_divergence", 0.05, 0.3, "< 0.1"),
)

SYMBOLS = {
    "density": "1 + δ",
    "velocity": "v",
    "velocity_magnitude": "|v|",
    "velocity_divergence": "div v",
    "velocity_curl": "curl v",
    "momentum": "m",
    "momentum_magnitude": "|m|",
    "momentum_divergence": "div m",
    "momentum_curl": "curl m",
}

# Term, equation, what it says.
DEFINITIONS = (
    (
        "Correlation coefficient",
        "C_r = ⟨(p − ⟨p⟩)(t − ⟨t⟩)⟩ / (σ_p σ_t)",
        "Pearson's, over the cells of the grid; p the predicted field, t the true one. Of a "
        "vector: the mean of its three components. 1 is perfect in shape, whatever the amplitude.",
    ),
    (
        "rms error",
        "√⟨(p − t)²⟩",
        "Over cells; of a vector over all components together, so that it is the error of one.",
    ),
    (
        "Slope",
        "cov(p, t) / var(p)",
        "Of the least-squares line of true on predicted. A conditional mean has 1; a prediction "
        "that swings too far has less.",
    ),
    (
        "Misalignment",
        "1 − cos φ = 1 − v_p · v_t / (|v_p| |v_t|)",
        "0 for parallel vectors, 1 at a right angle, 2 for opposite ones. Cells in which a vector "
        "is zero are counted and left out.",
    ),
    (
        "Divergence and curl",
        "θ(k) = i k · v(k),  ω(k) = i k × v(k)",
        "By Fourier transform on the periodic box, in km/s/(Mpc/h); the odd derivative at the "
        "Nyquist frequency is zero.",
    ),
    (
        "Momentum",
        "m = (1 + δ) v",
        "In km/s: momentum density over the mean density.",
    ),
    (
        "Power spectrum",
        "P(k) = ⟨|δ(k)|²⟩ V",
        "Mean over the modes of a shell; of a vector the sum over its components. Shot noise "
        "is never subtracted. The mass-assignment window is the same in the predicted and in the "
        "true field and is left in; of halos it is taken out, with its aliases for a plain mesh "
        "(Jing 2005), so that their shot noise is flat.",
    ),
    (
        "Relative deviation",
        "R(k) = P_pred(k) / P_true(k) − 1",
        "0 is perfect in amplitude. A conditional mean has less power than the truth where the "
        "halos do not tell.",
    ),
    (
        "Correlation and transfer",
        "r(k) = P_× / √(P_pred P_true),  T(k) = P_× / P_true",
        "P_× is the cross spectrum. r asks for the phases alone; T = r √(1 + R).",
    ),
    (
        "Correlation function",
        "ξ(r) = ⟨δ(x) δ(x + r)⟩",
        "By inverse transform of the power, over all pairs of cells; of a vector the sum over "
        "components. ξ(r⊥, r∥): by separation across and along the line of sight.",
    ),
    (
        "Multipoles",
        "P_ℓ(k) = (2ℓ + 1)/2 ∫ P(k, μ) L_ℓ(μ) dμ,  ξ_ℓ(r) likewise",
        "ℓ = 0, 2, 4; μ is the cosine to the line of sight. A real-space field is isotropic: its "
        "quadrupole and hexadecapole are zero but for the scatter of one box.",
    ),
    (
        "Halos moved back",
        "r = s − v_los(r) / (a H)",
        "The catalogue in redshift space, with the shift taken out by the predicted velocity at "
        "the solution r. It is compared with the same halos in real space.",
    ),
    (
        "Spread",
        "ΔP = σ_boxes √(V_all / V_overlap)",
        "Eq. 11 of the paper: the scatter over sub-boxes that overlap; V_all is the volume that "
        "they cover, V_overlap the sum of their volumes. Where sub-boxes overlap it is a lower "
        "bound of the error of the mean: in the paper's layout 0.4 of the scatter of one box, "
        "where 0.59 was measured.",
    ),
)
