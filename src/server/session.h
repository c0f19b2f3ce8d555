/* One generation, from its request to the last byte of its answer.
 *
 * It is shared by two owners and freed by the last: the engine thread, which puts records into its
 * ring, and the connection, on whose HTTP thread the records become a reply or event frames. The
 * fields are grouped by who may touch them. A connection with nothing to send is parked: the HTTP
 * library forgets it until the watch thread (hub.h) sees news, a hang-up or a quiet stream.
 */
#ifndef SERVER_SESSION_H
#define SERVER_SESSION_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/buf.h"
#include "server/openai.h"
#include "server/render.h"
#include "server/ring.h"

struct srv_hub;

enum srv_record_kind {
    SRV_RECORD_ACCEPTED,        /* the engine took the request in */
    SRV_RECORD_PIECE,           /* a token and the text that became whole with it */
    SRV_RECORD_END,             /* finish, code; the text is the error's sentence */
};

struct srv_session {
    unsigned magic;
    atomic_int references;
    uint64_t number;
    struct srv_hub *hub;
    /* Set before submission, then read only. */
    struct srv_ask ask;
    const struct srv_model *model;
    char id[40];
    int64_t created;
    uint64_t begun_ns;
    /* Between the engine thread and the connection. */
    struct srv_ring ring;
    atomic_bool cancelled;      /* nobody listens any more */
    atomic_bool ended;          /* the END record is in the ring */
    /* Engine thread only. */
    struct srv_session *next;   /* in the queue of those the engine has no room for */
    uint64_t request;
    bool overrun;               /* the ring was full: the client is too slow */
    int end_finish;             /* of the END record */
    /* Under the hub's lock. */
    struct srv_session *hub_next, *hub_previous;
    bool joined;
    bool parked;
    bool hung_up;
    bool streams;               /* the stream has begun */
    bool keep_alive_due;        /* never before it has */
    uint64_t quiet_since_ns;
    int fd;
    void (*unpark)(void *context);
    void *context;
    /* The connection's side: its HTTP thread only. */
    struct base_buf scratch;
    struct base_buf text;       /* the whole answer (no stream) */
    struct base_buf out;        /* frames to be sent (stream) */
    size_t out_at;
    struct srv_logprob *logprobs;
    size_t logprob_count, logprob_capacity;
    uint64_t tokens;
    uint64_t cached_tokens;     /* of the prompt: not computed, an earlier request had them */
    uint64_t text_offset;       /* characters of the tokens so far; with logprobs only */
    uint64_t first_token_ns, last_token_ns;
    bool accepted;
    bool finished;              /* END was taken */
    int finish;
    struct srv_fault fault;     /* status 0 unless it failed */
};

/* What the connection should do now. */
enum srv_session_state {
    SRV_SESSION_WAIT,           /* nothing yet: park */
    SRV_SESSION_REPLY,          /* one reply: srv_session_reply */
    SRV_SESSION_STREAM,         /* begin a stream: srv_session_read until it says the end */
    SRV_SESSION_ABORT,          /* close the connection */
};

/* Takes the ask over (it is emptied). NULL when memory is short. Two references are held: one for
 * the engine thread, one for the connection. */
struct srv_session *srv_session_create(struct srv_hub *hub, struct srv_ask *ask,
                                       const struct srv_model *model, size_t answer_buffer);
void srv_session_unref(struct srv_session *session);

/* Engine thread: nothing here blocks. Pieces return false when the ring is full. */
void srv_session_put_accepted(struct srv_session *session);
bool srv_session_put_piece(struct srv_session *session, const struct eng_piece *piece);
void srv_session_put_end(struct srv_session *session, int finish, int code, const char *sentence);

/* Connection: takes what is there and says what to do. */
enum srv_session_state srv_session_advance(struct srv_session *session);
/* Appends the reply's JSON and returns its HTTP status. */
int srv_session_reply(struct srv_session *session, struct base_buf *to);
/* Moves stream bytes to `to`: their number, 0 when there are none yet, -1 at the end, -2 when the
 * stream cannot go on. */
ssize_t srv_session_read(struct srv_session *session, char *to, size_t size);
/* Connection, at its end: logs what became of the request. `status` is that of the answer, 0 when
 * none was begun. */
void srv_session_log(const struct srv_session *session, int status);

#endif
