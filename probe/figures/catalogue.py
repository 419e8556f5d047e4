"""Every figure and table of the set, each with its entry beside it in its own file."""

from probe.figures.calibrated import ALPHA, CALIBRATION, CHOICE, CHOICE_CALIBRATED
from probe.figures.continual import CONTINUAL
from probe.figures.dashboard import DASHBOARD
from probe.figures.doses import DOSE_RESPONSE
from probe.figures.dynamics import G_EFFECT_PAIRS, G_EFFECT_STEPS
from probe.figures.effect_maps import G_EFFECT_MAP, G_EFFECT_THIRDS
from probe.figures.entry import Entry, TableEntry
from probe.figures.layers import G_EFFECT
from probe.figures.lens import LOGIT_LENS
from probe.figures.logits import LOGIT_COLLAPSE
from probe.figures.maps import GROWING, PARTS, SPANS, U_SHAPE_OF_MAPS
from probe.figures.paper_tables import MAIN, PAPER, SIZES
from probe.figures.quality import QUALITY, U_SHAPE_QUALITY
from probe.figures.quantisation import QUANTISATION
from probe.figures.relearning import RELEARNING
from probe.figures.reliability import RELIABILITY
from probe.figures.replaced import REPLACED_TEXTS
from probe.figures.robustness import ATTACK_CORRELATION, ROBUSTNESS
from probe.figures.sae import SAE_FEATURES
from probe.figures.sae_doses import SAE_CHOICES, SAE_LAYERS, SAE_RESPONSES
from probe.figures.separability import SEPARABILITY
from probe.figures.squeezing import SQUEEZING
from probe.figures.states import HIDDEN_STATES
from probe.figures.tradeoff import TRADEOFF
from probe.figures.weights import NPO_WEIGHTS

# In the order of the paper's set; figures beside the set come last.
FIGURES: tuple[Entry, ...] = (
    G_EFFECT_STEPS,
    G_EFFECT,
    G_EFFECT_MAP,
    G_EFFECT_THIRDS,
    NPO_WEIGHTS,
    G_EFFECT_PAIRS,
    U_SHAPE_OF_MAPS,
    U_SHAPE_QUALITY,
    TRADEOFF,
    QUALITY,
    CALIBRATION,
    ALPHA,
    SQUEEZING,
    LOGIT_COLLAPSE,
    SEPARABILITY,
    HIDDEN_STATES,
    RELEARNING,
    QUANTISATION,
    ROBUSTNESS,
    ATTACK_CORRELATION,
    CHOICE,
    CHOICE_CALIBRATED,
    SAE_FEATURES,
    LOGIT_LENS,
    RELIABILITY,
    CONTINUAL,
    DASHBOARD,
    DOSE_RESPONSE,
    SAE_CHOICES,
    SAE_RESPONSES,
    SAE_LAYERS,
    SPANS,
    PARTS,
    GROWING,
)
TABLES: tuple[TableEntry, ...] = (PAPER, SIZES, REPLACED_TEXTS, MAIN)
EVERY: tuple[Entry | TableEntry, ...] = (*FIGURES, *TABLES)
NAMES = tuple(entry.name for entry in EVERY)
