/* librdmacm: ids, their states, and events. Queue pairs are the caller's, as with RDMA_PS_TCP ids that have no queue pair of their own. */
#include "standin.h"

#include <string.h>
#include <sys/socket.h>

struct rdma_event_channel *rdma_create_event_channel(void)
{
	struct s_channel_cm *made = calloc(1, sizeof(*made));
	if (!made || sign_open(&made->sign) != 0) {
		free(made);
		return NULL;
	}
	made->channel.fd = made->sign.fd;
	return &made->channel;
}

void rdma_destroy_event_channel(struct rdma_event_channel *channel)
{
	struct s_channel_cm *own = (struct s_channel_cm *)(void *)channel;
	sign_close(&own->sign);
	free(own);
}

static struct s_id *id_new(struct rdma_event_channel *channel, void *user, enum rdma_port_space space)
{
	struct s_id *made = calloc(1, sizeof(*made));
	if (!made)
		return NULL;
	made->id.channel = channel;
	made->id.context = user;
	made->id.ps = space;
	made->id.qp_type = IBV_QPT_RC;
	return made;
}

static struct s_id *own(struct rdma_cm_id *id) { return (struct s_id *)(void *)id; }

int rdma_create_id(struct rdma_event_channel *channel, struct rdma_cm_id **id, void *user, enum rdma_port_space space)
{
	struct s_id *made = id_new(channel, user, space);
	if (!made)
		return -1;
	*id = &made->id;
	return 0;
}

static int refuse(int why)
{
	errno = why;
	return -1;
}

static int id_bind(struct s_id *id, const struct sockaddr_in *at)
{
	struct s_device *device = device_by_address(at->sin_addr.s_addr);
	if (!device)
		return refuse(EADDRNOTAVAIL);
	id->id.verbs = shared_context(device);
	id->id.port_num = 1;
	id->id.route.addr.src_sin = *at;
	id->state = ID_BOUND;
	return 0;
}

void cm_tell(struct s_id *id, enum rdma_cm_event_type kind, int status, const void *data, uint32_t bytes)
{
	struct s_cm_event *event = calloc(1, sizeof(*event));
	if (!event)
		abort();
	event->event.id = &id->id;
	event->event.event = kind;
	event->event.status = status;
	if (data && bytes) {
		memcpy(event->data, data, bytes);
		event->event.param.conn.private_data = event->data;
		event->event.param.conn.private_data_len = (uint8_t)bytes;
	}
	sign_push(&((struct s_channel_cm *)(void *)id->id.channel)->sign, &event->node);
}

void cm_requested(struct s_id *listener, struct link *link, const struct frame *head, const void *data)
{
	struct s_id *made = id_new(listener->id.channel, listener->id.context, listener->id.ps);
	if (!made)
		abort();
	id_bind(made, &listener->id.route.addr.src_sin);
	made->state = ID_ASKED;
	made->link = link;
	made->peer_qp_number = head->qp_number;
	made->id.route.addr.dst_sin.sin_family = AF_INET;
	made->id.route.addr.dst_sin.sin_addr.s_addr = head->from_address;
	link->id = made;
	link->listener = NULL;
	cm_tell(made, RDMA_CM_EVENT_CONNECT_REQUEST, 0, data, (uint32_t)config.private_bytes);
	struct sign *sign = &((struct s_channel_cm *)(void *)made->id.channel)->sign;
	owner_of(sign->queue.previous, struct s_cm_event, node)->event.listen_id = &listener->id;
}

int rdma_get_cm_event(struct rdma_event_channel *channel, struct rdma_cm_event **into)
{
	struct s_channel_cm *own = (struct s_channel_cm *)(void *)channel;
	world_enter();
	struct node *first = sign_take(&own->sign, own->sign.fd);
	world_leave();
	if (!first)
		return -1;
	*into = &owner_of(first, struct s_cm_event, node)->event;
	return 0;
}

int rdma_ack_cm_event(struct rdma_cm_event *event)
{
	free(owner_of(event, struct s_cm_event, event));
	return 0;
}

