/* Completion channels and queues, shared receive queues, queue pairs: posting, completing, flushing. Bytes are engine.c's. */
#include "standin.h"

#include <string.h>

static struct node pairs = { &pairs, &pairs };
static uint32_t next_pair_number = 16;

/* ---- completion channels and queues */

struct ibv_comp_channel *ibv_create_comp_channel(struct ibv_context *context)
{
	struct s_channel *made = calloc(1, sizeof(*made));
	if (!made || sign_open(&made->sign) != 0) {
		free(made);
		return NULL;
	}
	made->channel.context = context;
	made->channel.fd = made->sign.fd;
	return &made->channel;
}

int ibv_destroy_comp_channel(struct ibv_comp_channel *channel)
{
	struct s_channel *own = (struct s_channel *)(void *)channel;
	if (channel->refcnt)
		return EBUSY;
	sign_close(&own->sign);
	free(own);
	return 0;
}

static void cq_push(struct s_cq *cq, const struct ibv_wc *entry)
{
	if (cq->count == cq->capacity) {
		device_tell(cq->plain.context, IBV_EVENT_CQ_ERR, NULL);
		return;
	}
	cq->entries[(cq->first + cq->count++) % cq->capacity] = *entry;
	if (!cq->is_armed || !cq->plain.channel)
		return;
	cq->is_armed = false;
	struct s_cq_event *event = calloc(1, sizeof(*event));
	if (!event)
		abort();
	event->cq = &cq->plain;
	sign_push(&((struct s_channel *)(void *)cq->plain.channel)->sign, &event->node);
}

static bool cq_pop(struct s_cq *cq, struct ibv_wc *into)
{
	if (cq->count == 0)
		return false;
	*into = cq->entries[cq->first];
	cq->first = (cq->first + 1) % cq->capacity;
	cq->count--;
	return true;
}

static struct s_cq *cq_new(struct ibv_context *context, uint32_t entries, void *user, struct ibv_comp_channel *channel)
{
	struct s_cq *made = calloc(1, sizeof(*made));
	if (!made || entries == 0 || entries > 32767 || !(made->entries = calloc(entries, sizeof(*made->entries)))) {
		free(made);
		errno = EINVAL;
		return NULL;
	}
	made->capacity = entries;
	made->plain.context = context;
	made->plain.channel = channel;
	made->plain.cq_context = user;
	made->plain.cqe = (int)entries;
	if (channel)
		channel->refcnt++;
	return made;
}

struct ibv_cq *ibv_create_cq(struct ibv_context *context, int entries, void *user, struct ibv_comp_channel *channel, int vector)
{
	(void)vector;
	struct s_cq *made = cq_new(context, (uint32_t)entries, user, channel);
	return made ? &made->plain : NULL;
}

int ibv_destroy_cq(struct ibv_cq *cq)
{
	struct s_cq *own = (struct s_cq *)(void *)cq;
	world_enter();
	bool is_used = false;
	for (struct node *node = pairs.next; node != &pairs; node = node->next)
		is_used |= owner_of(node, struct s_qp, in_list)->plain.send_cq == cq;
	if (!is_used && cq->channel) {
		struct s_channel *channel = (struct s_channel *)(void *)cq->channel;
		for (struct node *node = channel->sign.queue.next, *next; node != &channel->sign.queue; node = next) {
			next = node->next;
			struct s_cq_event *event = owner_of(node, struct s_cq_event, node);
			if (event->cq == cq) {
				sign_drop(&channel->sign, node);
				free(event);
			}
		}
		cq->channel->refcnt--;
	}
	world_leave();
	if (is_used)
		return EBUSY;
	free(own->entries);
	free(own);
	return 0;
}

int ibv_get_cq_event(struct ibv_comp_channel *channel, struct ibv_cq **cq, void **user)
{
	struct s_channel *own = (struct s_channel *)(void *)channel;
	world_enter();
	struct node *first = sign_take(&own->sign, own->sign.fd);
	world_leave();
	if (!first)
		return -1;
	struct s_cq_event *event = owner_of(first, struct s_cq_event, node);
	*cq = event->cq;
	*user = event->cq->cq_context;
	free(event);
	return 0;
}

