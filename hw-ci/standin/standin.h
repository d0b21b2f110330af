/*
 * A stand-in for libibverbs and librdmacm: enough of verbs and rdma-cm, in user space over local sockets, for our own verbs edge to run on
 * hosts without RDMA, between threads or processes. It is strict where hardware is (keys, ranges, rights, order, states), and it can
 * be told to lack things or to fail (config.c). It is for tests: nothing of it is installed or measured.
 *
 * One library plays both: librdmacm.so.1 is a link to libibverbs.so.1 (tests/src/standin.rs builds it with cc).
 *
 * Threads: every call takes `world_lock`; one engine thread per process moves bytes. A connection is two sockets, one per direction of
 * requests, so that a request that waits for a receive never holds up answers.
 * Start reading at engine.c.
 */
#ifndef CLOVIS_STANDIN_H
#define CLOVIS_STANDIN_H

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <netinet/in.h>
#include <sys/uio.h>

#include <infiniband/verbs.h>
#include <rdma/rdma_cma.h>

/* Bounds: beyond them calls fail as a device's would. */
enum {
	DEVICES_MAX = 4,
	KEYS_MAX = 1 << 16,
	PARTS_MAX = 4,
	INLINE_MAX = 1024,
	QUEUE_PAIRS_MAX = 4096,
	/* What rdma-cm carries: man rdma_connect(3), rdma_accept(3), rdma_reject(3). */
	REQUEST_DATA = 56,
	ACCEPT_DATA = 196,
	REJECT_DATA = 148,
	/* How long a transport tries before it gives up: hardware takes seconds. */
	RETRY_MS = 500,
};

/* ---- config.c */

enum fault_kind { FAULT_NONE, FAULT_SEND, FAULT_READ, FAULT_WRITE, FAULT_BIND, FAULT_INVALIDATE, FAULT_RECEIVE };

enum tamper_how { TAMPER_FLIP, TAMPER_CUT, TAMPER_SPLICE };

struct config {
	int device_count;
	uint32_t addresses[DEVICES_MAX]; /* network order */
	bool has_windows, has_srq, has_extended, has_gids, is_active;
	uint32_t inline_bytes, vendor;
	uint64_t memlock_bytes;
	int private_bytes; /* of a request, as delivered */
	enum fault_kind fault;
	int fault_status;
	uint64_t fault_at; /* which operation of that kind */
	char tap[256];
	enum fault_kind tamper_kind;
	enum tamper_how tamper;
	uint32_t tamper_bytes;
};

extern struct config config;
/* True if this operation is the one that has to fail. */
bool is_faulty(enum fault_kind kind);

/* ---- tap.c */

struct iovec;
/* Writes down what has left, where somebody listens. */
void tap_take(const struct iovec *parts, int count, uint64_t bytes);
/* Changes what has arrived, if it is what somebody waits for. Answers how long it is now. */
uint32_t tamper(enum fault_kind kind, const struct iovec *parts, int count, uint32_t bytes);

/* ---- lists and signs */

struct node {
	struct node *next, *previous;
};

static inline void list_init(struct node *list) { list->next = list->previous = list; }
static inline bool list_is_empty(const struct node *list) { return list->next == list; }
static inline void list_push(struct node *list, struct node *node)
{
	node->previous = list->previous;
	node->next = list;
	list->previous->next = node;
	list->previous = node;
}
static inline void list_remove(struct node *node)
{
	node->previous->next = node->next;
	node->next->previous = node->previous;
	list_init(node);
}
#define owner_of(node, type, member) ((type *)((char *)(node)-offsetof(type, member)))

/* A descriptor that is readable while a queue is not empty. */
struct sign {
	int fd;
	struct node queue;
};
int sign_open(struct sign *sign);
void sign_close(struct sign *sign);
void sign_push(struct sign *sign, struct node *node);
/* The first of the queue, or NULL with errno EAGAIN; waits if the descriptor blocks. Called with the lock, which it lets go while it waits. */
struct node *sign_take(struct sign *sign, int fd);
void sign_drop(struct sign *sign, struct node *node);

extern pthread_mutex_t world_lock;
void world_enter(void);
void world_leave(void);

/* ---- device.c */

struct s_device {
	struct ibv_device device;
	uint32_t address;
};

struct s_context {
	struct s_device *of;
	struct sign events;
	struct verbs_context verbs; /* last: its own last member is the ibv_context */
};

struct s_event {
	struct node node;
	struct ibv_async_event event;
};

struct s_context *context_of(struct ibv_context *context);
struct s_device *device_by_address(uint32_t address);
struct ibv_context *shared_context(struct s_device *device);
void device_tell(struct ibv_context *context, enum ibv_event_type kind, struct ibv_qp *qp);

/* ---- memory.c */

struct s_region {
	struct ibv_mr region;
	unsigned access;
	int windows;
};

struct s_qp;

struct s_window {
	struct ibv_mw window;
	uint32_t key; /* as the device has it: index and present tag */
	struct s_region *region;
	struct s_qp *qp;
	uint64_t address, bytes;
	unsigned access;
	bool is_valid;
};

/* Whether the key opens [address, address + bytes) to the peer of `qp`. */
bool remote_key_opens(struct s_qp *qp, uint32_t key, uint64_t address, uint64_t bytes, unsigned access);
bool local_key_opens(uint32_t key, uint64_t address, uint64_t bytes, unsigned access);
/* Answers a completion status. */
enum ibv_wc_status window_bind(struct s_qp *qp, struct ibv_mw *window, uint32_t present, uint32_t key, const struct ibv_mw_bind_info *info);
bool window_invalidate(struct s_qp *qp, uint32_t key);
void windows_forget(struct s_qp *qp);
void memory_ops(struct ibv_context_ops *ops);

