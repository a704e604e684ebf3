"""The methods, each from one paper and in one file."""

from counterfactory.methods.ace import ACE
from counterfactory.methods.aip import AIP
from counterfactory.methods.aip_random import AIPRandom
from counterfactory.methods.cadex import CADEX
from counterfactory.methods.cecas import CECAS
from counterfactory.methods.counter_vis import CounterVis
from counterfactory.methods.counterfactual_attack import CounterfactualAttack
from counterfactory.methods.counterfactual_attack_gan import CounterfactualAttackGAN
from counterfactory.methods.dime import DiME
from counterfactory.methods.dive import DiVE
from counterfactory.methods.fgsm import FGSM
from counterfactory.methods.pixel_pgd import PixelPGD
from counterfactory.methods.steex import STEEX
from counterfactory.methods.xgems import XGEMs

__all__ = [
    "ACE",
    "AIP",
    "CADEX",
    "CECAS",
    "FGSM",
    "STEEX",
    "AIPRandom",
    "CounterVis",
    "CounterfactualAttack",
    "CounterfactualAttackGAN",
    "DiME",
    "DiVE",
    "PixelPGD",
    "XGEMs",
]
