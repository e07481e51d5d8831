# What no script can show of pods: lives that begin while something is on its way between threads.


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
