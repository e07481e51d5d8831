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


cdef double AWAKE = 100e-6


cdef double until_awake(Vigil *vigil, double now) noexcept nogil:
    """Short sleeps from now on, a millisecond apart, until it stays awake: when."""
    while vigil.credit <= 0:
        now += 1e-3
        vigil_slept(vigil, SHORT, now)
    return now


cdef int until_asleep(Vigil *vigil, double seconds, bint found, double now) noexcept nogil:
    """How often it looks before it gives up."""
    cdef int looks = 0
    while vigil.credit > 0 and looks < 1000:
        vigil_looked(vigil, seconds, found, now)
        looks += 1
    return looks


def check_vigil():
    """A thread stays awake after short sleeps, while that helps; each try that came to nothing puts the next one off."""
    cdef Vigil vigil
    cdef double now = 1000
    cdef int i
    memset(&vigil, 0, sizeof(vigil))
    vigil.most = AWAKE
    for i in range(100):
        vigil_slept(&vigil, SHORT if i % SHORT_SLEEPS else 2 * SHORT, now)
    assert vigil.credit == 0, "not so many in a row"
    vigil_slept(&vigil, 2 * SHORT, now)
    assert abs(until_awake(&vigil, now) - now - SHORT_SLEEPS * 1e-3) < 1e-6
    for i in range(1000):
        vigil_looked(&vigil, PROMPT if i % 10 else AWAKE, i % 10 != 0, now)
    assert vigil.credit > 0, "it pays"
    for i in range(20):
        assert until_asleep(&vigil, 3 * AWAKE, i % 2, now) == 1, "others have had the processor"
        assert until_awake(&vigil, now) - now >= min(RETRY * 2**i, RETRY_MOST)
        now = until_awake(&vigil, now)
    assert until_asleep(&vigil, AWAKE, False, now) == TRY / VAIN
    now = until_awake(&vigil, now)
    for i in range(CREDIT - TRY):
        vigil_looked(&vigil, PROMPT, True, now)
    assert until_asleep(&vigil, AWAKE, True, now) == CREDIT, "late"
    assert abs(vigil.not_before - now - RETRY) < 1e-6, "it had paid"
    vigil.most = 0
    for i in range(100):
        vigil_slept(&vigil, SHORT, now + 1)
    assert vigil.credit <= 0, "it shall always sleep"


def check_waiting():
    """One that stays awake in vain sleeps then, and both end: by the clock, which a look moves on, and by patience."""
    cdef Vigil vigil
    cdef epoll_event events[EVENTS]
    cdef double now = 0
    cdef int epoll = seam_mark(epoll_create1(EPOLL_CLOEXEC))
    memset(&vigil, 0, sizeof(vigil))
    vigil.most = AWAKE
    vigil.credit = CREDIT
    assert vigil_wait(&vigil, epoll, events, 0, &now) == 0 and vigil.credit == CREDIT, "it did not wait"
    assert vigil_wait(&vigil, epoll, events, 1, &now) == 0
    assert vigil.credit == CREDIT - VAIN and vigil.awake >= AWAKE and vigil.sleeps == 0
    vigil.credit = 0
    assert vigil_wait(&vigil, epoll, events, 1, &now) == 0 and vigil.sleeps == 1
    close_(epoll)


cdef Standing *standing_made(Loop *loop, const char *kind, uint64_t first) noexcept nogil:
    """Of two alternatives."""
    cdef Standing *self = <Standing *>make(sizeof(Standing))
    buffer_append(&self.kind, kind, strlen(kind))
    self.holders, self.generation, self.count = 1, loop.shared.generation, 2
    self.alternatives = <Alternative *>make(2 * sizeof(Alternative))
    self.alternatives[0].number, self.alternatives[1].number = first, first + 1
    return self


cdef Standing *standing_known(Pod *pod, const char *text) noexcept nogil:
    cdef Kind kind
    kind.length = strlen(text)
    memcpy(kind.data, text, kind.length)
    return standing_find(pod, &kind)


