/*
 * The wire: frames of 64 bytes and what follows them, over two local sockets per connection. Requests (SEND, READ, WRITE) go out on `ask`
 * and come in on `answer`; answers and rdma-cm's words the other way. Bulk goes between socket and registered memory by readv and
 * writev: no byte of it is touched here.
 *
 * A SEND without a receive stops its pipe until there is one (a sender that retries for ever); keys are looked at again at each piece
 * that comes or goes. A connection that breaks ends the oldest operation as RETRY_EXC and the rest as flushed.
 */
#include "standin.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { MAGIC = 0x534e5443, EVENTS = 64, READS_PER_TURN = 256, DRAIN_BYTES = 65536 };

/* A socket that has been accepted and has not said what it is. */
struct stray {
	enum source source;
	int fd;
	uint32_t got;
	struct {
		struct frame head;
		unsigned char data[REQUEST_DATA];
	} bytes;
	struct listener *listener;
	struct node in_list;
};

struct listener {
	enum source source;
	int fd;
	struct s_id *id;
	bool is_dead;
	struct node in_list;
};

static struct node links = { &links, &links };
static struct node listeners = { &listeners, &listeners };
static struct node strays = { &strays, &strays };
static int epoll_fd = -1;
static struct {
	enum source source;
	int fd;
} kick = { SOURCE_KICK, -1 };
static unsigned char drain[DRAIN_BYTES];

static void pipe_write(struct pipe *pipe);
static void pipe_read(struct pipe *pipe);
static void *engine(void *nothing);

static void engine_start(void)
{
	if (epoll_fd >= 0)
		return;
	epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	kick.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	struct epoll_event event = { .events = EPOLLIN, .data.ptr = &kick };
	pthread_t thread;
	if (epoll_fd < 0 || epoll_ctl(epoll_fd, EPOLL_CTL_ADD, kick.fd, &event) != 0 || pthread_create(&thread, NULL, engine, NULL) != 0)
		abort();
	pthread_detach(thread);
}

void engine_kick(void)
{
	if (kick.fd >= 0)
		eventfd_write(kick.fd, 1);
}

static void pipe_watch(struct pipe *pipe)
{
	if (pipe->fd < 0)
		return;
	uint32_t wanted = (pipe->is_paused ? 0 : EPOLLIN) | (!list_is_empty(&pipe->out) ? EPOLLOUT : 0);
	if (wanted == pipe->interest)
		return;
	struct epoll_event event = { .events = wanted, .data.ptr = pipe };
	if (epoll_ctl(epoll_fd, pipe->interest == UINT32_MAX ? EPOLL_CTL_ADD : EPOLL_CTL_MOD, pipe->fd, &event) != 0)
		abort();
	pipe->interest = wanted;
}

static void pipe_open(struct pipe *pipe, int fd)
{
	/* Large enough that a doorbell rarely leaves bytes for the engine. */
	int bytes = 4 << 20;
	setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes));
	fcntl(fd, F_SETFL, O_NONBLOCK);
	pipe->fd = fd;
	pipe->interest = UINT32_MAX;
	pipe_watch(pipe);
}

static void piece_free(struct piece *piece)
{
	list_remove(&piece->node);
	free(piece->owned);
	free(piece);
}

static void pipe_close(struct pipe *pipe)
{
	while (!list_is_empty(&pipe->out))
		piece_free(owner_of(pipe->out.next, struct piece, node));
	if (pipe->fd >= 0)
		close(pipe->fd);
	pipe->fd = -1;
}

/* ---- connections */

struct link *link_new(void)
{
	struct link *link = calloc(1, sizeof(*link));
	if (!link)
		abort();
	link->ask.link = link->answer.link = link;
	link->ask.fd = link->answer.fd = -1;
	link->ask.source = link->answer.source = SOURCE_PIPE;
	link->ask.is_ours = true;
	list_init(&link->ask.out);
	list_init(&link->answer.out);
	list_push(&links, &link->in_list);
	return link;
}