/* ---- queues.c */

struct s_channel {
	struct ibv_comp_channel channel;
	struct sign sign;
};

struct s_cq_event {
	struct node node;
	struct ibv_cq *cq;
};

struct s_cq {
	union {
		struct ibv_cq_ex extended;
		struct ibv_cq plain;
	};
	struct ibv_wc *entries;
	uint32_t capacity, first, count;
	bool is_armed;
	struct ibv_wc current;
};

struct s_receive {
	struct node node;
	uint64_t name;
	struct ibv_sge part;
	bool is_empty;
};

struct s_srq {
	struct ibv_srq srq;
	struct node receives;
	uint32_t count, most;
};

enum op_state { OP_WAITING, OP_SENT, OP_DONE };

struct op {
	struct node node;
	uint64_t name, number;
	enum ibv_wr_opcode kind;
	unsigned flags;
	int part_count;
	struct ibv_sge parts[PARTS_MAX];
	uint64_t bytes;
	unsigned char *inlined;
	uint64_t address;
	uint32_t key;
	struct ibv_mw *window;
	uint32_t window_key; /* as the caller's structure had it when it posted */
	struct ibv_mw_bind_info bind;
	enum op_state state;
	enum ibv_wc_status status;
};

struct link;

struct s_qp {
	union {
		struct ibv_qp_ex extended;
		struct ibv_qp plain;
	};
	struct node in_list;
	bool is_extended, is_signalling_all;
	enum ibv_qp_state state;
	uint32_t send_most, receive_most, send_count, receive_count, inline_most;
	struct node ops, receives;
	uint64_t next_number;
	struct link *link;
	struct node draft; /* between wr_start and wr_complete */
	int draft_error;
};

static inline struct s_qp *qp_of(struct ibv_qp *qp) { return (struct s_qp *)(void *)qp; }
void queue_ops(struct verbs_context *verbs);
struct s_qp *qp_by_number(uint32_t number);
void qp_complete_heads(struct s_qp *qp);
/* Into the error state: everything is flushed, `failed` first with its own status. */
void qp_fail(struct s_qp *qp);
void qp_received(struct s_qp *qp, struct s_receive *receive, enum ibv_wc_status status, uint32_t bytes, bool has_key, uint32_t key);
struct s_receive *qp_take_receive(struct s_qp *qp);

/* ---- engine.c */

enum frame_kind { JOIN = 1, REQUEST, ACCEPT, REJECT, READY, DISCONNECT, SEND, READ, WRITE, DONE, DATA, REFUSED };

/* Before everything that travels; the same machine on both ends, so no byte order. */
struct frame {
	uint32_t magic;
	uint16_t kind, status;
	uint64_t number, address, nonce;
	uint32_t key, bytes, invalidates, qp_number;
	uint32_t from_address, pad;
	uint64_t reserved;
};
_Static_assert(sizeof(struct frame) == 64, "a frame's head");

struct piece {
	struct node node;
	struct frame head;
	struct iovec parts[PARTS_MAX];
	int part_count;
	unsigned char *owned; /* freed with the piece */
	uint64_t sent, whole;
	struct op *op;
	/* The bytes of an answer to a READ are the peer's as long as this key opens them. */
	bool is_guarded;
};

struct s_id;

enum source { SOURCE_PIPE, SOURCE_STRAY, SOURCE_LISTENER, SOURCE_KICK };

struct pipe {
	enum source source; /* first: the engine tells its sources apart by it */
	int fd;
	bool is_ours; /* we ask here, and the peer answers; else the other way round */
	bool is_paused;
	uint32_t interest;
	struct node out;
	struct frame head;
	uint32_t head_got;
	/* What is being read behind the head. */
	struct iovec into[PARTS_MAX];
	int into_count;
	uint64_t into_got;
	struct s_receive *receive;
	unsigned char data[ACCEPT_DATA];
	bool is_draining;
	struct link *link;
};

struct link {
	struct node in_list;
	struct pipe ask, answer;
	struct s_id *id;
	struct s_qp *qp;
	uint64_t nonce;
	uint64_t fails_at_ms; /* when the transport gives up on a peer that is silent; 0: it is not */
	bool is_broken, is_active_side, is_told_down, is_requested;
	struct s_id *listener; /* of a passive side that has not been told yet */
	unsigned char request[REQUEST_DATA];
	struct frame request_head;
};

struct link *link_new(void);
int link_dial(struct link *link, const struct sockaddr_in *to);
void link_say(struct pipe *pipe, struct frame head, const void *data, uint32_t bytes);
void link_pump(struct link *link);
void link_break(struct link *link);
/* The queue pair or the id lets go; the engine frees a link that nobody has. */
void link_release_qp(struct link *link);
void links_wake(void);
struct listener;
struct listener *engine_listen(struct s_id *id, const struct sockaddr_in *at);
void engine_unlisten(struct listener *listener);
void engine_kick(void);

/* ---- connection.c */

struct s_channel_cm {
	struct rdma_event_channel channel;
	struct sign sign;
};

struct s_cm_event {
	struct node node;
	struct rdma_cm_event event;
	unsigned char data[ACCEPT_DATA];
};

enum id_state { ID_IDLE, ID_BOUND, ID_LISTENING, ID_ASKING, ID_ASKED, ID_ACCEPTED, ID_UP, ID_OVER };

struct s_id {
	struct rdma_cm_id id;
	enum id_state state;
	struct listener *listener;
	struct link *link;
	uint32_t peer_qp_number;
};

void cm_tell(struct s_id *id, enum rdma_cm_event_type kind, int status, const void *data, uint32_t bytes);
/* A stranger asks at a listener. */
void cm_requested(struct s_id *listener, struct link *link, const struct frame *head, const void *data);

#endif
