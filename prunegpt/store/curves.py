"""Which stored curves are those of a trial."""

from sqlalchemy import ColumnElement, and_, or_

from prunegpt.spec.plan import TrialPlan
from prunegpt.store.schema import attempt, curve

_PERPLEXITY, _EVALUATED, _TASKS = "perplexity", "eval_", ("task:", "tasks:")  # begin names of measured curves


def curves_of(plan: TrialPlan) -> ColumnElement[bool]:
    """Which curves are those of a trial: of its stages, in whichever trial, and where measured as it measures."""
    name, measured_by = curve.c.name, attempt.c.evaluation_key
    evaluated = name.startswith(_EVALUATED, autoescape=True)
    first = or_(name == _PERPLEXITY, and_(evaluated, ~name.contains(":")))
    alike = or_(measured_by == plan.evaluation_key, measured_by.startswith(f"{plan.evaluation_key} "))
    conditions = [or_(~first, alike)]
    for one in plan.also:
        if one.evaluate.tasks is None:
            kinds = or_(evaluated, name.startswith(_PERPLEXITY))
            of_it = and_(kinds, name.endswith(f":{one.name}", autoescape=True))
        else:
            of_it = or_(*map(name.startswith, _TASKS))
        conditions.append(or_(~of_it, measured_by.contains(f" {one.name}={one.key}", autoescape=True)))
    return and_(curve.c.stage_key.in_([stage.key for stage in plan.stages]), *conditions)
