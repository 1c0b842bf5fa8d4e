from trimtab.agents.contest import Contender, play, play_all
from trimtab.agents.heuristics import heuristic
from trimtab.agents.policy import ConstantPolicy
from trimtab.env.knobs import ANALYTIC_SCORER_KNOBS
from trimtab.env.lookahead.settings import LookaheadSettings
from trimtab.env.sites import Split, sample_site, site_episode

SCORER = Contender(name="scorer", knobs=ANALYTIC_SCORER_KNOBS)


def episodes(number=2, is_changing=False):
    site = sample_site(Split.TRAIN, 0, None, is_changing=is_changing)
    return [site_episode(site, i, None, span_s=20.0) for i in range(number)]


def test_contenders_meet_the_same_arrivals_and_are_paired():
    ahead = Contender(
        name="ahead", knobs=ANALYTIC_SCORER_KNOBS, lookahead=LookaheadSettings(num_samples=1)
    )
    turns = Contender(name="turns", knobs=heuristic("round-robin").knobs)
    seen = []
    runs = play_all(episodes(), [SCORER, ahead, turns], num_workers=2, on_run=seen.append)
    assert list(runs) == ["scorer", "ahead", "turns"]
    assert len(seen) == 6
    for rows in zip(*runs.values(), strict=True):
        assert len({(run.site, run.number, run.kpis.num_requests) for run in rows}) == 1
    assert runs["scorer"][0] == play(episodes()[0], SCORER)


def test_a_policy_that_stays_equals_constant_knobs():
    still = Contender(
        name="scorer",
        knobs=heuristic("round-robin").knobs,
        make_policy=lambda: ConstantPolicy(
            name="still", knobs=ANALYTIC_SCORER_KNOBS, is_constant=False
        ),
    )
    episode = episodes(1, is_changing=True)[0]
    moved, constant = play(episode, still), play(episode, SCORER)
    assert moved.goodput_by_regime == constant.goodput_by_regime
    assert moved.goodput_frac == constant.goodput_frac > 0.0
