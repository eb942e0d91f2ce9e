"""What is set aside from the garbage collector, and when it is given back."""

import gc
import weakref

import pytest

from pytest_infer.measure.heap import Heap


class Cycle:
    def __init__(self):
        self.itself = self


@pytest.fixture
def heap():
    made = Heap()
    yield made
    made.release()
    assert gc.get_freeze_count() == 0


def measure(heap):
    heap.between_tests()
    with heap.still():
        return gc.get_freeze_count()


def test_rounds_find_nothing_of_what_was_there_before(heap):
    before = len(gc.get_objects())
    # Of the first test alone, in which most is loaded; then what is there to stay.
    assert measure(heap) > 0.8 * before
    assert gc.get_freeze_count() == 0
    assert measure(heap) > 0.8 * before
    assert gc.get_freeze_count() > 0.8 * before


def test_full_collections_are_those_of_the_first_two_tests(heap):
    found = []

    def collecting(phase, info):
        if phase == "start":
            # Those that have all to look at: nothing is set aside.
            found.append(gc.get_freeze_count() == 0)

    gc.callbacks.append(collecting)
    try:
        for _ in range(5):
            measure(heap)
    finally:
        gc.callbacks.remove(collecting)
    assert found.count(True) == 2


def test_what_belongs_to_a_test_is_found_when_it_is_garbage(heap):
    for _ in range(4):
        heap.between_tests()
        own = Cycle()
        alive = weakref.ref(own)
        with heap.still():
            pass
        del own
        gc.collect()
        assert alive() is None


def test_what_outlived_a_test_is_found_once_it_is_given_back(heap):
    model = Cycle()
    alive = weakref.ref(model)
    measure(heap)
    measure(heap)
    del model
    gc.collect()
    assert alive() is not None, "it is set aside"
    heap.release()
    gc.collect()
    assert alive() is None


def test_after_a_release_all_begins_anew(heap):
    measure(heap)
    measure(heap)
    heap.release()
    heap.between_tests()
    assert gc.get_freeze_count() == 0


def test_what_is_alive_at_the_end_is_looked_at_no_more(heap):
    own = Cycle()
    alive = weakref.ref(own)
    measure(heap)
    measure(heap)
    del own
    heap.leave()
    assert alive() is None, "garbage is found before"
    assert gc.get_freeze_count() > 10 * len(gc.get_objects())


def test_what_garbage_leaves_behind_is_found_too(heap):
    class Owner(Cycle):
        def __del__(self):
            kept = self.owned = Cycle()
            left.append(weakref.ref(kept))

    left = []
    Owner()
    heap.leave()
    assert [ref() for ref in left] == [None]


def test_all_is_given_back_after_what_was_left(heap):
    heap.leave()
    heap.release()
    assert gc.get_freeze_count() == 0