void ibv_ack_cq_events(struct ibv_cq *cq, unsigned count) { cq->comp_events_completed += count; }

static int req_notify_cq(struct ibv_cq *cq, int solicited_only)
{
	(void)solicited_only;
	world_enter();
	((struct s_cq *)(void *)cq)->is_armed = true;
	world_leave();
	return 0;
}

static int poll_cq(struct ibv_cq *cq, int most, struct ibv_wc *into)
{
	int count = 0;
	world_enter();
	while (count < most && cq_pop((struct s_cq *)(void *)cq, &into[count]))
		count++;
	world_leave();
	return count;
}

static int next_poll(struct ibv_cq_ex *cq)
{
	struct s_cq *own = (struct s_cq *)(void *)cq;
	if (!cq_pop(own, &own->current))
		return ENOENT;
	cq->wr_id = own->current.wr_id;
	cq->status = own->current.status;
	return 0;
}

/* A start that answers 0 holds the lock until its end, as locked providers do. */
static int start_poll(struct ibv_cq_ex *cq, struct ibv_poll_cq_attr *attributes)
{
	(void)attributes;
	world_enter();
	int answer = next_poll(cq);
	if (answer != 0)
		world_leave();
	return answer;
}

static void end_poll(struct ibv_cq_ex *cq)
{
	(void)cq;
	world_leave();
}

#define CURRENT(cq) (((struct s_cq *)(void *)(cq))->current)
static enum ibv_wc_opcode read_opcode(struct ibv_cq_ex *cq) { return CURRENT(cq).opcode; }
static uint32_t read_vendor_err(struct ibv_cq_ex *cq) { return CURRENT(cq).vendor_err; }
static uint32_t read_byte_len(struct ibv_cq_ex *cq) { return CURRENT(cq).byte_len; }
static __be32 read_imm_data(struct ibv_cq_ex *cq) { return CURRENT(cq).imm_data; }
static uint32_t read_qp_num(struct ibv_cq_ex *cq) { return CURRENT(cq).qp_num; }
static unsigned read_wc_flags(struct ibv_cq_ex *cq) { return CURRENT(cq).wc_flags; }

static struct ibv_cq_ex *create_cq_ex(struct ibv_context *context, struct ibv_cq_init_attr_ex *attributes)
{
	struct s_cq *made = cq_new(context, attributes->cqe, attributes->cq_context, attributes->channel);
	if (!made)
		return NULL;
	struct ibv_cq_ex *cq = &made->extended;
	cq->start_poll = start_poll;
	cq->next_poll = next_poll;
	cq->end_poll = end_poll;
	cq->read_opcode = read_opcode;
	cq->read_vendor_err = read_vendor_err;
	cq->read_byte_len = read_byte_len;
	cq->read_imm_data = read_imm_data;
	cq->read_qp_num = read_qp_num;
	cq->read_wc_flags = read_wc_flags;
	return cq;
}

/* ---- receives */

static int receives_add(struct node *list, uint32_t *count, uint32_t most, struct ibv_recv_wr *wr, struct ibv_recv_wr **bad)
{
	for (; wr; wr = wr->next) {
		struct s_receive *made = *count < most && wr->num_sge <= 1 ? calloc(1, sizeof(*made)) : NULL;
		if (!made) {
			*bad = wr;
			return ENOMEM;
		}
		made->name = wr->wr_id;
		made->is_empty = wr->num_sge == 0;
		if (wr->num_sge)
			made->part = wr->sg_list[0];
		list_push(list, &made->node);
		++*count;
	}
	return 0;
}

static void receives_free(struct node *list)
{
	while (!list_is_empty(list)) {
		struct s_receive *receive = owner_of(list->next, struct s_receive, node);
		list_remove(&receive->node);
		free(receive);
	}
}

