"""What stages make of the same images is made once, and goes with them."""

import gc
from dataclasses import replace
from weakref import ref

import pairs

from DeepRegLib import registry
from DeepRegLib.registration import linear
from DeepRegLib.registration.base import Progress
from DeepRegLib.registration.compose import run_stages, stage_values
from DeepRegLib.registration.remembered import Remembered


def test_it_is_made_again_for_other_images_and_settings():
    made = []
    remembered = Remembered()

    def get(fixed, others, settings):
        return remembered.get(fixed, others, settings, lambda: made.append(settings) or object())

    one, other = (pairs.make_pair() for _ in range(2))
    first = get(one.fixed, (one.moving, None), "a")
    assert get(one.fixed, (one.moving, None), "a") is first and made == ["a"]
    assert get(one.fixed, (other.moving, None), "a") is not first
    assert get(one.fixed, (one.moving, one.moving), "a") is not first
    assert get(one.fixed, (one.moving, None), "b") is not first
    kept = get(other.fixed, (one.moving, None), "b")
    assert get(one.fixed, (one.moving, None), "b") is not kept
    assert made == ["a", "a", "a", "b", "b"]


def test_it_goes_with_the_fixed_image():
    remembered, pair = Remembered(), pairs.make_pair()
    kept = remembered.get(pair.fixed, (pair.moving,), None, set)
    gone = ref(kept), ref(pair.fixed)
    del kept, pair
    gc.collect()
    assert [reference() for reference in gone] == [None, None]


def test_the_affine_stage_takes_the_points_of_the_rigid_one(monkeypatch):
    """And finds what it finds with points of its own."""
    made = []
    whole = linear.LinearEngine._made_levels

    def counted(self, pair, initial):
        made.append(self._settings.kind)
        return whole(self, pair, initial)

    monkeypatch.setattr(linear.LinearEngine, "_made_levels", counted)
    pair, keys = pairs.make_pair(), ("rigid", "affine")
    values = stage_values(keys, "fast", {})
    together = run_stages(pair, keys, values, Progress()).transform
    assert made == ["rigid"]
    first = registry.create("rigid", **values[0]).register(pairs.make_pair(), Progress())
    again = replace(pairs.make_pair(), initial=first.transform, initial_is_given=False)
    alone = registry.create("affine", **values[1]).register(again, Progress()).transform
    assert made == ["rigid", "rigid", "affine"]
    assert (alone.linear == together.linear).all()