/* Ports of rdma-cm are not those of TCP: each is a name in the abstract space of local sockets, which ends with its socket. */
static socklen_t name_of(const struct sockaddr_in *at, struct sockaddr_un *name)
{
	*name = (struct sockaddr_un){ .sun_family = AF_UNIX };
	int bytes = snprintf(name->sun_path + 1, sizeof(name->sun_path) - 1, "clovis-standin-%08x-%u", ntohl(at->sin_addr.s_addr), ntohs(at->sin_port));
	return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)bytes);
}

static int dial(const struct sockaddr_in *to)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	struct sockaddr_un name;
	socklen_t bytes = name_of(to, &name);
	if (fd >= 0 && connect(fd, (struct sockaddr *)&name, bytes) == 0)
		return fd;
	int why = errno;
	close(fd);
	errno = why;
	return -1;
}

int link_dial(struct link *link, const struct sockaddr_in *to)
{
	engine_start();
	int ask = dial(to), answer = ask < 0 ? -1 : dial(to);
	if (answer < 0) {
		int why = errno;
		close(ask);
		errno = why;
		return -1;
	}
	link->is_active_side = true;
	if (getrandom(&link->nonce, sizeof(link->nonce), 0) != sizeof(link->nonce))
		abort();
	pipe_open(&link->ask, ask);
	pipe_open(&link->answer, answer);
	link_say(&link->answer, (struct frame){ .kind = JOIN, .nonce = link->nonce }, NULL, 0);
	return 0;
}

static struct piece *piece_new(struct frame head)
{
	struct piece *piece = calloc(1, sizeof(*piece));
	if (!piece)
		abort();
	piece->head = head;
	piece->head.magic = MAGIC;
	piece->whole = sizeof(piece->head);
	return piece;
}

static void piece_add(struct piece *piece, void *at, uint64_t bytes)
{
	if (bytes == 0)
		return;
	piece->parts[piece->part_count++] = (struct iovec){ .iov_base = at, .iov_len = bytes };
	piece->whole += bytes;
}

static void pipe_push(struct pipe *pipe, struct piece *piece)
{
	if (pipe->fd < 0) {
		list_init(&piece->node);
		piece_free(piece);
		return;
	}
	list_push(&pipe->out, &piece->node);
	pipe_write(pipe);
}

void link_say(struct pipe *pipe, struct frame head, const void *data, uint32_t bytes)
{
	struct piece *piece = piece_new(head);
	piece->head.bytes = bytes;
	if (bytes) {
		piece->owned = malloc(bytes);
		if (!piece->owned)
			abort();
		memcpy(piece->owned, data, bytes);
		piece_add(piece, piece->owned, bytes);
	}
	pipe_push(pipe, piece);
}

static void answer_refused(struct link *link, uint64_t number, enum ibv_wc_status status)
{
	link_say(&link->answer, (struct frame){ .kind = REFUSED, .number = number, .status = (uint16_t)status }, NULL, 0);
}

/* What is being received goes nowhere any more; a receive that was taken for it comes back as flushed. */
static void pipe_drain(struct pipe *pipe)
{
	if (pipe->into_count == 0)
		return;
	if (pipe->receive && pipe->link->qp)
		qp_received(pipe->link->qp, pipe->receive, IBV_WC_WR_FLUSH_ERR, 0, false, 0);
	pipe->receive = NULL;
	pipe->is_draining = true;
}

static bool is_cut_by(struct pipe *pipe)
{
	bool is_cut = false;
	for (struct node *node = pipe->out.next, *next; node != &pipe->out; node = next) {
		next = node->next;
		struct piece *piece = owner_of(node, struct piece, node);
		if (!piece->op && !piece->is_guarded)
			continue;
		is_cut |= piece->sent > 0;
		if (piece->sent == 0) {
			uint64_t number = piece->head.number;
			bool is_guarded = piece->is_guarded;
			piece_free(piece);
			if (is_guarded)
				answer_refused(pipe->link, number, IBV_WC_RETRY_EXC_ERR);
		}
	}
	return is_cut;
}