struct ibv_srq *ibv_create_srq(struct ibv_pd *pd, struct ibv_srq_init_attr *attributes)
{
	struct s_srq *made = config.has_srq ? calloc(1, sizeof(*made)) : NULL;
	if (!made) {
		errno = ENOSYS;
		return NULL;
	}
	made->srq.context = pd->context;
	made->srq.pd = pd;
	made->most = attributes->attr.max_wr;
	list_init(&made->receives);
	return &made->srq;
}

int ibv_destroy_srq(struct ibv_srq *srq)
{
	struct s_srq *own = (struct s_srq *)(void *)srq;
	world_enter();
	bool is_used = false;
	for (struct node *node = pairs.next; node != &pairs; node = node->next)
		is_used |= owner_of(node, struct s_qp, in_list)->plain.srq == srq;
	world_leave();
	if (is_used)
		return EBUSY;
	receives_free(&own->receives);
	free(own);
	return 0;
}

static int post_srq_recv(struct ibv_srq *srq, struct ibv_recv_wr *wr, struct ibv_recv_wr **bad)
{
	struct s_srq *own = (struct s_srq *)(void *)srq;
	world_enter();
	int answer = receives_add(&own->receives, &own->count, own->most, wr, bad);
	links_wake();
	world_leave();
	return answer;
}

static int post_recv(struct ibv_qp *qp, struct ibv_recv_wr *wr, struct ibv_recv_wr **bad)
{
	struct s_qp *own = qp_of(qp);
	world_enter();
	int answer = EINVAL;
	*bad = wr;
	if (!qp->srq && own->state != IBV_QPS_RESET)
		answer = receives_add(&own->receives, &own->receive_count, own->receive_most, wr, bad);
	if (own->state == IBV_QPS_ERR)
		qp_fail(own);
	links_wake();
	world_leave();
	return answer;
}

struct s_receive *qp_take_receive(struct s_qp *qp)
{
	struct s_srq *srq = (struct s_srq *)(void *)qp->plain.srq;
	struct node *list = srq ? &srq->receives : &qp->receives;
	if (list_is_empty(list))
		return NULL;
	struct s_receive *receive = owner_of(list->next, struct s_receive, node);
	list_remove(&receive->node);
	--*(srq ? &srq->count : &qp->receive_count);
	return receive;
}

void qp_received(struct s_qp *qp, struct s_receive *receive, enum ibv_wc_status status, uint32_t bytes, bool has_key, uint32_t key)
{
	struct ibv_wc entry = {
		.wr_id = receive->name,
		.status = status,
		.opcode = IBV_WC_RECV,
		.byte_len = bytes,
		.qp_num = qp->plain.qp_num,
		.wc_flags = has_key ? IBV_WC_WITH_INV : 0,
	};
	entry.invalidated_rkey = key;
	cq_push((struct s_cq *)(void *)qp->plain.recv_cq, &entry);
	free(receive);
}

/* ---- operations */

static void op_free(struct op *op)
{
	list_remove(&op->node);
	free(op->inlined);
	free(op);
}

static void op_complete(struct s_qp *qp, struct op *op)
{
	static const enum ibv_wc_opcode opcodes[] = {
		[IBV_WR_RDMA_WRITE] = IBV_WC_RDMA_WRITE, [IBV_WR_SEND] = IBV_WC_SEND,	       [IBV_WR_SEND_WITH_INV] = IBV_WC_SEND,
		[IBV_WR_RDMA_READ] = IBV_WC_RDMA_READ,	 [IBV_WR_LOCAL_INV] = IBV_WC_LOCAL_INV, [IBV_WR_BIND_MW] = IBV_WC_BIND_MW,
	};
	if (op->status != IBV_WC_SUCCESS || op->flags & IBV_SEND_SIGNALED || qp->is_signalling_all) {
		struct ibv_wc entry = {
			.wr_id = op->name, .status = op->status, .opcode = opcodes[op->kind], .byte_len = (uint32_t)op->bytes, .qp_num = qp->plain.qp_num
		};
		cq_push((struct s_cq *)(void *)qp->plain.send_cq, &entry);
	}
	qp->send_count--;
	op_free(op);
}

