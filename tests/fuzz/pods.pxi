# What no script can show of pods: lives that begin while something is on its way between threads, sockets made ahead.

from libc.errno cimport EBADF


cdef int stocked(Pod *pod, int family) noexcept nogil:
    """One is taken, and is for nobody; how many are left then."""
    close_(stock_take(pod, family))
    return pod.stocks[family == AF_INET6].count


cdef void live_anew(Pod *pod, uint64_t life, const char *netns) noexcept nogil:
    cdef Common *common = life_new(life, netns)
    cdef int i
    for i in range(LOOPS):
        life_tell(common, i)


def check_stock():
    """Sockets made ahead: as many again each time, a few at most, none of a pod that listens no more or of another life,
    none that nobody takes, none while descriptors are scarce; and all are counted."""
    cdef Loop *home = world.loops[0]
    cdef Pod *pod
    cdef Script first
    cdef uint8_t number = 0
    cdef int fd
    world_begin()
    pod = pod_find(home, POD_NUMBER)
    left = [stocked(pod, AF_INET) for _ in range(15 + 8 + 3)]
    assert left == [0, 1, 0, 3, 2, 1, 0, *2 * [7, 6, 5, 4, 3, 2, 1, 0], 7, 6, 5], left
    assert (stocked(pod, AF_INET6), stocked(pod, AF_INET6)) == (0, 1), "each family has its own"
    assert world.shared.descriptors == 5 + 1
    assert seam_away == 0
    world.now += 0.9
    world_turn()
    assert stocked(pod, AF_INET) == 4, "since the last visit"
    world.now += 0.2
    world_turn()
    assert pod.stocks[0].count == pod.stocks[1].count == world.shared.descriptors == 0, "stale"
    assert [stocked(pod, AF_INET) for _ in range(3)] == [0, 1, 0]
    world.shared.descriptors += world.shared.limits.descriptors // 2
    assert [stocked(pod, AF_INET) for _ in range(20)] == 20 * [0], "descriptors are scarce"
    world.shared.descriptors -= world.shared.limits.descriptors // 2

    assert stocked(pod, AF_INET) == 1
    live_anew(pod, 2, b"/dev/zero")
    assert pod.stocks[0].count == world.shared.descriptors == 0, "another life"
    world_turn()
    assert world.gone == 1, "of the first life"
    world.gone = 0
    assert stocked(pod, AF_INET) == 0 and stocked(pod, AF_INET) == 1
    first.at, first.end = &number, &number + 1
    step_capture(&first)  # the pod stays for its sake
    world_settle()
    pod_order(ORDER_UNLISTEN, 0)
    assert pod == pod_find(home, POD_NUMBER) and pod.stocks[0].count == 0
    assert [stocked(pod, AF_INET) for _ in range(20)] == 20 * [0], "it does not listen"
    assert home.timers[<int>STALE].first == NULL
    close_(pod.netns)  # whatever becomes of it, that is one connection's failure
    assert stock_take(pod, AF_INET) == -1 and errno == EBADF
    pod.netns = pod.common.netns = seam_mark(dup_(<int>home.home))
    world_end()


cdef void transit(Pod *pod) noexcept nogil:
    """A connection and a tunnel, to the other loop."""
    cdef Kind kind
    cdef Address peer
    cdef Tunnel *tunnel
    memset(&kind, 0, sizeof(kind))
    address_parse(&peer, b"10.0.0.6", 40000)
    spread_send(pod, world.loops[1], seam_pair(), True, &peer, &peer, &kind)
    far_add(SIDE_APPLICATION)
    tunnel = pod.tunnels
    tunnel.bound_for = world.loops[1]
    spread_hand_over(tunnel)


def check_transit():
    """What is on its way between threads while the pod begins another life, here first or there first, is counted once,
    and no longer than it is there."""
    cdef Loop *home = world.loops[0]
    cdef Loop *away = world.loops[1]
    cdef Pod *pod
    cdef Pod *there
    cdef Common *after
    cdef Script first
    cdef uint8_t number = 0
    cdef int order
    global seam_plain
    cdef int plain = seam_plain
    seam_plain = 1
    for order in range(3):
        world_begin()
        pod, there = pod_find(home, POD_NUMBER), pod_find(away, POD_NUMBER)
        first.at, first.end = &number, &number + 1
        step_dial(&first)
        world_settle()
        assert pod.common.shares[0].tunnels == 1 and pod.common.holders == LOOPS
        after = life_new(2, b"/dev/zero")
        if order < 2:
            life_tell(after, order)
        transit(pod)
        assert pod.common.shares[1].coming == pod.common.shares[1].coming_tunnels == 1
        assert common_connections(pod.common) == common_tunnels(pod.common) == world.shared.connections == 1
        if order == 2:
            life_tell(after, 0)
            life_tell(after, 1)
        loop_turned(away)
        if order < 2:
            life_tell(after, 1 - order)
        assert pod.common == there.common == after and after.holders == LOOPS, "nothing else holds it"
        for share in (0, 1):
            assert after.shares[share].connections == after.shares[share].tunnels == share
            assert after.shares[share].coming == after.shares[share].coming_tunnels == 0
        while there.first != NULL:
            connection_fail(there.first, RESET_BY_PEER, b"")
        pod_drop_tunnels(there, RESET_BY_PEER, b"")
        assert common_connections(after) == common_tunnels(after) == world.shared.connections == 0
        world_settle()
        assert world.gone == 1, "of the first life"
        world.gone = 0
        world_end()
    seam_plain = plain