void link_release_qp(struct link *link)
{
	pipe_drain(&link->ask);
	pipe_drain(&link->answer);
	bool is_cut = is_cut_by(&link->ask);
	is_cut |= is_cut_by(&link->answer);
	/* Half of a caller's memory is on the wire: the rest must not follow, so the connection ends. */
	if (is_cut)
		link_break(link);
	engine_kick();
}

static uint64_t now_ms(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

/* The peer answers no more: the transport tries for a while, and then the oldest operation fails. */
static void link_lose(struct link *link)
{
	if (!link->qp || link->qp->state == IBV_QPS_ERR || link->fails_at_ms)
		return;
	link->fails_at_ms = now_ms() + RETRY_MS;
	engine_kick();
}

static void link_give_up(struct link *link)
{
	struct s_qp *qp = link->qp;
	link->fails_at_ms = 0;
	if (!qp || qp->state == IBV_QPS_ERR || list_is_empty(&qp->ops))
		return;
	struct op *op = owner_of(qp->ops.next, struct op, node);
	if (op->state != OP_DONE)
		op->status = IBV_WC_RETRY_EXC_ERR;
	op->state = OP_DONE;
	qp_complete_heads(qp);
}

void link_break(struct link *link)
{
	if (link->is_broken)
		return;
	link->is_broken = true;
	pipe_drain(&link->ask);
	pipe_drain(&link->answer);
	pipe_close(&link->ask);
	pipe_close(&link->answer);
	link_lose(link);
	struct s_id *id = link->id;
	if (id && !link->is_told_down) {
		link->is_told_down = true;
		if (id->state == ID_ASKING)
			/* 8: nobody serves there (IB's invalid service id). */
			cm_tell(id, RDMA_CM_EVENT_REJECTED, 8, NULL, 0);
		else if (id->state != ID_OVER)
			cm_tell(id, RDMA_CM_EVENT_DISCONNECTED, 0, NULL, 0);
	}
	engine_kick();
}

/* ---- going out */

static enum fault_kind fault_of(const struct op *op)
{
	switch (op->kind) {
	case IBV_WR_RDMA_READ: return FAULT_READ;
	case IBV_WR_RDMA_WRITE: return FAULT_WRITE;
	case IBV_WR_BIND_MW: return FAULT_BIND;
	case IBV_WR_LOCAL_INV: return FAULT_INVALIDATE;
	default: return FAULT_SEND;
	}
}

static bool may_use_parts(const struct op *op)
{
	unsigned access = op->kind == IBV_WR_RDMA_READ ? IBV_ACCESS_LOCAL_WRITE : 0;
	for (int index = 0; index < op->part_count; index++) {
		const struct ibv_sge *part = &op->parts[index];
		if (part->length && !local_key_opens(part->lkey, part->addr, part->length, access))
			return false;
	}
	return true;
}

static void op_end(struct op *op, enum ibv_wc_status status)
{
	op->state = OP_DONE;
	op->status = status;
}

static void op_start(struct s_qp *qp, struct op *op)
{
	struct link *link = qp->link;
	if (is_faulty(fault_of(op)))
		return op_end(op, (enum ibv_wc_status)config.fault_status);
	if (op->kind == IBV_WR_BIND_MW)
		return op_end(op, window_bind(qp, op->window, op->window_key, op->key, &op->bind));
	if (op->kind == IBV_WR_LOCAL_INV)
		return op_end(op, window_invalidate(qp, op->key) ? IBV_WC_SUCCESS : IBV_WC_LOC_QP_OP_ERR);
	if (!may_use_parts(op))
		return op_end(op, IBV_WC_LOC_PROT_ERR);
	if (link->is_broken) {
		op->state = OP_SENT;
		return link_lose(link);
	}
	struct piece *piece = piece_new((struct frame){
		.kind = op->kind == IBV_WR_RDMA_READ ? READ : op->kind == IBV_WR_RDMA_WRITE ? WRITE : SEND,
		.number = op->number,
		.address = op->address,
		.key = op->kind == IBV_WR_SEND || op->kind == IBV_WR_SEND_WITH_INV ? 0 : op->key,
		.bytes = (uint32_t)op->bytes,
		.invalidates = op->kind == IBV_WR_SEND_WITH_INV ? op->key : 0,
	});
	piece->op = op;
	op->state = OP_SENT;
	if (op->kind != IBV_WR_RDMA_READ) {
		if (op->inlined)
			piece_add(piece, op->inlined, op->bytes);
		for (int index = 0; index < op->part_count; index++)
			piece_add(piece, (void *)(uintptr_t)op->parts[index].addr, op->parts[index].length);
	}
	pipe_push(&link->ask, piece);
}

void link_pump(struct link *link)
{
	struct s_qp *qp = link->qp;
	if (!qp || qp->state != IBV_QPS_RTS)
		return;
	struct node *node = qp->ops.next;
	while (qp->state == IBV_QPS_RTS && node != &qp->ops) {
		struct op *op = owner_of(node, struct op, node);
		if (op->state == OP_DONE && op->status != IBV_WC_SUCCESS)
			break;
		node = node->next;
		if (op->state == OP_WAITING) {
			op_start(qp, op);
			/* What follows an operation that has failed never starts. */
			node = op->node.next;
			if (qp->state == IBV_QPS_RTS && op->state == OP_DONE && op->status != IBV_WC_SUCCESS)
				break;
		}
	}
	qp_complete_heads(qp);
}

static void pipe_write(struct pipe *pipe)
{
	struct link *link = pipe->link;
	while (pipe->fd >= 0 && !list_is_empty(&pipe->out)) {
		struct piece *piece = owner_of(pipe->out.next, struct piece, node);
		if (piece->is_guarded && !(link->qp && remote_key_opens(link->qp, piece->head.key, piece->head.address, piece->head.bytes, IBV_ACCESS_REMOTE_READ)))
			return link_break(link);
		struct iovec parts[PARTS_MAX + 1];
		int count = 0;
		uint64_t skip = piece->sent;
		for (int index = -1; index < piece->part_count; index++) {
			struct iovec part = index < 0 ? (struct iovec){ &piece->head, sizeof(piece->head) } : piece->parts[index];
			uint64_t gone = skip < part.iov_len ? skip : part.iov_len;
			skip -= gone;
			if (part.iov_len > gone)
				parts[count++] = (struct iovec){ (char *)part.iov_base + gone, part.iov_len - gone };
		}
		struct msghdr message = { .msg_iov = parts, .msg_iovlen = (size_t)count };
		ssize_t sent = sendmsg(pipe->fd, &message, MSG_NOSIGNAL);
		if (sent < 0 && errno == EINTR)
			continue;
		if (sent < 0 && errno == EAGAIN)
			break;
		if (sent < 0)
			return link_break(link);
		tap_take(parts, count, (uint64_t)sent);
		piece->sent += (uint64_t)sent;
		if (piece->sent == piece->whole)
			piece_free(piece);
	}
	pipe_watch(pipe);
}

/* ---- coming in */

static void into_nothing(struct pipe *pipe, uint32_t bytes)
{
	pipe->is_draining = true;
	pipe->into[0] = (struct iovec){ NULL, bytes };
	pipe->into_count = bytes ? 1 : 0;
}

static void peer_broke_in(struct s_qp *qp)
{
	device_tell(qp->plain.context, IBV_EVENT_QP_ACCESS_ERR, &qp->plain);
	qp_fail(qp);
}

/* A request's head is here. False: it has to wait. */
static bool request_begin(struct pipe *pipe)
{
	struct link *link = pipe->link;
	struct s_qp *qp = link->qp;
	struct frame *head = &pipe->head;
	if (!qp || qp->state == IBV_QPS_ERR) {
		/* An id that has no queue pair yet may still get one. */
		if (!qp && link->id && link->id->state != ID_OVER && link->id->state != ID_UP)
			return false;
		into_nothing(pipe, head->kind == READ ? 0 : head->bytes);
		head->status = IBV_WC_RETRY_EXC_ERR;
		return true;
	}
	if (qp->state < IBV_QPS_RTR)
		return false;
	if (head->kind == SEND) {
		struct s_receive *receive = qp_take_receive(qp);
		if (!receive)
			return false;
		uint64_t room = receive->is_empty ? 0 : receive->part.length;
		bool is_open = receive->is_empty || local_key_opens(receive->part.lkey, receive->part.addr, room, IBV_ACCESS_LOCAL_WRITE);
		if (head->bytes > room || !is_open) {
			head->status = IBV_WC_REM_INV_REQ_ERR;
			into_nothing(pipe, head->bytes);
			qp_received(qp, receive, is_open ? IBV_WC_LOC_LEN_ERR : IBV_WC_LOC_PROT_ERR, 0, false, 0);
			qp_fail(qp);
			return true;
		}
		pipe->receive = receive;
		pipe->into[0] = (struct iovec){ (void *)(uintptr_t)receive->part.addr, head->bytes };
		pipe->into_count = head->bytes ? 1 : 0;
		return true;
	}
	unsigned access = head->kind == READ ? IBV_ACCESS_REMOTE_READ : IBV_ACCESS_REMOTE_WRITE;
	if (!remote_key_opens(qp, head->key, head->address, head->bytes, access)) {
		head->status = IBV_WC_REM_ACCESS_ERR;
		into_nothing(pipe, head->kind == READ ? 0 : head->bytes);
		peer_broke_in(qp);
		return true;
	}
	if (head->kind == WRITE) {
		pipe->into[0] = (struct iovec){ (void *)(uintptr_t)head->address, head->bytes };
		pipe->into_count = head->bytes ? 1 : 0;
	}
	return true;
}

static void request_end(struct pipe *pipe)
{
	struct link *link = pipe->link;
	struct s_qp *qp = link->qp;
	struct frame *head = &pipe->head;
	if (head->status || pipe->is_draining || !qp)
		return answer_refused(link, head->number, head->status ? (enum ibv_wc_status)head->status : IBV_WC_RETRY_EXC_ERR);
	if (head->kind != READ)
		head->bytes = tamper(head->kind == SEND ? FAULT_SEND : FAULT_WRITE, pipe->into, pipe->into_count, head->bytes);
	if (head->kind == READ) {
		struct piece *piece = piece_new(*head);
		piece->head.kind = DATA;
		piece->is_guarded = true;
		piece_add(piece, (void *)(uintptr_t)head->address, head->bytes);
		return pipe_push(pipe, piece);
	}
	if (head->kind == SEND) {
		struct s_receive *receive = pipe->receive;
		pipe->receive = NULL;
		enum ibv_wc_status failure = IBV_WC_SUCCESS, told = IBV_WC_REM_OP_ERR;
		if (is_faulty(FAULT_RECEIVE))
			failure = (enum ibv_wc_status)config.fault_status;
		else if (head->invalidates && !window_invalidate(qp, head->invalidates))
			failure = IBV_WC_LOC_ACCESS_ERR, told = IBV_WC_REM_ACCESS_ERR;
		qp_received(qp, receive, failure, head->bytes, !failure && head->invalidates, head->invalidates);
		if (failure) {
			answer_refused(link, head->number, told);
			return qp_fail(qp);
		}
	}
	link_say(&link->answer, (struct frame){ .kind = DONE, .number = head->number }, NULL, 0);
}

static struct op *op_of(struct s_qp *qp, uint64_t number)
{
	for (struct node *node = qp ? qp->ops.next : NULL; qp && node != &qp->ops; node = node->next) {
		struct op *op = owner_of(node, struct op, node);
		if (op->number == number && op->state == OP_SENT)
			return op;
	}
	return NULL;
}

static void answer_begin(struct pipe *pipe)
{
	struct frame *head = &pipe->head;
	if (head->kind != DATA) {
		/* rdma-cm's words carry what the program said. */
		pipe->into[0] = (struct iovec){ pipe->data, head->bytes };
		pipe->into_count = head->bytes && head->bytes <= sizeof(pipe->data) ? 1 : 0;
		return;
	}
	struct op *op = op_of(pipe->link->qp, head->number);
	if (!op || op->bytes != head->bytes)
		return into_nothing(pipe, head->bytes);
	for (int index = 0; index < op->part_count; index++)
		pipe->into[pipe->into_count++] = (struct iovec){ (void *)(uintptr_t)op->parts[index].addr, op->parts[index].length };
}

static void answer_end(struct pipe *pipe)
{
	struct link *link = pipe->link;
	struct frame *head = &pipe->head;
	struct s_id *id = link->id;
	switch (head->kind) {
	case DONE:
	case DATA:
	case REFUSED: {
		struct op *op = pipe->is_draining ? NULL : op_of(link->qp, head->number);
		if (!op)
			return;
		if (head->kind == REFUSED && head->status == IBV_WC_RETRY_EXC_ERR)
			return link_lose(link);
		if (head->kind == DATA)
			tamper(FAULT_READ, pipe->into, pipe->into_count, head->bytes);
		op_end(op, head->kind == REFUSED ? (enum ibv_wc_status)head->status : IBV_WC_SUCCESS);
		qp_complete_heads(link->qp);
		return;
	}
	case ACCEPT:
		if (id && id->state == ID_ASKING) {
			id->state = ID_ACCEPTED;
			id->peer_qp_number = head->qp_number;
			cm_tell(id, RDMA_CM_EVENT_CONNECT_RESPONSE, 0, pipe->data, ACCEPT_DATA);
		}
		return;
	case REJECT:
		if (id && id->state == ID_ASKING) {
			link->is_told_down = true;
			/* 28: the program itself said no. */
			cm_tell(id, RDMA_CM_EVENT_REJECTED, 28, pipe->data, REJECT_DATA);
		}
		return;
	case READY:
		if (id && id->state == ID_ACCEPTED) {
			id->state = ID_UP;
			cm_tell(id, RDMA_CM_EVENT_ESTABLISHED, 0, NULL, 0);
		}
		return;
	case DISCONNECT:
		if (id && !link->is_told_down) {
			link->is_told_down = true;
			cm_tell(id, RDMA_CM_EVENT_DISCONNECTED, 0, NULL, 0);
		}
		return;
	default:
		link_break(link);
	}
}

/* Reads on where it stood. False: nothing more for now, or the pipe is closed. */
static bool pipe_step(struct pipe *pipe)
{
	if (pipe->head_got < sizeof(pipe->head)) {
		ssize_t got = recv(pipe->fd, (char *)&pipe->head + pipe->head_got, sizeof(pipe->head) - pipe->head_got, 0);
		if (got <= 0) {
			if (got == 0 || (errno != EAGAIN && errno != EINTR))
				link_break(pipe->link);
			return false;
		}
		pipe->head_got += (uint32_t)got;
		if (pipe->head_got < sizeof(pipe->head))
			return true;
		bool is_request = pipe->head.kind >= SEND && pipe->head.kind <= WRITE;
		if (pipe->head.magic != MAGIC || is_request == pipe->is_ours) {
			link_break(pipe->link);
			return false;
		}
		pipe->is_paused = true;
	}
	if (pipe->is_paused) {
		pipe->into_count = 0;
		pipe->into_got = 0;
		pipe->is_draining = false;
		if (pipe->is_ours)
			answer_begin(pipe);
		else if (!request_begin(pipe))
			return false;
		pipe->is_paused = false;
	}
	uint64_t whole = 0;
	for (int index = 0; index < pipe->into_count; index++)
		whole += pipe->into[index].iov_len;
	if (pipe->into_got < whole) {
		struct iovec parts[PARTS_MAX];
		int count = 0;
		uint64_t skip = pipe->into_got;
		for (int index = 0; index < pipe->into_count; index++) {
			uint64_t gone = skip < pipe->into[index].iov_len ? skip : pipe->into[index].iov_len;
			skip -= gone;
			if (pipe->into[index].iov_len > gone)
				parts[count++] = (struct iovec){ (char *)pipe->into[index].iov_base + gone, pipe->into[index].iov_len - gone };
		}
		const struct frame *head = &pipe->head;
		if (!pipe->is_draining && head->kind == WRITE &&
		    !(pipe->link->qp && remote_key_opens(pipe->link->qp, head->key, head->address, head->bytes, IBV_ACCESS_REMOTE_WRITE))) {
			/* Invalidated on the way: a device would refuse the next packet. */
			pipe->head.status = IBV_WC_REM_ACCESS_ERR;
			pipe->is_draining = true;
			if (pipe->link->qp)
				peer_broke_in(pipe->link->qp);
		}
		uint64_t left = whole - pipe->into_got;
		ssize_t got = pipe->is_draining ? recv(pipe->fd, drain, left < DRAIN_BYTES ? left : DRAIN_BYTES, 0) : readv(pipe->fd, parts, count);
		if (got <= 0) {
			if (got == 0 || (errno != EAGAIN && errno != EINTR))
				link_break(pipe->link);
			return false;
		}
		pipe->into_got += (uint64_t)got;
		if (pipe->into_got < whole)
			return true;
	}
	if (pipe->is_ours)
		answer_end(pipe);
	else
		request_end(pipe);
	pipe->head_got = 0;
	pipe->into_count = 0;
	pipe->is_draining = false;
	return pipe->fd >= 0;
}

static void pipe_read(struct pipe *pipe)
{
	for (int count = 0; count < READS_PER_TURN && pipe->fd >= 0; count++)
		if (!pipe_step(pipe))
			break;
	pipe_watch(pipe);
}

void links_wake(void)
{
	for (struct node *node = links.next; node != &links; node = node->next) {
		struct link *link = owner_of(node, struct link, in_list);
		if (link->answer.is_paused && link->answer.head_got == sizeof(struct frame))
			pipe_read(&link->answer);
	}
}

/* ---- listening */

struct listener *engine_listen(struct s_id *id, const struct sockaddr_in *at)
{
	engine_start();
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	struct listener *made = calloc(1, sizeof(*made));
	struct sockaddr_un name;
	socklen_t bytes = name_of(at, &name);
	if (fd < 0 || !made || bind(fd, (struct sockaddr *)&name, bytes) != 0 || listen(fd, 1024) != 0) {
		int why = errno;
		close(fd);
		free(made);
		errno = why;
		return NULL;
	}
	made->source = SOURCE_LISTENER;
	made->fd = fd;
	made->id = id;
	list_push(&listeners, &made->in_list);
	struct epoll_event event = { .events = EPOLLIN, .data.ptr = made };
	if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) != 0)
		abort();
	return made;
}