void qp_complete_heads(struct s_qp *qp)
{
	while (!list_is_empty(&qp->ops)) {
		struct op *op = owner_of(qp->ops.next, struct op, node);
		if (op->state != OP_DONE)
			return;
		if (op->status != IBV_WC_SUCCESS) {
			qp_fail(qp);
			return;
		}
		op_complete(qp, op);
	}
}

void qp_fail(struct s_qp *qp)
{
	bool is_new = qp->state != IBV_QPS_ERR;
	qp->state = qp->plain.state = IBV_QPS_ERR;
	/* What the wire still points to is the caller's again. */
	if (is_new && qp->link)
		link_release_qp(qp->link);
	while (!list_is_empty(&qp->ops)) {
		struct op *op = owner_of(qp->ops.next, struct op, node);
		if (op->state != OP_DONE)
			op->status = IBV_WC_WR_FLUSH_ERR;
		op_complete(qp, op);
	}
	while (!qp->plain.srq && !list_is_empty(&qp->receives))
		qp_received(qp, qp_take_receive(qp), IBV_WC_WR_FLUSH_ERR, 0, false, 0);
	if (is_new && qp->plain.srq)
		device_tell(qp->plain.context, IBV_EVENT_QP_LAST_WQE_REACHED, &qp->plain);
}

/* Refuses what a device would refuse at post; the rest fails when its turn comes. */
static int op_check(const struct s_qp *qp, const struct op *op)
{
	if (qp->state != IBV_QPS_RTS && qp->state != IBV_QPS_ERR)
		return EINVAL;
	if (qp->send_count >= qp->send_most)
		return ENOMEM;
	if (op->part_count > PARTS_MAX || op->kind > IBV_WR_SEND_WITH_INV)
		return EINVAL;
	return op->flags & IBV_SEND_INLINE && op->bytes > qp->inline_most ? EINVAL : 0;
}

static int op_set_inline(struct op *op, const void *data, size_t bytes)
{
	op->flags |= IBV_SEND_INLINE;
	op->bytes = bytes;
	op->part_count = 0;
	op->inlined = malloc(bytes ? bytes : 1);
	if (!op->inlined || bytes > INLINE_MAX)
		return EINVAL;
	/* Byte by byte: the tests count calls of memcpy by the process. */
	for (size_t index = 0; index < bytes; index++)
		((volatile unsigned char *)op->inlined)[index] = ((const unsigned char *)data)[index];
	return 0;
}

static int op_set_parts(struct op *op, const struct ibv_sge *parts, size_t count)
{
	if (count > PARTS_MAX)
		return EINVAL;
	op->part_count = (int)count;
	op->bytes = 0;
	for (size_t index = 0; index < count; index++) {
		op->parts[index] = parts[index];
		op->bytes += parts[index].length;
	}
	return 0;
}

static void qp_take(struct s_qp *qp, struct op *op)
{
	op->number = qp->next_number++;
	qp->send_count++;
	list_push(&qp->ops, &op->node);
}

static void qp_go(struct s_qp *qp)
{
	if (qp->state == IBV_QPS_ERR)
		qp_fail(qp);
	else if (qp->link)
		link_pump(qp->link);
}

