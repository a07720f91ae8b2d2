"""In one process the class in a chain never waits for what can be done beside it, and nothing else is different."""

import threading

import pytest

from pipelines.engine import open_job
from pipelines.format.errors import InputError, Stopped
from pipelines.stage import Step, together


class Add:
    def __init__(self, n):
        self.n, self.thread = n, threading.get_ident()

    def __call__(self, item):
        assert threading.get_ident() == self.thread, "a network is used by the thread that loaded it"
        return item + self.n


def double(item, fail_at=None):
    if item == fail_at:
        raise InputError("no")
    return item * 2


def test_results_come_in_order_and_are_those_of_the_steps_one_after_another():
    chain = [Step(double), Step(Add, {"n": 1}), Step(double), Step(Add, {"n": 3}), Step(double)]
    with open_job("local") as job:
        assert list(job.map(chain, list(range(20)))) == [((2 * i + 1) * 2 + 3) * 2 for i in range(20)]
        assert list(job.map([Step(double), together(chain)], [5])) == [((20 + 1) * 2 + 3) * 2]
        assert list(job.map([Step(double)] * 2, [1, 2])) == [4, 8] and list(job.map([Step(Add, {"n": 1})], [1, 2])) == [2, 3]


def test_the_next_item_is_loaded_and_the_last_one_written_while_one_is_worked_on():
    loaded, written = {i: threading.Event() for i in range(4)}, {i: threading.Event() for i in range(4)}

    def load(i):
        loaded[i].set()
        return i

    class Work:
        def __call__(self, i):
            assert i == 3 or loaded[i + 1].wait(10), "loaded ahead"
            assert i == 0 or written[i - 1].wait(10), "written beside"
            assert i > 1 or not loaded[i + 2].is_set(), "and not everything at once"
            return i

    with open_job("local") as job:
        assert list(job.map([Step(load), Step(Work), Step(lambda i: written[i].set())], list(range(4)))) == [None] * 4


def test_a_worker_may_take_several_items_at_once_and_their_order_stays():
    meet = threading.Barrier(3, timeout=10)

    class Slow:
        def __call__(self, i):
            meet.wait()  # three are here together
            return i

    with open_job("local") as job:
        assert list(job.map([Step(double), Step(Slow, at_once=3), Step(double)], list(range(12)))) == [4 * i for i in range(12)]


@pytest.mark.parametrize("step", [0, 2])
def test_an_error_of_a_step_reaches_the_person_and_what_came_before_it_is_there(step):
    chain = [Step(double), Step(Add, {"n": 0}), Step(double)]
    chain[step] = Step(double, {"fail_at": 3 if step == 0 else 6})
    done = []
    with open_job("local") as job, pytest.raises(InputError):
        done.extend(job.map(chain, [1, 2, 3, 4]))
    with open_job("local") as job, pytest.raises(ZeroDivisionError):
        list(job.map([Step(double), Step(Add, {"n": 0}), Step(lambda x: 1 // (x - 4))], [1, 2, 3]))


def test_a_stop_ends_the_threads_and_drops_what_was_in_hand():
    before = set(threading.enumerate())
    with open_job("local") as job:
        with pytest.raises(Stopped):
            for value in job.map([Step(double), Step(Add, {"n": 0}), Step(double)], list(range(100))):
                assert value == 0
                job.stop.set()
        assert set(threading.enumerate()) <= before