cdef list spent_read(Loop *loop):
    """First alternatives of those orders that are spent."""
    cdef Cursor rest, record
    cdef list numbers = []
    rest.at = buffer_start(&loop.facts.records)
    rest.end = rest.at + loop.facts.records.length
    while cursor_record(&rest, &record):
        assert cursor_number(&record) == FACT_SPENT and cursor_number(&record) == 7
        numbers.append(cursor_number(&record))
    buffer_drop(&loop.facts.records, loop.facts.records.length)
    return numbers


def check_standing():
    """Many kinds are told apart; one that is recalled is spent once, when the last one under it was told of; those of
    another generation are not found, whatever the thread has done since."""
    cdef Loop *loop = <Loop *>make(sizeof(Loop))
    cdef Pod *pod = <Pod *>make(sizeof(Pod))
    cdef Standing *held
    loop.shared = <Shared *>make(sizeof(Shared))
    loop.allowances.seed = 12
    pod.loop, pod.number = loop, 7
    kinds = [b"kind %d" % i for i in range(3000)]
    assert standing_known(pod, kinds[0]) == NULL
    for i, kind in enumerate(kinds):
        standing_put(pod, standing_made(loop, kind, 1 + 2 * i))
    for i, kind in enumerate(kinds):
        assert standing_known(pod, kind).alternatives[0].number == <uint64_t>(1 + 2 * i)
    assert standing_known(pod, b"kind") == NULL and standing_known(pod, b"kind 30000") == NULL
    held = standing_known(pod, kinds[5])
    held.holders += 1  # somebody has begun
    for kind in (kinds[5], kinds[6], b"kind"):
        standing_recall(pod, kind, len(kind))
        assert standing_known(pod, kind) == NULL
    assert spent_read(loop) == [13]
    standing_put(pod, standing_made(loop, kinds[5], 9001))
    assert standing_known(pod, kinds[5]).alternatives[0].number == 9001
    standing_release(pod, held)
    assert spent_read(loop) == [11]
    standing_off(pod, kinds[8], len(kinds[8]))
    assert standing_known(pod, kinds[8]) == NULL and standing_known(pod, kinds[9]) != NULL
    loop.shared.generation += 1
    assert not any(standing_known(pod, kind) != NULL for kind in kinds), "they have lapsed"
    standing_put(pod, standing_made(loop, kinds[3], 9003))
    assert standing_known(pod, kinds[3]).alternatives[0].number == 9003
    held = standing_known(pod, kinds[3])
    held.holders += 1
    standing_lapse(pod)
    assert standing_known(pod, kinds[3]) == NULL
    standing_release(pod, held)
    assert spent_read(loop) == [], "of those that lapse nothing is said"
    buffer_free(&loop.facts.records)
    free(pod.standing)
    free(pod)
    free(loop.shared)
    free(loop)


cdef extern from "openssl/evp.h" nogil:
    ctypedef struct EVP_CIPHER:
        pass
    ctypedef struct EVP_CIPHER_CTX:
        pass
    int EVP_CTRL_AEAD_GET_TAG, EVP_CTRL_AEAD_SET_TAG
    EVP_CIPHER *EVP_CIPHER_fetch(OSSL_LIB_CTX *, const char *, const char *)
    void EVP_CIPHER_free(EVP_CIPHER *)
    EVP_CIPHER_CTX *EVP_CIPHER_CTX_new()
    void EVP_CIPHER_CTX_free(EVP_CIPHER_CTX *)
    int EVP_CipherInit_ex(EVP_CIPHER_CTX *, const EVP_CIPHER *, void *, const uint8_t *, const uint8_t *, int)
    int EVP_CipherUpdate(EVP_CIPHER_CTX *, uint8_t *, int *, const uint8_t *, int)
    int EVP_CipherFinal_ex(EVP_CIPHER_CTX *, uint8_t *, int *)
    int EVP_CIPHER_CTX_ctrl(EVP_CIPHER_CTX *, int, int, void *)