static int post_send(struct ibv_qp *ibqp, struct ibv_send_wr *wr, struct ibv_send_wr **bad)
{
	struct s_qp *qp = qp_of(ibqp);
	int answer = 0;
	world_enter();
	for (; wr && answer == 0; wr = wr->next) {
		*bad = wr;
		struct op *op = calloc(1, sizeof(*op));
		if (!op) {
			answer = ENOMEM;
			break;
		}
		list_init(&op->node);
		op->name = wr->wr_id;
		op->kind = wr->opcode;
		op->flags = wr->send_flags;
		op->address = wr->wr.rdma.remote_addr;
		op->key = wr->wr.rdma.rkey;
		if (wr->opcode == IBV_WR_SEND_WITH_INV || wr->opcode == IBV_WR_LOCAL_INV)
			op->key = wr->invalidate_rkey;
		if (wr->opcode == IBV_WR_BIND_MW) {
			op->window = wr->bind_mw.mw;
			op->window_key = wr->bind_mw.mw->rkey;
			op->key = wr->bind_mw.rkey;
			op->bind = wr->bind_mw.bind_info;
		}
		answer = op_set_parts(op, wr->sg_list, (size_t)wr->num_sge);
		if (answer == 0)
			answer = op_check(qp, op);
		if (answer == 0 && wr->send_flags & IBV_SEND_INLINE)
			answer = wr->num_sge == 1 ? op_set_inline(op, (void *)(uintptr_t)wr->sg_list[0].addr, wr->sg_list[0].length) : EINVAL;
		if (answer == 0)
			qp_take(qp, op);
		else
			op_free(op);
	}
	qp_go(qp);
	world_leave();
	return answer;
}

/* ---- the extended way: a draft of the batch, taken whole or not at all */

static void wr_start(struct ibv_qp_ex *ex)
{
	world_enter();
	((struct s_qp *)(void *)ex)->draft_error = 0;
}

static struct op *draft(struct ibv_qp_ex *ex, enum ibv_wr_opcode kind)
{
	struct s_qp *qp = (struct s_qp *)(void *)ex;
	struct op *op = calloc(1, sizeof(*op));
	if (!op)
		abort();
	op->name = ex->wr_id;
	op->flags = ex->wr_flags & ~(unsigned)IBV_SEND_INLINE;
	op->kind = kind;
	list_push(&qp->draft, &op->node);
	return op;
}

static struct op *drafted(struct ibv_qp_ex *ex)
{
	return owner_of(((struct s_qp *)(void *)ex)->draft.previous, struct op, node);
}

static void wr_send(struct ibv_qp_ex *ex) { draft(ex, IBV_WR_SEND); }
static void wr_send_inv(struct ibv_qp_ex *ex, uint32_t key) { draft(ex, IBV_WR_SEND_WITH_INV)->key = key; }
static void wr_local_inv(struct ibv_qp_ex *ex, uint32_t key) { draft(ex, IBV_WR_LOCAL_INV)->key = key; }

static void wr_rdma_read(struct ibv_qp_ex *ex, uint32_t key, uint64_t address)
{
	struct op *op = draft(ex, IBV_WR_RDMA_READ);
	op->key = key;
	op->address = address;
}

static void wr_rdma_write(struct ibv_qp_ex *ex, uint32_t key, uint64_t address)
{
	struct op *op = draft(ex, IBV_WR_RDMA_WRITE);
	op->key = key;
	op->address = address;
}

static void wr_bind_mw(struct ibv_qp_ex *ex, struct ibv_mw *window, uint32_t key, const struct ibv_mw_bind_info *info)
{
	struct op *op = draft(ex, IBV_WR_BIND_MW);
	op->key = key;
	op->window = window;
	op->window_key = window->rkey;
	op->bind = *info;
}

static void wr_set_inline_data(struct ibv_qp_ex *ex, void *data, size_t bytes)
{
	struct s_qp *qp = (struct s_qp *)(void *)ex;
	int answer = bytes > qp->inline_most ? EINVAL : op_set_inline(drafted(ex), data, bytes);
	qp->draft_error = answer ? answer : qp->draft_error;
}

static void wr_set_sge_list(struct ibv_qp_ex *ex, size_t count, const struct ibv_sge *parts)
{
	struct s_qp *qp = (struct s_qp *)(void *)ex;
	int answer = op_set_parts(drafted(ex), parts, count);
	qp->draft_error = answer ? answer : qp->draft_error;
}

static void wr_set_sge(struct ibv_qp_ex *ex, uint32_t key, uint64_t address, uint32_t bytes)
{
	struct ibv_sge part = { .addr = address, .length = bytes, .lkey = key };
	wr_set_sge_list(ex, 1, &part);
}

