"""What a report is told: plain values, importable without torch so that ``probe --help`` stays quick."""

from dataclasses import dataclass

from probe.ranges import Count, Place, Positive, Seed, Threads, Weight


@dataclass(frozen=True, kw_only=True)
class Training:
    """How the trained methods are run. Every number is the caller's; the testbed's are in ``TESTBED``."""

    steps: Count
    """Optimiser steps of each method."""
    batch_size: Count = 16
    """Rows of forget and of retain data a step."""
    seed: Seed = 0
    """Fixes the order of rows, random directions and control features."""
    gradient_lr: Positive
    """Learning rate of GA, GradDiff, WGA and NPO."""
    grad_diff_retain: Weight
    """Weight of GradDiff's retain NLL; its forget term has weight 1."""
    npo_retain: Weight
    """Weight of NPO's retain NLL."""
    wga_retain: Weight
    """Weight of WGA's retain NLL."""
    ga_steps: Count
    """Steps of plain gradient ascent, which has nothing to hold it back."""
    npo_beta: Positive
    """Inverse temperature of NPO."""
    wga_beta: Weight
    """Exponent of WGA's weights."""
    rmu_layer: Place
    """Block whose output RMU redirects; it trains this block and the two before."""
    rmu_coefficient: Weight
    """Length of RMU's random target."""
    rmu_alpha: Weight
    """Weight of RMU's retain term."""
    rmu_lr: Positive
    """Learning rate of RMU."""
    rmu_whole_blocks: bool
    """Train every weight of the three blocks; off, their MLP output weights only, as published."""


@dataclass(frozen=True, kw_only=True)
class Editing:
    """How activations are edited at inference time."""

    layer: Place
    """Block at which the forget-minus-retain direction is subtracted or projected out."""
    steer_doses: tuple[Weight, ...] = (0.0, 0.5, 1.0, 2.0)
    """Lengths of the subtracted vector, in units of the median residual norm at the block."""
    steer_dose: Weight = 1.0
    """The dose that is diagnosed in full."""
    sae_doses: tuple[Weight, ...] = (0.0, 0.1, 0.3, 1.0, 3.0)
    """Clamp values (negated), in units of the median residual norm at the site; 0 is zero ablation."""
    sae_features: tuple[Count, ...] = (5, 20, 50)
    """How many features are clamped."""
    sae_budget: Weight = 0.1
    """Largest rise of the retain loss (nats a token) that a chosen SAE edit may cost where it is chosen."""
    sae_dose: Weight = 1.0
    """The clamp that is diagnosed in full, with the middle number of features."""
    cru_from: tuple[str, ...] = ("GradDiff",)
    """Trained methods that CRU takes layers from; models that were given are all used."""


@dataclass(frozen=True, kw_only=True)
class Measuring:
    """How much is measured."""

    rows: Count = 50
    """Rows per side that diagnostics see, drawn by the seed (all if there are fewer)."""
    generated: Count = 20
    """Rows per side for which text is generated."""
    new_tokens: Count = 20
    """Tokens generated per row."""
    batch_size: Count = 64
    """Rows a forward pass."""
    layers_replaced: Count = 2
    """How many layers CRU takes from the unlearned model."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything a report depends on besides models and data."""

    training: Training
    editing: Editing
    measuring: Measuring = Measuring()
    threads: Threads | None = None
    """CPU threads; by default torch's own choice, but one for models under 10 M parameters: there a second thread
    brings a quarter on an idle machine and costs more than half on a busy one."""


# Found on the shipped testbed; the report shows what they do there. They are no advice for other models.
TESTBED = Settings(
    training=Training(
        steps=60,
        ga_steps=12,
        gradient_lr=3e-4,
        npo_beta=0.1,
        wga_beta=1.0,
        rmu_layer=3,
        rmu_coefficient=20.0,
        rmu_alpha=5.0,
        rmu_lr=3e-3,
        # With MLP output weights alone no setting tried here reached forget < 0.2 at retain > 0.9.
        rmu_whole_blocks=True,
        grad_diff_retain=3.0,
        npo_retain=10.0,
        wga_retain=1.0,
    ),
    editing=Editing(layer=4),
)