cdef bint crypt(
    EVP_CIPHER_CTX *context, bint encrypts, const uint8_t *nonce, bytes aad, uint8_t *data, int length, int piece, uint8_t *tag
) except *:
    """In place, so many bytes at a time; False: the tag is wrong, or the nonce was used."""
    cdef int done, at = 0
    if EVP_CipherInit_ex(context, NULL, NULL, NULL, nonce, encrypts) != 1:
        return False
    assert encrypts or EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_AEAD_SET_TAG, TAG, tag) == 1
    assert EVP_CipherUpdate(context, NULL, &done, <const uint8_t *>PyBytes_AS_STRING(aad), len(aad)) == 1 and done == len(aad)
    while at < length:
        if EVP_CipherUpdate(context, data + at, &done, data + at, min(piece, length - at)) != 1:
            return False
        at += done
    if EVP_CipherFinal_ex(context, data + at, &done) != 1:
        return False
    assert done == 0
    return not encrypts or EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_AEAD_GET_TAG, TAG, tag) == 1


cdef EVP_CIPHER_CTX *crypt_context(OSSL_LIB_CTX *library, const char *name, const char *whose, const uint8_t *key) except NULL:
    cdef EVP_CIPHER *cipher = EVP_CIPHER_fetch(library, name, whose)
    cdef EVP_CIPHER_CTX *context = EVP_CIPHER_CTX_new()
    assert cipher != NULL and context != NULL
    assert EVP_CipherInit_ex(context, cipher, NULL, key, NULL, -1) == 1
    EVP_CIPHER_free(cipher)
    return context


def check_aes():
    """What is sealed by the tunnels' AES-GCM is what OpenSSL's own makes of it, whatever the size and the pieces; each opens
    what the other has sealed, and neither what was touched."""
    cdef EVP_CIPHER_CTX *ours
    cdef EVP_CIPHER_CTX *openssl
    cdef uint8_t tags[2][TAG]
    cdef uint8_t mine[20000]
    cdef uint8_t theirs[20000]
    cdef int size, done
    assert wire_prepare() == 0
    for name in (b"AES-128-GCM", b"AES-256-GCM"):
        key = bytes(range(100, 132))
        ours = crypt_context(tls_library, name, tls_wanted, <const uint8_t *>PyBytes_AS_STRING(key))
        openssl = crypt_context(NULL, name, b"provider=default", <const uint8_t *>PyBytes_AS_STRING(key))
        for i, size in enumerate([*range(300), 768, 1350, 4096, 16383, 16384, 16385, 19999]):
            plain = bytes((i * 7 + j * 31) % 251 for j in range(size))
            nonce = bytes([i % 256, i // 256] * 6)
            aad = plain[:i % (MOST_AAD + 1)]
            at = <const uint8_t *>PyBytes_AS_STRING(nonce)
            for piece in (20000, 1 + i % 97) if size < 5000 else (20000, 4001):
                memcpy(mine, PyBytes_AS_STRING(plain), size)
                memcpy(theirs, PyBytes_AS_STRING(plain), size)
                assert crypt(ours, True, at, aad, mine, size, piece, tags[0])
                assert crypt(openssl, True, at, aad, theirs, size, 20000, tags[1])
                assert memcmp(mine, theirs, size) == 0 and memcmp(tags[0], tags[1], TAG) == 0, (name, size, piece)
                assert crypt(openssl, False, at, aad, mine, size, 20000, tags[0]) and mine[:size] == plain
                assert crypt(ours, False, at, aad, theirs, size, piece, tags[1]) and theirs[:size] == plain
            assert crypt(ours, True, at, aad, mine, size, 20000, tags[0])
            tags[0][i % TAG] ^= 1
            assert not crypt(ours, False, at, aad, mine, size, 20000, tags[0]), "another tag"
            if size:
                assert crypt(ours, True, at, aad, mine, size, 20000, tags[0])
                mine[i % size] ^= 1
                assert not crypt(ours, False, at, aad, mine, size, 20000, tags[0]), "other bytes"
        assert EVP_CipherInit_ex(ours, NULL, NULL, NULL, NULL, 1) == 1
        assert EVP_CipherUpdate(ours, mine, &done, mine, 16) != 1 or tls_library == NULL, "a nonce serves once"
        EVP_CIPHER_CTX_free(ours)
        EVP_CIPHER_CTX_free(openssl)