void engine_unlisten(struct listener *listener)
{
	close(listener->fd);
	listener->is_dead = true;
	for (struct node *node = links.next; node != &links; node = node->next) {
		struct link *link = owner_of(node, struct link, in_list);
		if (link->listener == listener->id)
			link->listener = NULL;
	}
	engine_kick();
}

static void stray_accept(struct listener *listener)
{
	for (;;) {
		int fd = accept4(listener->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
		if (fd < 0)
			return;
		struct stray *made = calloc(1, sizeof(*made));
		if (!made)
			abort();
		made->source = SOURCE_STRAY;
		made->fd = fd;
		made->listener = listener;
		list_push(&strays, &made->in_list);
		struct epoll_event event = { .events = EPOLLIN, .data.ptr = made };
		if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) != 0)
			abort();
	}
}

static void stray_free(struct stray *stray, bool with_socket)
{
	if (with_socket)
		close(stray->fd);
	else
		epoll_ctl(epoll_fd, EPOLL_CTL_DEL, stray->fd, NULL);
	list_remove(&stray->in_list);
	free(stray);
}

static struct link *passive_link(struct stray *stray)
{
	for (struct node *node = links.next; node != &links; node = node->next) {
		struct link *link = owner_of(node, struct link, in_list);
		if (!link->is_active_side && link->nonce == stray->bytes.head.nonce)
			return link;
	}
	struct link *made = link_new();
	made->nonce = stray->bytes.head.nonce;
	made->listener = stray->listener->id;
	return made;
}

