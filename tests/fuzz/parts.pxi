# What no script can show of the pump's smallest parts.


cdef struct Pair:
    Tasks queue
    Task first
    Task second
    int runs


cdef void pair_first(void *of) noexcept nogil:
    """Ends the other, which is the last of this pass, and has more to do itself."""
    cdef Pair *self = <Pair *>of
    self.runs += 1
    task_cancel(&self.second)
    if self.runs < 100:
        task_queue(&self.queue, &self.first)


cdef void pair_second(void *of) noexcept nogil:
    pass


def check_tasks():
    """A pass of tasks is over when those that waited have had their turn."""
    cdef Pair pair
    memset(&pair, 0, sizeof(pair))
    pair.first.run, pair.first.owner = pair_first, &pair
    pair.second.run, pair.second.owner = pair_second, &pair
    task_queue(&pair.queue, &pair.first)
    task_queue(&pair.queue, &pair.second)
    tasks_run(&pair.queue, 0, 1e9)
    assert pair.runs == 1, pair.runs
    assert pair.queue.first == &pair.first and pair.queue.last == &pair.first


def check_turns():
    """What a pod has left of its quantum may be less than a time can be told from the next: it is a turn all the same."""
    cdef Loop *loop = <Loop *>make(sizeof(Loop))
    cdef Turn turn
    cdef Pair pair
    memset(&pair, 0, sizeof(pair))
    memset(&turn, 0, sizeof(turn))
    pair.second.run, pair.second.owner = pair_second, &pair
    turn_task(loop, &turn, &pair.second)
    turn.credit = 1e-18
    turn_run(loop, &turn, 1e5, 1e5 + 1)
    assert turn.tasks.first == NULL and not turns_waiting(loop)
    # A thread that was stopped for a year in the middle of a task: the pod does not pay for it with the rest of its life.
    turn_task(loop, &turn, &pair.first)
    pair.runs = 0
    pair.first.run, pair.first.owner = pair_first, &pair
    began = clock_now()
    turn_run(loop, &turn, began - 3e7, began + 1)
    assert -0.02 < turn.credit < 0, turn.credit
    turn_leave(&turn)
    free(loop)
