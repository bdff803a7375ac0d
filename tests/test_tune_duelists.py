"""Who meets in a duel, and on what terms: as many rates, the same seeds, the same first weights."""

from typing import Any

import pytest
import torch

from data.errors import UserError
from models.training import TrainConfig
from tests.duels import drawn
from tune.budget import Budget
from tune.duel.duelists import CONTESTANT, Rates, Seeds, parse_duel
from tune.settings import SearchConfig
from tune.space import AT_BOUND, NUMBER
from tune.trial import Job

ADAM, SGD, DECAYED = parse_duel("adam,sgd")


def test_sgd_meets_twice_with_and_without_time_decay() -> None:
    assert parse_duel("") == ()
    assert [(c.name, c.optimizer, c.schedule) for c in parse_duel(" AdamW, sgd")] == [
        ("adamw", "adamw", "constant"),
        ("sgd", "sgd", "constant"),
        ("sgd-keras-time", "sgd", "keras-time"),
    ]


@pytest.mark.parametrize("text", ["adam", "sgd", "adam,adam", "adam,lion", "adam,", ","])
def test_other_duels_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="duel must name two or more of adam, adamw, sgd, each once, got"):
        SearchConfig(duel=text)


@pytest.mark.parametrize(
    ("settings", "flags"),
    [
        ({"also": ("optimizer",), "widen": True}, "--also, --widen"),
        ({"objective": "accuracy,size"}, "--objective"),
        ({"space": "story"}, "--space"),
        ({"warm_start": "runs/a"}, "--warm-start"),
        ({"train": TrainConfig(optimizer="sgd", learning_rate=0.01)}, "--optimizer, --learning-rate"),
        ({"train": TrainConfig(schedule="keras-time")}, "--schedule"),
    ],
)
def test_what_makes_no_sense_beside_a_duel_is_refused(settings: dict[str, Any], flags: str) -> None:
    with pytest.raises(ValueError, match=f"leave out {flags}, or leave out --duel"):
        SearchConfig(duel="adam,sgd", **settings)


def test_a_resumed_duel_takes_a_new_budget_and_no_pick() -> None:
    begun = SearchConfig(duel="adam,sgd")
    longer = SearchConfig(out="/x", resume=True, budget=Budget(budget_minutes=3))
    assert begun.resumed_by(longer).budget.budget_minutes == 3
    with pytest.raises(UserError, match="leave out --pick"):
        begun.resumed_by(SearchConfig(out="/x", resume=True, pick="accuracy>0.5"))


# On equal terms


def test_all_try_as_many_rates_at_the_same_places_of_bounds_of_one_width() -> None:
    contestants = (*parse_duel("adam,adamw"), SGD, DECAYED)
    assert {round(c.high / c.low) for c in contestants} == {10_000}
    places = [[round(c.dimension.position(rate), 6) for rate in c.rates(8)] for c in contestants]
    assert places == [[0.0625, 0.1875, 0.3125, 0.4375, 0.5625, 0.6875, 0.8125, 0.9375]] * 4
    assert min(places[0]) > AT_BOUND


def test_the_first_phase_gives_each_contestant_every_third_trial_with_one_seed() -> None:
    space = Rates.of((ADAM, SGD, DECAYED), seed=7)
    values = drawn(space, space.points(10), 30)  # two trials more each than there are points
    assert [v[NUMBER] for v in values] == list(range(30))
    assert {v["seed"] for v in values} == {7}
    for place, contestant in enumerate((ADAM, SGD, DECAYED)):
        mine = values[place::3]
        assert {(v[CONTESTANT], v["optimizer"], v["schedule"]) for v in mine} == {
            (contestant.name, contestant.optimizer, contestant.schedule)
        }
        rates = [v["learning_rate"] for v in mine]
        assert rates[:8] == pytest.approx(contestant.rates(8))
        assert len(set(rates)) == 10
        assert all(contestant.low <= rate <= contestant.high for rate in rates)


def test_the_second_phase_gives_each_contestant_every_seed_with_its_own_rate() -> None:
    space = Seeds.of({ADAM: 0.002, DECAYED: 0.5}, (1, 2, 3, 4, 5))
    values = drawn(space, space.points(), 10)
    assert [(v[CONTESTANT], v["seed"], v["learning_rate"]) for v in values] == [
        (name, seed, rate) for seed in range(1, 6) for name, rate in (("adam", 0.002), ("sgd-keras-time", 0.5))
    ]


def test_contestants_start_from_the_same_weights_to_the_bit(job: Job) -> None:
    def first_weights(contestant: Any, seed: int) -> dict[str, torch.Tensor]:
        run = job.with_values(contestant.values(contestant.rates(1)[0], seed)).start()
        return {name: value.clone() for name, value in run._learner.trained.state_dict().items()}

    for seed in (1, 2):
        adam = first_weights(ADAM, seed)
        for other in parse_duel("adamw,sgd"):
            theirs = first_weights(other, seed)
            assert adam.keys() == theirs.keys()
            assert all(torch.equal(adam[name], theirs[name]) for name in adam)
    assert not all(torch.equal(adam[name], value) for name, value in first_weights(ADAM, 1).items())