static void draft_drop(struct s_qp *qp)
{
	while (!list_is_empty(&qp->draft))
		op_free(owner_of(qp->draft.next, struct op, node));
}

static int wr_complete(struct ibv_qp_ex *ex)
{
	struct s_qp *qp = (struct s_qp *)(void *)ex;
	int answer = qp->draft_error;
	uint32_t count = 0;
	for (struct node *node = qp->draft.next; node != &qp->draft; node = node->next, count++)
		answer = answer ? answer : op_check(qp, owner_of(node, struct op, node));
	if (answer == 0 && qp->send_count + count > qp->send_most)
		answer = ENOMEM;
	if (answer != 0)
		draft_drop(qp);
	while (!list_is_empty(&qp->draft)) {
		struct op *op = owner_of(qp->draft.next, struct op, node);
		list_remove(&op->node);
		qp_take(qp, op);
	}
	qp_go(qp);
	world_leave();
	return answer;
}

static void wr_abort(struct ibv_qp_ex *ex)
{
	draft_drop((struct s_qp *)(void *)ex);
	world_leave();
}

/* ---- queue pairs */

static struct s_qp *qp_new(struct ibv_pd *pd, void *user, struct ibv_cq *send_cq, struct ibv_cq *recv_cq, struct ibv_srq *srq,
			   struct ibv_qp_cap *cap, enum ibv_qp_type type, int signals_all)
{
	if (type != IBV_QPT_RC || cap->max_inline_data > config.inline_bytes || cap->max_send_sge > PARTS_MAX || cap->max_send_wr > 4096) {
		errno = EINVAL;
		return NULL;
	}
	struct s_qp *made = calloc(1, sizeof(*made));
	if (!made)
		return NULL;
	struct ibv_qp *qp = &made->plain;
	qp->context = pd->context;
	qp->qp_context = user;
	qp->pd = pd;
	qp->send_cq = send_cq;
	qp->recv_cq = recv_cq;
	qp->srq = srq;
	qp->qp_type = type;
	made->is_signalling_all = signals_all;
	made->send_most = cap->max_send_wr;
	made->receive_most = cap->max_recv_wr;
	cap->max_inline_data = made->inline_most = config.inline_bytes < INLINE_MAX ? config.inline_bytes : INLINE_MAX;
	list_init(&made->ops);
	list_init(&made->receives);
	list_init(&made->draft);
	world_enter();
	qp->qp_num = next_pair_number++;
	list_push(&pairs, &made->in_list);
	world_leave();
	return made;
}

struct ibv_qp *ibv_create_qp(struct ibv_pd *pd, struct ibv_qp_init_attr *attributes)
{
	struct s_qp *made = qp_new(pd, attributes->qp_context, attributes->send_cq, attributes->recv_cq, attributes->srq, &attributes->cap,
				   attributes->qp_type, attributes->sq_sig_all);
	return made ? &made->plain : NULL;
}

static struct ibv_qp *create_qp_ex(struct ibv_context *context, struct ibv_qp_init_attr_ex *attributes)
{
	(void)context;
	const uint64_t able = IBV_QP_EX_WITH_SEND | IBV_QP_EX_WITH_SEND_WITH_INV | IBV_QP_EX_WITH_RDMA_READ | IBV_QP_EX_WITH_RDMA_WRITE |
			      IBV_QP_EX_WITH_LOCAL_INV | IBV_QP_EX_WITH_BIND_MW;
	if (attributes->send_ops_flags & ~able) {
		errno = EOPNOTSUPP;
		return NULL;
	}
	struct s_qp *made = qp_new(attributes->pd, attributes->qp_context, attributes->send_cq, attributes->recv_cq, attributes->srq,
				   &attributes->cap, attributes->qp_type, attributes->sq_sig_all);
	if (!made)
		return NULL;
	made->is_extended = true;
	struct ibv_qp_ex *ex = &made->extended;
	ex->wr_start = wr_start;
	ex->wr_complete = wr_complete;
	ex->wr_abort = wr_abort;
	ex->wr_send = wr_send;
	ex->wr_send_inv = wr_send_inv;
	ex->wr_local_inv = wr_local_inv;
	ex->wr_rdma_read = wr_rdma_read;
	ex->wr_rdma_write = wr_rdma_write;
	ex->wr_bind_mw = wr_bind_mw;
	ex->wr_set_inline_data = wr_set_inline_data;
	ex->wr_set_sge = wr_set_sge;
	ex->wr_set_sge_list = wr_set_sge_list;
	return &made->plain;
}

