"""Judge by a reward run, which is as sure as its calibration says."""

from __future__ import annotations

from alignkit.judges.scores import ScoreJudge
from alignkit.recipe.scorer_forms import Spec
from alignkit.scorers import Resources
from alignkit.scorers.reward_run import open_scorer


def open_judge(spec: Spec, resources: Resources) -> ScoreJudge:
    scorer = open_scorer(spec, resources)
    return ScoreJudge.of(scorer, scorer.temperature)
