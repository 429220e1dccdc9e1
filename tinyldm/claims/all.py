"""The claims, in order, and in order of importance."""

from tinyldm.claims.claim import Claim
from tinyldm.claims.e01_quality import CLAIM as E1
from tinyldm.claims.e02_sudden import CLAIM as E2
from tinyldm.claims.e03_ablation import CLAIM as E3
from tinyldm.claims.e04_price import CLAIM as E4
from tinyldm.claims.e05_dropping import CLAIM as E5
from tinyldm.claims.e06_cfg_weights import CLAIM as E6
from tinyldm.claims.e07_composition import CLAIM as E7
from tinyldm.claims.e08_transfer import CLAIM as E8
from tinyldm.claims.e09_overhead import CLAIM as E9
from tinyldm.claims.e10_small_data import CLAIM as E10
from tinyldm.claims.e11_without_prompts import CLAIM as E11
from tinyldm.claims.e12_strength import CLAIM as E12
from tinyldm.claims.e13_batches import CLAIM as E13
from tinyldm.claims.e14_latent import CLAIM as E14
from tinyldm.claims.e15_guidance import CLAIM as E15
from tinyldm.claims.e16_samplers import CLAIM as E16
from tinyldm.claims.e17_unit_variance import CLAIM as E17
from tinyldm.claims.e18_compositional import CLAIM as E18
from tinyldm.claims.e19_steering import CLAIM as E19
from tinyldm.claims.e20_forgetting import CLAIM as E20
from tinyldm.claims.e21_imperfect import CLAIM as E21
from tinyldm.claims.e22_conditions import CLAIM as E22

CLAIMS: list[Claim] = [
    *(E1, E2, E3, E4, E5, E6, E7, E8, E9, E10, E11),
    *(E12, E13, E14, E15, E16, E17, E18, E19, E20, E21, E22),
]
IMPORTANCE = (
    *("E2", "E3", "E19", "E1", "E8", "E7", "E10", "E4", "E12", "E21", "E22"),
    *("E5", "E20", "E11", "E6", "E13", "E16", "E15", "E18", "E17", "E9", "E14"),
)
