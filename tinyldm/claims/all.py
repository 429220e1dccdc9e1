"""The claims, in order, and in order of importance."""

from tinyldm.claims.claim import Claim
from tinyldm.claims.e02_sudden import CLAIM as E2

CLAIMS: list[Claim] = [E2]
IMPORTANCE = ("E2",)
