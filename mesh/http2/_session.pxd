"""An HTTP/2 connection as a C struct: for compiled code that has no GIL. mesh.http2.Connection is built on the same.

    session = session_new(&config)
    session_receive(session, bytes, length, now)
    read session.events[0 .. session.event_count); session_events_done(session)
    session_request / session_respond / session_write / session_end / session_reset / session_consume ...
    session_fill(session, limit); send buffer_start(&session.out), session.out.length; session_taken(session, sent)

A session belongs to one thread at a time. Events are plain records; those with bytes point (DATA) into what was given
to session_receive, valid as long as that is, or (HEADERS, PING_ACK, GOAWAY, TERMINATED) by offset into session.arena,
valid until session_events_done. Functions that return int answer 0 or a libnghttp2 error (nghttp2_strerror).
"""

from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t

from mesh.http2._nghttp2 cimport nghttp2_nv, nghttp2_session
from mesh.http2._stream cimport Buffer, Queue, Stream, Table


cdef enum Kind:
    HEADERS = 1      # stream, offset, length, count: fields as fields_append lays them out; flags
    DATA = 2         # stream, data, length
    ENDED = 3        # stream: END_STREAM came
    RESET = 4        # stream, code; flags BY_PEER
    CLOSED = 5       # stream is gone: the last event about it
    WRITABLE = 6     # stream's outbound buffer fell to the low water mark
    PING_ACK = 7     # offset, length (8)
    SETTINGS = 8
    GOAWAY = 9       # stream = last stream id, code, offset, length: debug data
    TERMINATED = 10  # code, offset, length: detail. The connection is over; what is left to send ends with GOAWAY


cdef enum:
    END_STREAM = 1
    INFORMATIONAL = 2
    TRAILERS = 4
    BY_PEER = 8


cdef struct Event:
    Kind kind
    uint8_t flags
    int32_t stream
    uint32_t code
    uint32_t count
    const uint8_t *data
    size_t offset
    size_t length


cdef struct Bucket:
    double tokens
    double burst
    double per_second
    double filled_at


cdef struct Config:
    bint client
    bint enable_push
    uint32_t initial_window_size
    uint32_t max_frame_size
    uint32_t max_header_list_size
    uint32_t max_concurrent_streams
    int32_t connection_window
    size_t max_outbound_buffer
    size_t low_water
    size_t max_data_frame
    size_t turn
    size_t max_control_backlog
    size_t max_settings_entries
    size_t max_continuations
    Bucket resets
    Bucket pings
    Bucket settings
    Bucket empty_frames


cdef struct Session:
    nghttp2_session *ng
    Config config
    Bucket *resets           # of `config`, or one that sessions of the same peer have in common, which outlives them
    Table streams
    Queue ready              # have something to send, in turn
    Queue blocked            # have something to send, and no window for it
    Stream *turn             # the one stream that may frame a DATA frame now
    size_t queued            # payload of all streams, not yet framed
    Buffer out               # framed bytes, not yet taken
    uint64_t framed          # total bytes ever put into out
    uint64_t control_mark    # position in that count: frames before it are in control_old
    size_t control_old
    size_t control_new
    Buffer block             # fields of the header block that is arriving
    size_t block_size        # its size as RFC 9113 6.5.2 counts
    uint32_t block_count
    bint informational
    size_t continuations     # frames of it after the first
    Buffer arena
    Event *events
    size_t event_count
    size_t event_capacity
    double now
    size_t own_goaways       # GOAWAY frames queued by command, not by a violation
    bint goaway_received
    bint terminated
    bint dead                # libnghttp2 failed: nothing more may be asked of it
    uint32_t violation       # error code that a callback decided on; 0: none
    const char *detail       # why, a static text


cdef Session *session_new(const Config *config) noexcept nogil
cdef void session_free(Session *self) noexcept nogil
cdef void session_receive(Session *self, const uint8_t *data, size_t length, double now) noexcept nogil
cdef void session_events_done(Session *self) noexcept nogil
cdef Stream *session_stream(Session *self, int32_t id) noexcept nogil
cdef size_t session_available_streams(Session *self) noexcept nogil
cdef int32_t session_request(Session *self, const nghttp2_nv *fields, size_t count, bint end) noexcept nogil
cdef int session_inform(Session *self, Stream *stream, const nghttp2_nv *fields, size_t count) noexcept nogil
cdef int session_respond(
    Session *self, Stream *stream, const nghttp2_nv *fields, size_t count, bint end) noexcept nogil
cdef int session_write(Session *self, Stream *stream, const uint8_t *data, size_t length) noexcept nogil
cdef int session_trailers(Session *self, Stream *stream, const nghttp2_nv *fields, size_t count) noexcept nogil
cdef void session_end(Session *self, Stream *stream) noexcept nogil
cdef int session_reset(Session *self, Stream *stream, uint32_t code) noexcept nogil
cdef int session_consume(Session *self, Stream *stream, size_t length) noexcept nogil
cdef int session_grow(Session *self, Stream *stream, int32_t window) noexcept nogil
cdef int session_ping(Session *self, const uint8_t *opaque) noexcept nogil
cdef int session_shutdown_notice(Session *self) noexcept nogil
cdef int session_goaway(Session *self, uint32_t code, const uint8_t *debug, size_t length) noexcept nogil
cdef void session_terminate(Session *self, uint32_t code) noexcept nogil
cdef void session_fill(Session *self, size_t limit) noexcept nogil
cdef void session_taken(Session *self, size_t length) noexcept nogil
cdef bint session_wants_read(Session *self) noexcept nogil
cdef bint session_wants_write(Session *self) noexcept nogil