int rdma_bind_addr(struct rdma_cm_id *id, struct sockaddr *at)
{
	if (at->sa_family != AF_INET)
		return refuse(EAFNOSUPPORT);
	world_enter();
	int answer = id_bind(own(id), (struct sockaddr_in *)(void *)at);
	world_leave();
	return answer;
}

int rdma_listen(struct rdma_cm_id *id, int backlog)
{
	(void)backlog;
	struct s_id *mine = own(id);
	world_enter();
	mine->listener = mine->state == ID_BOUND ? engine_listen(mine, &id->route.addr.src_sin) : NULL;
	if (mine->listener)
		mine->state = ID_LISTENING;
	world_leave();
	return mine->listener ? 0 : -1;
}

int rdma_resolve_addr(struct rdma_cm_id *id, struct sockaddr *from, struct sockaddr *to, int within_ms)
{
	(void)within_ms;
	struct s_id *mine = own(id);
	world_enter();
	int answer = id_bind(mine, (struct sockaddr_in *)(void *)from);
	if (answer == 0) {
		id->route.addr.dst_sin = *(struct sockaddr_in *)(void *)to;
		cm_tell(mine, RDMA_CM_EVENT_ADDR_RESOLVED, 0, NULL, 0);
	}
	world_leave();
	return answer;
}

int rdma_resolve_route(struct rdma_cm_id *id, int within_ms)
{
	(void)within_ms;
	world_enter();
	cm_tell(own(id), RDMA_CM_EVENT_ROUTE_RESOLVED, 0, NULL, 0);
	world_leave();
	return 0;
}

static int attach(struct s_id *id, uint32_t number)
{
	struct s_qp *qp = qp_by_number(number);
	if (!qp || qp->link)
		return refuse(EINVAL);
	qp->link = id->link;
	id->link->qp = qp;
	return 0;
}

int rdma_connect(struct rdma_cm_id *id, struct rdma_conn_param *parameters)
{
	struct s_id *mine = own(id);
	if (mine->state != ID_BOUND || parameters->private_data_len > REQUEST_DATA)
		return refuse(EINVAL);
	unsigned char data[REQUEST_DATA] = { 0 };
	memcpy(data, parameters->private_data, parameters->private_data_len);
	world_enter();
	mine->link = link_new();
	mine->link->id = mine;
	mine->state = ID_ASKING;
	int answer = attach(mine, parameters->qp_num);
	if (answer == 0) {
		uint32_t from = id->route.addr.src_sin.sin_addr.s_addr;
		if (link_dial(mine->link, &id->route.addr.dst_sin) == 0)
			link_say(&mine->link->ask,
				 (struct frame){ .kind = REQUEST, .nonce = mine->link->nonce, .qp_number = parameters->qp_num, .from_address = from }, data,
				 sizeof(data));
		else
			/* 8: nobody serves there (IB's invalid service id). */
			cm_tell(mine, RDMA_CM_EVENT_REJECTED, 8, NULL, 0);
	}
	world_leave();
	return answer;
}

int rdma_accept(struct rdma_cm_id *id, struct rdma_conn_param *parameters)
{
	struct s_id *mine = own(id);
	if (mine->state != ID_ASKED || parameters->private_data_len > ACCEPT_DATA)
		return refuse(EINVAL);
	unsigned char data[ACCEPT_DATA] = { 0 };
	memcpy(data, parameters->private_data, parameters->private_data_len);
	world_enter();
	int answer = mine->link->is_broken ? refuse(ECONNRESET) : attach(mine, parameters->qp_num);
	if (answer == 0) {
		mine->state = ID_ACCEPTED;
		link_say(&mine->link->answer, (struct frame){ .kind = ACCEPT, .qp_number = parameters->qp_num }, data, sizeof(data));
		links_wake();
		link_pump(mine->link);
	}
	world_leave();
	return answer;
}

