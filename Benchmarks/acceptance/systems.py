"""All learned systems: what each has to show, and the measures that it takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from . import (
    checks_birnet,
    checks_coop_ae,
    checks_cvae,
    checks_deep_metric,
    checks_deep_similarity,
    checks_deepatlas,
    checks_error_map,
    checks_flownet_ssm,
    checks_istn,
    checks_label_reg,
    checks_quicksilver,
    checks_raw_domain,
    checks_rl_deform,
    checks_rl_rigid,
    checks_ssemnet,
    measure,
    plans,
)
from .figures import Figures
from .measure import Measure
from .plans import Check, Plan


def _label_reg() -> Plan:
    """The plan with the pairs of two contrasts that each variant learns from."""
    plan, wraps = checks_label_reg.PLAN, checks_label_reg.WRAPS
    return replace(plan, variants={n: replace(v, wrap=wraps[n]) for n, v in plan.variants.items()})


def _deepatlas() -> Plan:
    """The plan with as many label maps as each variant learns from."""
    own = checks_deepatlas
    variants = {
        name: replace(variant, changes=own.AUGMENTATION, labeled=own.LABELED.get(name))
        for name, variant in own.VARIANTS.items()
    }
    return Plan(variants, own.checks, own.STEPS, ("segmentation",))


PLANS: dict[str, Plan] = {
    **plans.PLANS,
    "quicksilver": checks_quicksilver.PLAN,
    "flownet_ssm": checks_flownet_ssm.PLAN,
    "birnet": checks_birnet.PLAN,
    "label_reg": _label_reg(),
    "istn": checks_istn.PLAN,
    "deepatlas": _deepatlas(),
    "error_map": checks_error_map.PLAN,
    "coop_ae": checks_coop_ae.PLAN,
    "cvae": checks_cvae.PLAN,
    "deep_metric": checks_deep_metric.PLAN,
    "deep_similarity": checks_deep_similarity.PLAN,
    "rl_deform": checks_rl_deform.PLAN,
    "rl_rigid": checks_rl_rigid.PLAN,
    "ssemnet": checks_ssemnet.PLAN,
}
#: Systems that are not trained: each measures its figures by kind of case, and judges them.
UNTRAINED: dict[str, Callable[[], tuple[dict[str, list[Figures]], list[Check]]]] = {
    "raw_domain": checks_raw_domain.run,
}
MEASURES: dict[str, Measure] = {
    **measure.EXTRA,
    **checks_quicksilver.EXTRA,
    **checks_flownet_ssm.EXTRA,
    **checks_birnet.EXTRA,
    **checks_label_reg.EXTRA,
    **checks_istn.EXTRA,
    "segmentation": checks_deepatlas.segmentation,
    **checks_error_map.EXTRA,
    **checks_coop_ae.EXTRA,
    **checks_cvae.EXTRA,
    **checks_deep_metric.EXTRA,
    **checks_deep_similarity.EXTRA,
    **checks_rl_deform.EXTRA,
    **checks_rl_rigid.EXTRA,
    **checks_ssemnet.EXTRA,
}