struct ibv_qp_ex *ibv_qp_to_qp_ex(struct ibv_qp *qp) { return qp_of(qp)->is_extended ? &qp_of(qp)->extended : NULL; }

struct s_qp *qp_by_number(uint32_t number)
{
	for (struct node *node = pairs.next; node != &pairs; node = node->next) {
		struct s_qp *qp = owner_of(node, struct s_qp, in_list);
		if (qp->plain.qp_num == number)
			return qp;
	}
	return NULL;
}

/* Only the order of states and the attributes that each needs; rdma_init_qp_attr gives them all. */
int ibv_modify_qp(struct ibv_qp *ibqp, struct ibv_qp_attr *attributes, int mask)
{
	static const int needed[] = {
		[IBV_QPS_INIT] = IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS,
		[IBV_QPS_RTR] = IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN | IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER,
		[IBV_QPS_RTS] = IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_SQ_PSN | IBV_QP_MAX_QP_RD_ATOMIC,
	};
	struct s_qp *qp = qp_of(ibqp);
	if (!(mask & IBV_QP_STATE))
		return 0;
	enum ibv_qp_state to = attributes->qp_state;
	int answer = 0;
	world_enter();
	if (to == IBV_QPS_ERR) {
		qp_fail(qp);
	} else if (to < IBV_QPS_INIT || to > IBV_QPS_RTS || to != qp->state + 1 || (mask & needed[to]) != needed[to]) {
		answer = EINVAL;
	} else {
		qp->state = qp->plain.state = to;
		links_wake();
		qp_go(qp);
	}
	world_leave();
	return answer;
}

int ibv_query_qp(struct ibv_qp *qp, struct ibv_qp_attr *attributes, int mask, struct ibv_qp_init_attr *init)
{
	(void)mask;
	(void)init;
	attributes->qp_state = qp_of(qp)->state;
	return 0;
}

int ibv_destroy_qp(struct ibv_qp *ibqp)
{
	struct s_qp *qp = qp_of(ibqp);
	world_enter();
	if (qp->link) {
		link_release_qp(qp->link);
		qp->link->qp = NULL;
		qp->link = NULL;
	}
	windows_forget(qp);
	while (!list_is_empty(&qp->ops))
		op_free(owner_of(qp->ops.next, struct op, node));
	receives_free(&qp->receives);
	list_remove(&qp->in_list);
	/* Events of it that nobody has read would name freed memory. */
	struct sign *events = &context_of(ibqp->context)->events;
	for (struct node *node = events->queue.next, *next; node != &events->queue; node = next) {
		next = node->next;
		struct s_event *event = owner_of(node, struct s_event, node);
		if (event->event.element.qp == ibqp) {
			sign_drop(events, node);
			free(event);
		}
	}
	world_leave();
	free(qp);
	return 0;
}

void queue_ops(struct verbs_context *verbs)
{
	struct ibv_context_ops *ops = &verbs->context.ops;
	ops->poll_cq = poll_cq;
	ops->req_notify_cq = req_notify_cq;
	ops->post_srq_recv = post_srq_recv;
	ops->post_recv = post_recv;
	ops->post_send = post_send;
	if (config.has_extended) {
		verbs->create_cq_ex = create_cq_ex;
		verbs->create_qp_ex = create_qp_ex;
	}
}