int rdma_reject(struct rdma_cm_id *id, const void *said, uint8_t bytes)
{
	struct s_id *mine = own(id);
	if (mine->state != ID_ASKED || bytes > REJECT_DATA)
		return refuse(EINVAL);
	unsigned char data[REJECT_DATA] = { 0 };
	if (bytes)
		memcpy(data, said, bytes);
	world_enter();
	mine->state = ID_OVER;
	link_say(&mine->link->answer, (struct frame){ .kind = REJECT }, data, sizeof(data));
	world_leave();
	return 0;
}

int rdma_establish(struct rdma_cm_id *id)
{
	struct s_id *mine = own(id);
	if (mine->state != ID_ACCEPTED)
		return refuse(EINVAL);
	world_enter();
	mine->state = ID_UP;
	link_say(&mine->link->answer, (struct frame){ .kind = READY }, NULL, 0);
	world_leave();
	return 0;
}

int rdma_disconnect(struct rdma_cm_id *id)
{
	struct s_id *mine = own(id);
	if (mine->state != ID_UP && mine->state != ID_ACCEPTED)
		return refuse(EINVAL);
	world_enter();
	mine->state = ID_OVER;
	link_say(&mine->link->answer, (struct frame){ .kind = DISCONNECT }, NULL, 0);
	if (!mine->link->is_told_down) {
		mine->link->is_told_down = true;
		cm_tell(mine, RDMA_CM_EVENT_DISCONNECTED, 0, NULL, 0);
	}
	world_leave();
	return 0;
}

static void id_free(struct s_id *id)
{
	if (id->link) {
		id->link->id = NULL;
		id->link = NULL;
	}
	free(id);
}

int rdma_destroy_id(struct rdma_cm_id *id)
{
	struct s_id *mine = own(id);
	struct sign *sign = &((struct s_channel_cm *)(void *)id->channel)->sign;
	world_enter();
	if (mine->listener)
		engine_unlisten(mine->listener);
	/* Events that nobody has read go with it, and so do ids that nobody has heard of. */
	for (struct node *node = sign->queue.next, *next; node != &sign->queue; node = next) {
		next = node->next;
		struct s_cm_event *event = owner_of(node, struct s_cm_event, node);
		bool is_stranger = event->event.event == RDMA_CM_EVENT_CONNECT_REQUEST && event->event.listen_id == id;
		if (event->event.id != id && !is_stranger)
			continue;
		sign_drop(sign, node);
		if (is_stranger) {
			struct s_id *stranger = own(event->event.id);
			link_break(stranger->link);
			/* Breaking told it of its end. */
			node = next = sign->queue.next;
			for (struct node *other = sign->queue.next, *after; other != &sign->queue; other = after) {
				after = other->next;
				struct s_cm_event *last = owner_of(other, struct s_cm_event, node);
				if (last->event.id == &stranger->id) {
					sign_drop(sign, other);
					free(last);
				}
			}
			next = sign->queue.next;
			id_free(stranger);
		}
		free(event);
	}
	engine_kick();
	id_free(mine);
	world_leave();
	return 0;
}

int rdma_init_qp_attr(struct rdma_cm_id *id, struct ibv_qp_attr *attributes, int *mask)
{
	struct s_id *mine = own(id);
	*mask = IBV_QP_STATE;
	switch (attributes->qp_state) {
	case IBV_QPS_INIT:
		attributes->port_num = 1;
		attributes->qp_access_flags = IBV_ACCESS_REMOTE_WRITE;
		*mask |= IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS;
		return mine->id.verbs ? 0 : refuse(EINVAL);
	case IBV_QPS_RTR:
		attributes->dest_qp_num = mine->peer_qp_number;
		attributes->path_mtu = IBV_MTU_4096;
		attributes->max_dest_rd_atomic = 16;
		*mask |= IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN | IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER;
		return mine->peer_qp_number ? 0 : refuse(EINVAL);
	case IBV_QPS_RTS:
		attributes->timeout = 14;
		attributes->retry_cnt = 7;
		attributes->rnr_retry = 7;
		attributes->max_rd_atomic = 16;
		*mask |= IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_SQ_PSN | IBV_QP_MAX_QP_RD_ATOMIC;
		return 0;
	default:
		return refuse(EINVAL);
	}
}