static void stray_read(struct stray *stray)
{
	struct frame *head = &stray->bytes.head;
	uint32_t wanted = sizeof(*head);
	if (stray->got >= wanted && head->kind == REQUEST)
		wanted += REQUEST_DATA;
	ssize_t got = recv(stray->fd, (char *)&stray->bytes + stray->got, wanted - stray->got, 0);
	if (got < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (got <= 0 || stray->listener->is_dead)
		return stray_free(stray, true);
	stray->got += (uint32_t)got;
	if (stray->got < sizeof(*head))
		return;
	if (head->magic != MAGIC || (head->kind != JOIN && head->kind != REQUEST))
		return stray_free(stray, true);
	if (stray->got < sizeof(*head) + (head->kind == REQUEST ? REQUEST_DATA : 0))
		return;
	struct link *link = passive_link(stray);
	int fd = stray->fd;
	bool is_join = head->kind == JOIN;
	if (!is_join) {
		link->request_head = *head;
		memcpy(link->request, stray->bytes.data, REQUEST_DATA);
	}
	stray_free(stray, false);
	pipe_open(is_join ? &link->ask : &link->answer, fd);
	if (link->ask.fd >= 0 && link->answer.fd >= 0 && !link->is_requested) {
		link->is_requested = true;
		if (link->listener)
			cm_requested(link->listener, link, &link->request_head, link->request);
		else
			link_break(link);
	}
}

/* ---- the thread */

static void pipe_event(struct pipe *pipe, uint32_t events)
{
	if (pipe->fd < 0)
		return;
	if (events & EPOLLOUT)
		pipe_write(pipe);
	/* A pipe that waits for a receive is not read, also when the peer has gone: what it said last still counts. */
	if (events & (EPOLLIN | EPOLLERR | EPOLLHUP) && !pipe->is_paused)
		pipe_read(pipe);
	else if (events & (EPOLLERR | EPOLLHUP))
		link_break(pipe->link);
	if (pipe->fd >= 0)
		pipe_watch(pipe);
}

static void reap(void)
{
	for (struct node *node = links.next, *next; node != &links; node = next) {
		next = node->next;
		struct link *link = owner_of(node, struct link, in_list);
		bool is_wanted = link->id || link->qp || (link->listener && !link->is_broken);
		bool is_said = link->is_broken || list_is_empty(&link->answer.out);
		if (is_wanted || !is_said)
			continue;
		pipe_close(&link->ask);
		pipe_close(&link->answer);
		list_remove(&link->in_list);
		free(link);
	}
	for (struct node *node = listeners.next, *next; node != &listeners; node = next) {
		next = node->next;
		struct listener *listener = owner_of(node, struct listener, in_list);
		if (!listener->is_dead)
			continue;
		for (struct node *other = strays.next, *after; other != &strays; other = after) {
			after = other->next;
			struct stray *stray = owner_of(other, struct stray, in_list);
			if (stray->listener == listener)
				stray_free(stray, true);
		}
		list_remove(&listener->in_list);
		free(listener);
	}
}

/* Answers how long to wait for the next transport that gives up, or -1. */
static int give_up_due(void)
{
	uint64_t now = now_ms(), next = UINT64_MAX;
	for (struct node *node = links.next; node != &links; node = node->next) {
		struct link *link = owner_of(node, struct link, in_list);
		if (link->fails_at_ms && link->fails_at_ms <= now)
			link_give_up(link);
		if (link->fails_at_ms && link->fails_at_ms < next)
			next = link->fails_at_ms;
	}
	return next == UINT64_MAX ? -1 : (int)(next - now) + 1;
}

static void *engine(void *nothing)
{
	struct epoll_event events[EVENTS];
	int wait_ms = -1;
	for (;;) {
		int count = epoll_wait(epoll_fd, events, EVENTS, wait_ms);
		world_enter();
		for (int index = 0; index < count; index++) {
			eventfd_t kicks;
			switch (*(enum source *)events[index].data.ptr) {
			case SOURCE_PIPE: pipe_event(events[index].data.ptr, events[index].events); break;
			case SOURCE_STRAY: stray_read(events[index].data.ptr); break;
			case SOURCE_LISTENER: stray_accept(events[index].data.ptr); break;
			case SOURCE_KICK: eventfd_read(kick.fd, &kicks); break;
			}
		}
		reap();
		wait_ms = give_up_due();
		world_leave();
	}
	return nothing;
}
